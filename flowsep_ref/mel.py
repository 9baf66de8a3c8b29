"""Audio front end: waveform to log-mel spectrogram (docs/model.md#front-end)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from flowsep_ref.config import AudioConfig


class FrontEnd(nn.Module):
    """Magnitude STFT and Slaney mel bands, written as convolution and matrix product.

    A discrete Fourier transform of windowed frames is a strided convolution with the windowed
    cosines and sines, an operation that every inference engine has; not every one has an STFT.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.hop_length = config.hop_length
        self.padding = config.filter_length // 2
        basis = fourier_basis(config.filter_length, config.win_length)
        mel = mel_filters(
            config.sampling_rate,
            config.filter_length,
            config.n_mel_channels,
            config.mel_fmin,
            config.mel_fmax,
        )
        # from_numpy, so that they are real numbers also where a model is built on the meta device
        self.basis: Tensor
        self.mel: Tensor
        self.register_buffer("basis", torch.from_numpy(basis.astype(np.float32)), persistent=False)
        self.register_buffer("mel", torch.from_numpy(mel.astype(np.float32)), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """`waveform [B, S]` (16 kHz, normalised) to natural-log mel `[B, S // 160, 64]`, float32."""
        frames = waveform.shape[-1] // self.hop_length
        x = F.pad(waveform.float()[:, None], (self.padding, self.padding), mode="reflect")
        spectrum = F.conv1d(x, self.basis, stride=self.hop_length)[:, :, :frames]
        real, imaginary = spectrum.chunk(2, dim=1)
        magnitude = torch.sqrt(real.square() + imaginary.square())
        mel = self.mel @ magnitude
        return mel.clamp(min=1e-5).log().transpose(1, 2)


def fourier_basis(n_fft: int, win_length: int) -> NDArray[np.float64]:
    """Periodic-Hann-windowed cosines, then sines: `[2·(n_fft/2 + 1), 1, n_fft]`."""
    n = np.arange(n_fft)
    window = np.zeros(n_fft)
    start = (n_fft - win_length) // 2
    window[start : start + win_length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    # reduce k·n modulo n_fft before the cosine: exact in integers, where the product of floats is not
    phase = 2 * np.pi * ((np.arange(n_fft // 2 + 1)[:, None] * n) % n_fft) / n_fft
    return np.concatenate([np.cos(phase) * window, -np.sin(phase) * window])[:, None, :]


def mel_filters(sampling_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> NDArray[np.float64]:
    """Triangular filters on the Slaney mel scale, each of unit area in Hz: `[n_mels, n_fft/2 + 1]`."""
    edges = mel_to_hz(np.linspace(hz_to_mel(np.array(fmin)), hz_to_mel(np.array(fmax)), n_mels + 2))
    bins = np.linspace(0, sampling_rate / 2, n_fft // 2 + 1)
    lower, centre, upper = (edges[i : i + n_mels, None] for i in range(3))
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (upper - lower))


# Slaney's scale: linear with 200/3 Hz a mel up to 1 kHz, then 27 mels to a factor of 6.4
_HZ_PER_MEL = 200.0 / 3.0
_KNEE_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27.0


def hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frequency in Hz on the Slaney mel scale."""
    high = _KNEE_HZ / _HZ_PER_MEL + np.log(np.maximum(hz, 1e-10) / _KNEE_HZ) / _LOG_STEP
    return np.where(hz < _KNEE_HZ, hz / _HZ_PER_MEL, high)


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `hz_to_mel`."""
    high = _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_HZ / _HZ_PER_MEL))
    return np.where(mel < _KNEE_HZ / _HZ_PER_MEL, mel * _HZ_PER_MEL, high)


def normalise(waveform: Tensor) -> Tensor:
    """The published normalisation of an unpadded clip `[B, S]`: zero mean, peak of one half."""
    x = waveform - waveform.mean(dim=-1, keepdim=True)
    return x / (x.abs().amax(dim=-1, keepdim=True) + 1e-8) * 0.5
