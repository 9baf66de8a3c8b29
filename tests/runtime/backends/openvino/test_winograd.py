"""Winograd's filtering gives the sums of the plain one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowsep_runtime.backends.openvino.winograd import Tiling, cheapest, transforms

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.mark.parametrize(("outputs", "taps"), [(4, 3), (2, 3), (3, 3), (4, 2), (2, 2), (5, 1), (1, 3)])
def test_winograd_on_one_axis_equals_the_direct_convolution(outputs: int, taps: int) -> None:
    matrices = transforms(outputs, taps)
    random = np.random.default_rng(outputs)
    signal, kernel = random.standard_normal(outputs + taps - 1), random.standard_normal(taps)
    found = matrices.output @ ((matrices.kernel @ kernel) * (matrices.input @ signal))
    assert np.allclose(found, np.correlate(signal, kernel), rtol=0, atol=1e-13)
    for exact in (matrices.input, matrices.output):
        assert np.array_equal(exact, np.round(exact))  # no rounding where activations go through


def filtered(image: Array, weight: Array, tiling: Tiling) -> Array:
    """The whole way in numpy: image [H, W, C], weight [K, C, *taps] -> [H, W, K]."""
    height, width, channels = image.shape
    pixels = np.vstack([image.reshape(-1, channels), np.zeros((1, channels), image.dtype)])
    read = pixels[tiling.sources()].reshape(tiling.points, -1)
    values = (tiling.input_transform @ read).reshape(tiling.points, -1, channels)
    products = values @ tiling.kernel(weight).swapaxes(1, 2)
    results = tiling.output_transform @ products.reshape(tiling.points, -1)
    tiled = results.reshape(*tiling.tile, *tiling.tiles, len(weight)).transpose(2, 0, 3, 1, 4)
    rows, columns = (tile * tiles for tile, tiles in zip(tiling.tile, tiling.tiles, strict=True))
    whole: Array = tiled.reshape(rows, columns, -1)
    return whole[:height, :width]


def plain(image: Array, weight: Array, tiling: Tiling) -> Array:
    """The sum as it stands."""
    height, width, _ = image.shape
    padded = np.pad(image.astype(float), ((3, 3), (3, 3), (0, 0)))
    total = np.zeros((height, width, len(weight)))
    for row in range(tiling.taps[0]):
        for column in range(tiling.taps[1]):
            top, left = 3 + tiling.first[0] + row, 3 + tiling.first[1] + column
            total += padded[top : top + height, left : left + width] @ weight[:, :, row, column].T
    return total


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    tile=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    taps=st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3])),
    first=st.tuples(st.integers(-2, 1), st.integers(-2, 1)),
)
def test_winograd_equals_the_direct_convolution_on_any_image(
    size: tuple[int, int], tile: tuple[int, int], taps: tuple[int, int], first: tuple[int, int]
) -> None:
    tiling = Tiling(size, tile, taps, first)
    random = np.random.default_rng(0)
    image = random.standard_normal((*size, 5)).astype(np.float32)
    weight = random.standard_normal((6, 5, *taps)).astype(np.float32)
    found, expected = filtered(image, weight, tiling), plain(image, weight, tiling)
    assert np.abs(found - expected).max() < 1e-4 * max(np.abs(expected).max(), 1)


def test_float32_keeps_a_hundred_decibels() -> None:
    tiling = Tiling((64, 16), (4, 4), (3, 3), (-1, -1))
    random = np.random.default_rng(0)
    image = random.standard_normal((64, 16, 128)).astype(np.float32)
    weight = (random.standard_normal((128, 128, 3, 3)) / 34).astype(np.float32)
    expected = plain(image, weight, tiling)
    error = filtered(image, weight, tiling) - expected
    assert 10 * np.log10(np.sum(expected**2) / np.sum(error**2)) > 105


def test_large_tiles_for_large_images_and_small_ones_for_small() -> None:
    assert cheapest((256, 16), (3, 3), (2, 4)) == (4, 4)
    assert cheapest((32, 2), (3, 3), (2, 4)) == (2, 2)
