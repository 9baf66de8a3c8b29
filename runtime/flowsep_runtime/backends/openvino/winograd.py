"""Winograd's minimal filtering: a convolution with fewer multiplications, in exact arithmetic the same.

`m` neighbouring outputs of a filter of `r` taps come from two polynomials' product, which is known from its
values at n = m + r - 1 points: n multiplications instead of m·r (Lavin and Gray, 2016; Toom and Cook for the
matrices). In two dimensions both axes are treated so, and 4×4 outputs of a 3×3 filter take 36 instead of 144.

    Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A

The inner product over input channels goes inside, so that ⊙ becomes n² matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from flowsep_runtime.arrays import Array

#: Small integers make the matrices' numbers small; the last point is infinity.
_POINTS = (0, 1, -1, 2, -2)


class Transforms(NamedTuple):
    """The matrices of one axis, for `m` outputs of a filter of `r` taps, n = m + r - 1; float64."""

    input: Array  #: Bᵀ [n, n], of integers
    kernel: Array  #: G [n, r]
    output: Array  #: Aᵀ [m, n], of integers


@cache
def transforms(m: int, r: int) -> Transforms:
    """The matrices for `m` outputs and `r` taps; m + r at most 7."""
    n = m + r - 1
    points = np.array(_POINTS[: n - 1], float)
    # Rows that turn a polynomial's coefficients into its values; at infinity that is the leading one.
    values = {
        degree: np.vstack([points[:, None] ** np.arange(degree), np.eye(degree)[-1]]) for degree in (m, r, n)
    }
    # Lagrange's denominators: moved from B to G, which is worked out beforehand.
    scale = np.array([np.prod([p - q for q in points if q != p]) for p in points] + [1.0])
    inverse = np.linalg.inv(values[n]).T
    return Transforms(np.round(scale[:, None] * inverse), values[r] / scale[:, None], values[m].T)


class Tiling(NamedTuple):
    """Tiling of an image: tiles of outputs, the filter's taps, and where its first one reads, on both axes
    (rows, columns)."""

    image: tuple[int, int]
    tile: tuple[int, int]
    taps: tuple[int, int]
    first: tuple[int, int]

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along the axes; the last ones may reach beyond the image."""
        rows, columns = (-(-size // tile) for size, tile in zip(self.image, self.tile, strict=True))
        return rows, columns

    @property
    def points(self) -> int:
        """Matrix products, and rows of `input_transform`."""
        return (self.tile[0] + self.taps[0] - 1) * (self.tile[1] + self.taps[1] - 1)

    def sources(self) -> Array:
        """Source of each point of each tile: int32 [points · tiles] of pixel numbers, row by row; beyond
        the image it is the number of pixels, for a pixel of zeros."""
        (height, width), tiles = self.image, self.tiles
        sizes = [tile + taps - 1 for tile, taps in zip(self.tile, self.taps, strict=True)]
        in_row, in_column, tile_row, tile_column = np.ix_(*map(np.arange, (*sizes, *tiles)))
        row = tile_row * self.tile[0] + in_row + self.first[0]
        column = tile_column * self.tile[1] + in_column + self.first[1]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixels: Array = np.where(inside, row * width + column, height * width).astype(np.int32).ravel()
        return pixels

    @property
    def input_transform(self) -> Array:
        """Bᵀ of both axes at once [points, points], float32."""
        return self._both("input").astype(np.float32)

    @property
    def output_transform(self) -> Array:
        """Aᵀ of both axes at once [outputs of a tile, points], float32."""
        return self._both("output").astype(np.float32)

    def kernel(self, weight: Array) -> Array:
        """Filters [K, C, *taps] -> their values at the points [points, K, C], float32."""
        taps = np.ascontiguousarray(weight.transpose(2, 3, 0, 1), float).reshape(-1, weight[..., 0, 0].size)
        values: Array = (self._both("kernel") @ taps).astype(np.float32)
        return values.reshape(self.points, *weight.shape[:2])

    def _both(self, name: str) -> Array:
        rows, columns = (getattr(transforms(m, r), name) for m, r in zip(self.tile, self.taps, strict=True))
        matrix: Array = np.kron(rows, columns)
        return matrix


def cheapest(image: tuple[int, int], taps: tuple[int, int], tiles: Sequence[int]) -> tuple[int, int]:
    """The tile with the least work: a product takes time for each row, and for its weights as much as for
    another 22 (read at 20 GB/s, multiplied at 200 GFLOP/s)."""

    def work(tile: tuple[int, int]) -> int:
        tiling = Tiling(image, tile, taps, (0, 0))
        rows, columns = tiling.tiles
        return tiling.points * (rows * columns + 22)

    return min(((rows, columns) for rows in tiles for columns in tiles), key=work)
