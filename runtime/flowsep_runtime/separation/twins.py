"""Channels that hold the same samples, as in most stereo recordings of one voice: they are computed once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowsep_runtime.arrays import Floats


def leaders(tracks: Floats, others: NDArray[np.generic]) -> NDArray[np.intp]:
    """The first equal column of every column; its own number if there is none before it.

    Args:
        tracks: [N, C, ...], compared in the second axis.
        others: [M, C], which must be equal too.
    """
    found = np.arange(tracks.shape[1])
    for column in found[1:]:
        for other in range(column):
            if (
                found[other] == other
                and np.array_equal(others[:, other], others[:, column])
                and np.array_equal(tracks[:, other], tracks[:, column])
            ):
                found[column] = other
                break
    return found
