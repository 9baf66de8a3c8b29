"""The share that each sound has in a mixture, as masks in mel bands.

A mask is free of level, so the windows of a long recording need no common one.
"""

from __future__ import annotations

import numpy as np

from flowsep_runtime.arrays import Floats


def shares(log_mels: Floats, mixture: Floats, complement: bool) -> Floats:
    """Masks from 0 to 1 for the sounds of a mixture; at every point they add up to at most 1.

    A sound's share is its magnitude in that of all the sounds; what the sounds leave of the mixture is the
    rest's. With a complement (everything but the sound) the two are all that there is.

    Args:
        log_mels: Natural-log mel magnitudes of the sounds [..., Q, T, 64].
        mixture: Those of the mixture, at the same level [..., T, 64].
        complement: True if the second of two sounds is the complement of the first.

    Returns:
        [..., Q, T, 64]; with a complement, [..., 1, T, 64].
    """
    whole = mixture[..., None, :, :]
    # Without the common level, so that no exponential overflows.
    level = np.maximum(log_mels.max(axis=-3, keepdims=True), whole)
    magnitudes = np.exp(log_mels - level)
    total = magnitudes.sum(axis=-3, keepdims=True)
    if not complement:
        total = np.maximum(total, np.exp(whole - level))
    masks: Floats = (magnitudes[..., :1, :, :] if complement else magnitudes) / total
    return masks
