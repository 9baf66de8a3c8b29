"""The share that each sound has in a mixture, as masks in mel bands.

A mask is free of level, so the windows of a long recording need no common one.
"""

from __future__ import annotations

import numpy as np

from flowsep_runtime.arrays import Floats

#: Share of the mixture from which on several sounds leave nothing of it, if they claim it together.
CLAIMED = 0.5


def shares(log_mels: Floats, mixture: Floats, complements: bool, exponent: float = 1.0) -> Floats:
    """Masks from 0 to 1 for the sounds of a mixture; at every point they add up to at most 1.

    A sound claims its magnitude over that of it and its complement or, without complements, over that of the
    mixture. A single sound gets its claim. Several get theirs in proportion: they share everything where
    they claim at least half together, and elsewhere the rest keeps a part.

    Args:
        log_mels: Natural-log mel magnitudes of the sounds [..., Q, T, 64], with complements [..., 2Q, T, 64]:
            all sounds, then everything but each of them.
        mixture: Those of the mixture, at the same level [..., T, 64].
        complements: True if complements are given.
        exponent: Power of the magnitudes of a sound and its complement. Below 1, shares are nearer to 1/2.

    Returns:
        [..., Q, T, 64].
    """
    if complements:
        sounds, rests = np.split(log_mels, 2, axis=-3)
    else:
        sounds, rests = log_mels, mixture[..., None, :, :]
    # Without the common level, so that no exponential overflows.
    level = np.maximum(sounds, rests)
    power = np.float32(exponent if complements else 1)
    sound, rest = np.exp(power * (sounds - level)), np.exp(power * (rests - level))
    claims: Floats = np.minimum(sound / (sound + rest if complements else rest), np.float32(1))
    if claims.shape[-3] > 1:
        claims /= np.maximum(claims.sum(axis=-3, keepdims=True), np.float32(CLAIMED))
    return claims
