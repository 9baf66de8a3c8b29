"""Array types of signatures, and the distance of two arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]
Array: TypeAlias = NDArray[Any]


def snr_db(reference: Sequence[Array], found: Sequence[Array]) -> float:
    """Signal-to-noise ratio in dB: energy of the reference over that of the difference, over all arrays.

    Returns:
        Infinity for equal arrays, NaN if a number is not finite or a shape differs.
    """
    signal = noise = 0.0
    for a, b in zip(reference, found, strict=True):
        if a.shape != b.shape or not np.isfinite(b).all():
            return float("nan")
        signal += float(np.sum(np.square(a, dtype=np.float64)))
        noise += float(np.sum(np.square(a.astype(np.float64) - b)))
    if noise == 0:
        return float("inf")
    return float("-inf") if signal == 0 else 10 * float(np.log10(signal / noise))
