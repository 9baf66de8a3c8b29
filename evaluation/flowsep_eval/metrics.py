"""The metrics, one function for each.

All are limited to 60 dB: a level further below the mixture, or a ratio beyond ±60 dB, counts as 60 dB.
Silence therefore has a score too, and no single output decides a mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowsep_eval.mel import Floats

#: Limit of all metrics, in decibels.
RANGE_DB = 60.0
#: dB below the mixture from which on an output for an absent sound counts as empty.
ABSENT_DB = 15.0


def floor_below(mixture: Floats) -> float:
    """The magnitude 60 dB below a mixture's loudest mel band: `mixture [T, 64]`, linear."""
    return float(mixture.max()) * 10 ** (-RANGE_DB / 20)


def log_mel_distance(estimate: Floats, target: Floats, floor: float) -> float:
    """Mean absolute difference of two mel spectrograms on a logarithmic scale, in dB; 0 is best.

    Args:
        estimate, target: Mel magnitudes `[T, 64]`, linear.
        floor: Lower limit of both (`floor_below` the mixture), above 0.

    Source: the L1 distance of log-mel spectrograms that the paper's autoencoder and BigVGAN are trained by,
    in decibels.
    """
    # natural logarithms of float32, scaled afterwards: half the time of log10
    difference = np.log(np.maximum(estimate, np.float32(floor))) - np.log(
        np.maximum(target, np.float32(floor))
    )
    return float(np.abs(difference).mean(dtype=np.float64) * 20 / np.log(10))


def si_sdr(estimate: NDArray[np.floating], target: NDArray[np.floating]) -> float:
    """Scale-invariant signal-to-distortion ratio, in dB, within ±60; higher is better.

    Args:
        estimate, target: Arrays of one shape: waveforms without offset, or mel magnitudes.

    Returns:
        −60 for an estimate that is zero everywhere, NaN for a target that is.

    Source: Le Roux et al., "SDR – half-baked or well done?", ICASSP 2019, equation 3.
    """
    e, s = (x.ravel().astype(np.float64) for x in (estimate, target))
    e, s = (x / max(np.abs(x).max(), np.finfo(np.float64).tiny) for x in (e, s))
    energy = s @ s
    if energy == 0:
        return float("nan")
    projection = (e @ s) / energy * s
    distortion = np.sum((e - projection) ** 2)
    signal = projection @ projection
    if signal == 0:
        return -RANGE_DB
    ratio = 10 * np.log10(signal / max(distortion, signal * 10 ** (-RANGE_DB / 10)))
    return max(float(ratio), -RANGE_DB)


def level_db(waveform: Floats, mixture: Floats) -> float:
    """Root-mean-square level of a waveform against its mixture's, both `[S]`, in dB, −60 at least."""
    rms, of_mixture = (np.sqrt(np.mean(np.square(x, dtype=np.float64))) for x in (waveform, mixture))
    return float(20 * np.log10(max(rms / of_mixture, 10 ** (-RANGE_DB / 20))))


def level_error(estimate: Floats, target: Floats, mixture: Floats) -> float:
    """Absolute level error of an estimate in dB; 0 is best. All `[S]`."""
    return abs(level_db(estimate, mixture) - level_db(target, mixture))


def attenuation(estimate: Floats, mixture: Floats) -> float:
    """Level of an estimate below its mixture in dB, at most 60, for a sound that is absent. `[S]`."""
    return -level_db(estimate, mixture)


def cosine_similarity(a: Floats, b: Floats) -> float:
    """Cosine of the angle of two embeddings `[D]`, −1 … 1: the CLAPScore of a recording and a sentence.

    Source: Xiao et al., "A reference-free metric for language-queried audio source separation using
    contrastive language-audio pretraining", DCASE 2024.
    """
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), np.finfo(np.float32).tiny))


def frechet_distance(a: Floats, b: Floats) -> float:
    """Fréchet distance between normal distributions fitted to two sets of embeddings; 0 is best.

    Args:
        a, b: `[N, D]` and `[M, D]`, two or more rows each. It falls with N and M: compare like with like.

    Source: Kilgour et al., "Fréchet audio distance", Interspeech 2019: |μa − μb|² + tr(Σa + Σb − 2 √(Σa Σb)).
    With X and Y the centred rows over √(N − 1) and √(M − 1), Σa = XᵀX and Σb = YᵀY, and the trace of the root
    is the sum of the singular values of X Yᵀ: no root of a matrix that need not have one.
    """
    x, y = ((e.astype(np.float64) - e.mean(axis=0, dtype=np.float64)) / np.sqrt(len(e) - 1) for e in (a, b))
    means = np.sum((a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)) ** 2)
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(max(means + np.sum(x**2) + np.sum(y**2) - 2 * root, 0.0))
