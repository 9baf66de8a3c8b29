"""The mixture's own samples through masks in mel bands, at the mixture's rate.

A vocoder invents its phase, so subtracting its waveform from the mixture only adds noise. A model's
spectrogram says how loud a sound is in each band at each moment; the share of the mixture that this explains
is the masked target, and the residual is the rest: both add up to the mixture, sample by sample.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flowsep_runtime.arrays import Floats
from flowsep_runtime.bundle.manifest import ModelEntry

WINDOW_SECONDS = 0.064
BLOCK_FRAMES = 1024  # spectra in memory at a time
BLOCK_SAMPLES = 1 << 22  # samples in them: a window at a high rate is long


def band_weights(frequencies: Floats, bands: int, highest: float) -> Floats:
    """The share of each mel band in the mask of each frequency, [frequencies, bands], rows adding up to 1.

    They are the bands' own triangles (docs/model.md#front-end), transposed; a frequency below the first
    triangle belongs to the first band, one above the last to the last.

    Args:
        frequencies: In Hz.
        bands: Number of mel bands.
        highest: Upper edge of the last band, in Hz.
    """
    top = 15 + 27 * math.log(highest / 1000) / math.log(6.4) if highest > 1000 else highest * 3 / 200
    mels = np.linspace(0, top, bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    hertz = np.asarray(frequencies, np.float64)[:, None]
    triangles = np.minimum((hertz - lower) / (centre - lower), (upper - hertz) / (upper - centre))
    weights = np.maximum(triangles, 0) * 2 / (upper - lower)
    weights[frequencies < centre[0], 0] = 1
    weights[frequencies > centre[-1], -1] = 1
    result: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


class MaskFilter:
    """Filters a mixture that comes in blocks, on a Hann STFT with 75 % overlap.

    A sample is known when the four frames that it lies in are, and their masks: three quarters of a window
    later.
    """

    def __init__(
        self, sample_rate: float, model: ModelEntry, channels: int, masked: int, sounds: int
    ) -> None:
        """
        Args:
            sample_rate: The mixture's, in Hz.
            model: Sizes and rate of the masks.
            channels: The mixture's.
            masked: Channels that have a mask of their own: all, or one for all.
            sounds: Masks a channel.
        """
        self._size: int = max(16, 2 ** round(math.log2(WINDOW_SECONDS * sample_rate)))
        self._hop = self._size // 4
        phase = 2 * np.pi * np.arange(self._size) / self._size
        self._window = (0.5 - 0.5 * np.cos(phase)).astype(np.float32)
        self._weights = self._bin_weights(sample_rate, model)
        self._mel_rate = model.sample_rate / model.hop_length / sample_rate  # mel frames a sample
        self._own_mask = np.arange(channels) if masked == channels else np.zeros(channels, int)
        before = self._size - self._hop  # zeros, so that the first sample lies in four frames too
        self._samples = np.zeros((before, channels), np.float32)
        self._first = -before  # the first of these samples, counted in the mixture
        self._masks = np.zeros((0, masked, sounds, model.mel_bins), np.float32)
        self._first_mask = 0
        self._summed = np.zeros((channels, sounds, 3, self._hop), np.float32)
        self._taken = 0

    def _bin_weights(self, sample_rate: float, model: ModelEntry) -> Floats:
        frequencies = (np.arange(self._size // 2 + 1) * sample_rate / self._size).astype(np.float32)
        highest = model.sample_rate / 2
        weights = band_weights(frequencies, model.mel_bins, highest)
        # The resampler rolls off below half the model's rate: above, masks go on as in the third of an octave
        # below.
        band = highest * (0.9 if sample_rate > model.sample_rate else 1.0)
        above = frequencies > band
        below = (frequencies <= band) & (frequencies > band / 2 ** (1 / 3))
        if above.any() and below.any():
            weights[above] = weights[below].mean(axis=0)
        return weights

    def push(self, mixture: Floats, masks: Floats) -> Floats:
        """Filter what can be filtered.

        Args:
            mixture: The next samples [n, channels].
            masks: The next masks [m, masked, sounds, 64], of frames of the model's rate.

        Returns:
            Filtered samples [k, channels, sounds] that are known by now.
        """
        self._taken += len(mixture)
        self._samples = np.concatenate([self._samples, mixture])
        self._masks = np.concatenate([self._masks, masks])
        return self._filtered(is_last=False)

    def finish(self) -> Floats:
        """The rest; masks that are missing are as the last one."""
        # Zeros until the last sample lies in four frames too.
        zeros = np.zeros((self._size, self._samples.shape[1]), np.float32)
        self._samples = np.concatenate([self._samples, zeros])
        return self._filtered(is_last=True)

    def _filtered(self, is_last: bool) -> Floats:
        pieces = [np.zeros((0, *self._summed.shape[:2]), np.float32)]
        while frames := self._ready(is_last):
            first = self._first
            known = self._filter(frames)
            pieces.append(known[max(0, -first) : max(0, self._taken - first)])
        return np.concatenate(pieces)

    def _ready(self, is_last: bool) -> int:
        """The number of frames whose samples and masks are known, or as many as may be in memory."""
        most = max(1, min(BLOCK_FRAMES, BLOCK_SAMPLES // self._size))
        frames: int = max(0, min(most, (len(self._samples) - self._size) // self._hop + 1))
        if is_last:
            return frames
        return int(np.count_nonzero(self._positions(frames) < len(self._masks) - 1))

    def _positions(self, frames: int) -> NDArray[np.float64]:
        """The middles of the next frames [frames], counted in the masks that are known."""
        middles: NDArray[np.float64] = self._first + self._size / 2 + self._hop * np.arange(frames)
        return middles * self._mel_rate - self._first_mask

    def _filter(self, frames: int) -> Floats:
        """Filter the next frames: samples [frames * hop, channels, sounds]."""
        last = len(self._masks) - 1
        positions = np.clip(self._positions(frames), 0, last)
        before = positions.astype(int)
        share = (positions - before).astype(np.float32)[:, None, None, None]
        after = np.minimum(before + 1, last)
        masks = ((1 - share) * self._masks[before] + share * self._masks[after]) @ self._weights.T
        channels, sounds = self._summed.shape[:2]
        windows = np.lib.stride_tricks.sliding_window_view(self._samples, self._size, axis=0)
        filtered = np.empty((frames * self._hop, channels, sounds), np.float32)
        for channel in range(channels):
            spectrum = np.fft.rfft(windows[: frames * self._hop : self._hop, channel] * self._window)
            for sound in range(sounds):
                mask = masks[:, self._own_mask[channel], sound]
                pieces = np.fft.irfft(spectrum * mask, self._size).astype(np.float32) * self._window
                summed = np.zeros((frames + 3, self._hop), np.float32)
                summed[:3] = self._summed[channel, sound]
                for quarter in range(4):
                    span = slice(quarter * self._hop, (quarter + 1) * self._hop)
                    summed[quarter : quarter + frames] += pieces[:, span]
                self._summed[channel, sound] = summed[frames:]
                filtered[:, channel, sound] = summed[:frames].reshape(-1)
        self._samples = self._samples[frames * self._hop :].copy()
        self._first += frames * self._hop
        useless = min(last, max(0, int(self._positions(1)[0])))
        self._masks, self._first_mask = self._masks[useless:].copy(), self._first_mask + useless
        # Squared periodic Hann windows at 75 % overlap add up to 3/2.
        return filtered * np.float32(2 / 3)
