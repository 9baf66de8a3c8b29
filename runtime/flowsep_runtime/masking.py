"""The mixture's own samples through the mask that a generated target implies.

A vocoder invents its phase, so subtracting its waveform from the mixture only adds noise. What the target
says reliably is how loud each frequency is at each moment; the share of the mixture that this explains is
the masked target, and the residual is the rest, so that masked + residual = mixture, sample by sample.
"""

from __future__ import annotations

import math

import numpy as np

from .arrays import Floats

WINDOW_SECONDS = 0.064
POOLED_BINS = (
    5  # powers are averaged over neighbouring bins: two phases of one sound differ in their fine structure
)
BLOCK_FRAMES = 1024  # spectra in memory at a time


def masked_mixture(mixture: Floats, target: Floats, sample_rate: float, band: float) -> Floats:
    """Filters a mixture by the magnitude of a target: `min(1, |target| / |mixture|)` on a Hann STFT, 75 %
    overlap.

    Args:
        mixture: [samples], mono, any level.
        target: [samples], the generated target at the same rate, alignment and level.
        sample_rate: Of both, in Hz.
        band: Highest frequency in Hz that the target describes; above it the mask goes on from the octave
            third below.

    Returns:
        The masked target [samples].
    """
    scale = np.float32(max(float(np.max(np.abs(mixture))), float(np.max(np.abs(target)))))
    if not scale:
        return np.zeros_like(mixture)
    size = max(16, 2 ** round(math.log2(WINDOW_SECONDS * sample_rate)))
    hop = size // 4
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)
    # With size - hop zeros before the first sample, every sample lies in exactly four frames.
    frames = -(-(len(mixture) + size - hop) // hop)
    mixture_frames = _frames(mixture / scale, frames, size, hop)
    target_frames = _frames(target / scale, frames, size, hop)
    frequencies = np.arange(size // 2 + 1) * sample_rate / size
    above = frequencies > band
    below = (frequencies <= band) & (frequencies > band / 2 ** (1 / 3))

    summed = np.zeros((frames + 3, hop), np.float32)
    for first in range(0, frames, BLOCK_FRAMES):
        block = slice(first, first + BLOCK_FRAMES)
        spectrum = np.fft.rfft(mixture_frames[block] * window)
        mask = _magnitude_mask(spectrum, np.fft.rfft(target_frames[block] * window))
        if above.any() and below.any():
            mask[:, above] = mask[:, below].mean(axis=1, keepdims=True)
        pieces = np.fft.irfft(spectrum * mask, size).astype(np.float32) * window
        for quarter in range(4):
            summed[first + quarter : first + quarter + len(pieces)] += pieces[
                :, quarter * hop : (quarter + 1) * hop
            ]
    # Squared periodic Hann windows at 75 % overlap add up to 3/2.
    masked: Floats = summed.reshape(-1)[size - hop :][: len(mixture)] * (scale / np.float32(1.5))
    return masked


def _frames(signal: Floats, frames: int, size: int, hop: int) -> Floats:
    padded = np.zeros((frames + 3) * hop, np.float32)
    padded[size - hop : size - hop + len(signal)] = signal
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]


def _magnitude_mask(mixture: np.ndarray, target: np.ndarray) -> Floats:
    ratio = _pooled_power(target) / np.maximum(_pooled_power(mixture), np.float32(1e-20))
    mask: Floats = np.sqrt(np.minimum(ratio, np.float32(1)))
    return mask


def _pooled_power(spectrum: np.ndarray) -> Floats:
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    reach = POOLED_BINS // 2
    padded = np.pad(power, ((0, 0), (reach, reach)), mode="edge")
    bins = power.shape[1]
    pooled: Floats = sum(
        (padded[:, shift : shift + bins] for shift in range(1, POOLED_BINS)), padded[:, :bins]
    )
    return pooled / np.float32(POOLED_BINS)
