"""Samples and sample rates: checks, and resampling to exact lengths."""

from __future__ import annotations

import numbers

import numpy as np

from flowsep_runtime.arrays import Floats
from flowsep_runtime.errors import AudioError

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz
MOST_CHANNELS = 64  # more is [channels, samples] where [samples, channels] is meant
SILENCE = 1e-7  # a signal whose peak around its mean stays below -140 dB of full scale


def checked_rate(sample_rate: object) -> float:
    """A sample rate in Hz.

    Raises:
        AudioError: If it is not a number, or out of range.
    """
    if not isinstance(sample_rate, numbers.Real) or isinstance(sample_rate, bool):
        raise AudioError(f"The sample rate must be a number and not {sample_rate!r}: give it in Hz.")
    rate = float(sample_rate)
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(
            f"The sample rate is {sample_rate} Hz: give audio between {LOWEST_RATE} and {HIGHEST_RATE} Hz."
        )
    return rate


def checked_samples(audio: object, sample_rate: float) -> Floats:
    """Audio as float32 [samples, channels].

    Args:
        audio: Floating-point [samples] or [samples, channels], at most `MOST_CHANNELS`.
        sample_rate: In Hz.

    Raises:
        AudioError: If it is not floating point, has another shape, is empty, holds NaN or infinite samples,
            or the rate is out of range.
    """
    try:
        array = np.asarray(audio)
    except (TypeError, ValueError):
        raise AudioError(
            f"The audio is not an array but {type(audio).__name__}: give [samples] or [samples, channels]."
        ) from None
    if array.dtype.kind != "f":
        raise AudioError(
            f"The samples must be floating point and not {array.dtype}: divide integers by their full scale."
        )
    if array.ndim not in (1, 2):
        raise AudioError(
            f"The audio must be [samples] or [samples, channels] and not of shape {array.shape}."
        )
    if not array.size:
        raise AudioError("The audio is empty: it holds no samples.")
    if array.ndim == 2 and array.shape[1] > MOST_CHANNELS:
        raise AudioError(
            f"The audio has {array.shape[0]} samples of {array.shape[1]} channels: give [samples, channels] "
            f"of at most {MOST_CHANNELS} channels, so transpose [channels, samples]."
        )
    checked_rate(sample_rate)
    with np.errstate(over="ignore"):
        samples = array.astype(np.float32)
    if not np.isfinite(samples).all():
        raise AudioError("The audio holds NaN or infinite samples: repair it first.")
    return samples[:, None] if samples.ndim == 1 else samples


def centred(samples: Floats) -> Floats:
    """Samples [samples, channels] minus each channel's mean; the sum is taken in double precision."""
    result: Floats = (samples - samples.mean(axis=0, dtype=np.float64)).astype(np.float32)
    return result
