"""The mixture's own samples through the mask that a generated target implies.

A vocoder invents its phase, so subtracting its waveform from the mixture only adds noise. What the target
says reliably is how loud each frequency is at each moment; the share of the mixture that this explains is
the masked target, and the residual is the rest, so that masked + residual = mixture, sample by sample.
"""

from __future__ import annotations

import math

import numpy as np

from flowsep_runtime.arrays import Floats

WINDOW_SECONDS = 0.064
POOLED_BINS = (
    5  # powers are averaged over neighbouring bins: two phases of one sound differ in their fine structure
)
BLOCK_FRAMES = 1024  # spectra in memory at a time
BLOCK_SAMPLES = 1 << 22  # of those, in a stream, where a window at a high rate is long


class _Filter:
    """Frames of a signal (Hann, 75 % overlap) and the mask `min(1, |target| / |reference|)` on them."""

    def __init__(self, sample_rate: float, band: float) -> None:
        self.size: int = max(16, 2 ** round(math.log2(WINDOW_SECONDS * sample_rate)))
        self.hop = self.size // 4
        phase = 2 * np.pi * np.arange(self.size) / self.size
        self._window = (0.5 - 0.5 * np.cos(phase)).astype(np.float32)
        frequencies = np.arange(self.size // 2 + 1) * sample_rate / self.size
        self._above = frequencies > band
        self._below = (frequencies <= band) & (frequencies > band / 2 ** (1 / 3))

    def frames(self, samples: Floats) -> Floats:
        """Overlapping frames [frames, size] of [samples], as far as they are whole."""
        return np.lib.stride_tricks.sliding_window_view(samples, self.size)[:: self.hop]

    def mask(self, reference: Floats, target: Floats) -> Floats:
        """Frames of both -> mask [frames, bins]."""
        mask = _magnitude_mask(np.fft.rfft(reference * self._window), np.fft.rfft(target * self._window))
        if self._above.any() and self._below.any():
            mask[:, self._above] = mask[:, self._below].mean(axis=1, keepdims=True)
        return mask

    def add(self, summed: Floats, mixture: Floats, mask: Floats) -> None:
        """Adds masked frames, 3/2 too loud, into [frames + 3, hop] in place."""
        spectrum = np.fft.rfft(mixture * self._window)
        pieces = np.fft.irfft(spectrum * mask, self.size).astype(np.float32) * self._window
        for quarter in range(4):
            span = slice(quarter * self.hop, (quarter + 1) * self.hop)
            summed[quarter : quarter + len(pieces)] += pieces[:, span]


def masked_mixture(
    mixture: Floats, target: Floats, sample_rate: float, band: float, reference: Floats | None = None
) -> Floats:
    """Filters a mixture by the magnitude of a target: `min(1, |target| / |reference|)` on a Hann STFT, 75 %
    overlap.

    Args:
        mixture: [samples], mono, any level.
        target: [samples], the generated target at the same rate, alignment and level.
        sample_rate: Of both, in Hz.
        band: Highest frequency in Hz that the target describes; above it the mask goes on from the octave
            third below.
        reference: What the target was generated from, if that is not the mixture itself.

    Returns:
        The masked target [samples].
    """
    stream = MaskStream(sample_rate, band, 1)
    known = stream.push(mixture[:, None], mixture if reference is None else reference, target)
    return np.concatenate([known, stream.finish()])[:, 0]


class MaskStream:
    """`masked_mixture` for signals that come in blocks: any number of channels of a mixture through one mask.

    A sample is known when the four frames that it lies in are: three quarters of a window later.
    """

    def __init__(self, sample_rate: float, band: float, channels: int) -> None:
        self._filter = _Filter(sample_rate, band)
        before = self._filter.size - self._filter.hop
        #: Mixture, then reference and target: [samples, channels + 2].
        self._waiting = np.zeros((before, channels + 2), np.float32)
        self._summed = np.zeros((channels, 3, self._filter.hop), np.float32)
        self._useless = before  # samples to come that belong to the zeros before the first
        self._taken = self._given = 0

    def push(self, mixture: Floats, reference: Floats, target: Floats) -> Floats:
        """The next samples, [n, channels] and twice [n] -> those of the masked mixture that are known."""
        self._taken += len(mixture)
        block = np.concatenate([mixture, reference[:, None], target[:, None]], axis=1)
        self._waiting = np.concatenate([self._waiting, block])
        known = []
        while len(self._waiting) >= self._filter.size:
            known.append(self._masked())
        return self._counted(np.concatenate(known)) if known else np.zeros((0, mixture.shape[1]), np.float32)

    def finish(self) -> Floats:
        """The rest."""
        channels = len(self._summed)
        left = self._taken - self._given
        rest = [np.zeros((0, channels), np.float32)]
        # Zeros until the last sample lies in four frames too.
        zeros = np.zeros((self._filter.size, channels + 2), np.float32)
        self._waiting = np.concatenate([self._waiting, zeros])
        while len(self._waiting) >= self._filter.size:
            rest.append(self._masked())
        return self._counted(np.concatenate(rest))[:left]

    def _masked(self) -> Floats:
        """All frames that are whole by now, or as many as may be in memory."""
        hop = self._filter.hop
        frames = min(BLOCK_FRAMES, max(1, BLOCK_SAMPLES // self._filter.size))
        block = self._waiting[: (frames + 3) * hop]
        # A power of two leaves every digit as it is; without it, the squares of some levels are no numbers.
        scale = np.float32(2.0 ** np.ceil(np.log2(max(float(np.abs(block).max()), 1e-38))))
        *mixture, reference, target = (self._filter.frames(column) for column in (block / scale).T)
        mask = self._filter.mask(reference, target)
        masked = np.zeros((len(mixture), len(mask) * hop), np.float32)
        for channel, pieces in enumerate(mixture):
            summed = np.zeros((len(mask) + 3, hop), np.float32)
            self._filter.add(summed, pieces, mask)
            summed *= scale / np.float32(1.5)
            summed[:3] += self._summed[channel]
            self._summed[channel] = summed[-3:]
            masked[channel] = summed[:-3].reshape(-1)
        self._waiting = self._waiting[len(mask) * hop :]
        return masked.T

    def _counted(self, samples: Floats) -> Floats:
        skipped = min(self._useless, len(samples))
        self._useless -= skipped
        self._given += len(samples) - skipped
        return samples[skipped:]


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
