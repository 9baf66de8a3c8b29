"""Mel spectrograms for the scores: the bands of docs/model.md#front-end, in numpy.

They are implemented again so that scores need no PyTorch and are the same for every model; a test compares
them with the model's front end.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SAMPLE_RATE = 16000
N_FFT = 1024
HOP = 160
N_MELS = 64


def mel_magnitudes(waveform: Floats) -> Floats:
    """Mel-band magnitudes of a waveform.

    Args:
        waveform: `[S]` at 16 kHz, of any level and length.

    Returns:
        `[max(1, S // 160), 64]`, in proportion to the waveform: magnitudes of a 1024-point STFT with a
        periodic Hann window and reflected ends, through 64 Slaney triangles of unit area up to 8 kHz.
    """
    padded = np.pad(waveform.astype(np.float32), N_FFT // 2, mode="reflect")
    frames = sliding_window_view(padded, N_FFT)[::HOP][: max(1, len(waveform) // HOP)]
    bands: Floats = np.abs(np.fft.rfft(frames * _window(), axis=1)).astype(np.float32) @ _filters()
    return bands


@cache
def _window() -> Floats:
    window: Floats = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
    return window


@cache
def _filters() -> Floats:
    """Triangles of height 2 / (their width in Hz): `[513, 64]`."""
    mels = np.linspace(0.0, 15.0 + 27.0 * np.log(8.0) / np.log(6.4), N_MELS + 2)  # of 0 Hz … 8 kHz
    # Slaney's scale: 200/3 Hz a mel up to 1 kHz (15 mels), then 27 mels to a factor of 6.4
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * 6.4 ** ((mels - 15.0) / 27.0))
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    hertz = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)[:, None]
    triangles = np.minimum((hertz - lower) / (centre - lower), (upper - hertz) / (upper - centre))
    filters: Floats = (np.maximum(triangles, 0.0) * 2.0 / (upper - lower)).astype(np.float32)
    return filters
