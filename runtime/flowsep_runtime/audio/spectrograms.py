"""The spectrogram of a recording of any length, from its blocks, in the memory of a picture."""

from __future__ import annotations

import math

import numpy as np

from flowsep_runtime.arrays import Floats

WINDOW_SECONDS = 0.064
COLUMNS = 1200  # at most; a picture has hardly more pixels
BANDS = 192
#: Up to this length windows overlap by seven eighths, so that a bark has a shape; beyond, by half.
FINE_SECONDS = 60.0


def mel(frequency: float) -> float:
    """Hz on the mel scale."""
    return 2595.0 * math.log10(1.0 + frequency / 700.0)


def hertz(value: float) -> float:
    """The inverse of `mel`."""
    return 700.0 * (math.pow(10.0, value / 2595.0) - 1.0)


class Spectrogram:
    """Power over time and mel frequency, the loudest of what falls into a pixel: a click stays visible in a
    picture of an hour."""

    def __init__(self, sample_rate: int, frames: int) -> None:
        """A spectrogram of exactly `frames` samples at `sample_rate` Hz."""
        self.sample_rate = sample_rate
        self.frames = frames
        self._size = 1 << max(6, round(math.log2(WINDOW_SECONDS * sample_rate)))
        self._hop = self._size // (8 if frames <= FINE_SECONDS * sample_rate else 2)
        spectra = frames // self._hop + 1
        self._pooled = math.ceil(spectra / COLUMNS)  # spectra a column
        self._window = np.hanning(self._size + 1)[:-1].astype(np.float32)
        top = mel(sample_rate / 2)
        edges = [hertz(top * band / BANDS) for band in range(BANDS)]
        bins = self._size // 2
        self._first_bins = np.array([min(bins, round(edge / sample_rate * self._size)) for edge in edges])
        self._power = np.zeros((math.ceil(spectra / self._pooled), BANDS), np.float32)
        # The first window is centred on the first sample.
        self._waiting: Floats | None = None
        self._done = 0

    @property
    def decibels(self) -> Floats:
        """Power [columns, bands] in dB of a full-scale sine, silence at -200; after `finish`."""
        full_scale = (self._window.sum() / 2) ** 2
        result: Floats = 10 * np.log10(np.maximum(self._power / np.float32(full_scale), np.float32(1e-20)))
        return result

    @property
    def seconds(self) -> float:
        """Seconds from the left edge of the first column to the right edge of the last."""
        return self._power.shape[0] * self._pooled * self._hop / self.sample_rate

    def add(self, block: Floats) -> None:
        """The next samples [n, channels]."""
        if self._waiting is None:
            self._waiting = np.zeros((self._size // 2, block.shape[1]), np.float32)
        samples = np.concatenate([self._waiting, block])
        count = max(0, (len(samples) - self._size) // self._hop + 1)
        # A few hundred spectra at a time, however long the block and however many the channels.
        most = max(1, 512 // block.shape[1])
        for first in range(0, count, most):
            self._transform(samples[first * self._hop :], min(most, count - first))
        self._waiting = samples[count * self._hop :]

    def finish(self) -> None:
        """Completes the last column."""
        if self._waiting is not None:
            self.add(np.zeros((self._size // 2, self._waiting.shape[1]), np.float32))

    def _transform(self, samples: Floats, count: int) -> None:
        count = min(count, self.frames // self._hop + 1 - self._done)
        if count <= 0:
            return
        windows = np.lib.stride_tricks.sliding_window_view(samples, self._size, axis=0)
        spectra = np.fft.rfft(windows[: (count - 1) * self._hop + 1 : self._hop] * self._window)
        power = (np.abs(spectra) ** 2).mean(axis=1).astype(np.float32)
        bands = np.maximum.reduceat(power, self._first_bins, axis=1)
        columns = (self._done + np.arange(count)) // self._pooled
        np.maximum.at(self._power, columns, bands)
        self._done += count
