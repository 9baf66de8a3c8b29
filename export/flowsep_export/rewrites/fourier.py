"""The front end with a discrete Fourier transform that is folded three times: a third of the operations.

The transform of a frame's N samples, at even k and at odd k, is one of N/2 samples each:

    X[k] = Σ_j (x[j] + x[j + N/2]) · e^(-2πi·jk/N),  k even,    j = 0 … N/2 - 1
    X[k] = Σ_j (x[j] - x[j + N/2]) · e^(-2πi·jk/N),  k odd

and so again for the even ones.
"""

from __future__ import annotations

from math import gcd

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from flowsep_ref.mel import FrontEnd

#: A fourth time would save little: products of so few samples are slower.
FOLDS = 3


class FoldedFrontEnd(nn.Module):
    """`flowsep_ref.mel.FrontEnd`, for waveforms of whole hops; its filter's length is a multiple of 8."""

    def __init__(self, front_end: FrontEnd) -> None:
        super().__init__()
        length = front_end.basis.shape[-1]
        self.hop_length, self.padding, self.length = front_end.hop_length, front_end.padding, length
        self.window: Tensor
        self.register_buffer("window", front_end.basis[0, 0].clone())  # the cosine at k = 0 is 1
        frequencies, samples = np.arange(length // 2 + 1), length
        for fold in range(FOLDS):
            samples //= 2
            self._add_part(front_end, fold, frequencies[1::2], samples)
            frequencies = frequencies[::2]
        self._add_part(front_end, FOLDS, frequencies, samples)

    def _add_part(self, front_end: FrontEnd, part: int, frequencies: NDArray[np.int64], samples: int) -> None:
        """The tables of some frequencies: cosines and sines [samples, K], and their share of mel [K, 64]."""
        # k·j is reduced in integers before the cosine, as in the reference
        phase = 2 * np.pi * (np.outer(np.arange(samples), frequencies) % self.length) / self.length
        for name, table in (("cosines", np.cos(phase)), ("sines", np.sin(phase))):
            self.register_buffer(f"{name}_{part}", torch.from_numpy(table.astype(np.float32)))
        self.register_buffer(f"mel_{part}", front_end.mel[:, frequencies].T.contiguous())

    def forward(self, waveform: Tensor) -> Tensor:
        """`waveform [B, S]` to log-mel `[B, S // 160, 64]`."""
        x = F.pad(waveform.float()[:, None], (self.padding, self.padding), mode="reflect").squeeze(1)
        frames = self._frames(x, waveform.shape[-1] // self.hop_length) * self.window
        low, high = frames.chunk(2, dim=-1)
        mel = self._mel(low - high, 0)
        for part in range(1, FOLDS):
            low, high = (low + high).chunk(2, dim=-1)
            mel = mel + self._mel(low - high, part)
        mel = mel + self._mel(low + high, FOLDS)
        return mel.clamp(min=1e-5).log()

    def _frames(self, x: Tensor, count: int) -> Tensor:
        """`[B, count, N]`: rows of blocks that hops and frames have in common are quicker to gather than
        samples."""
        block = gcd(self.hop_length, self.length)
        starts = torch.arange(count) * (self.hop_length // block)
        index = starts[:, None] + torch.arange(self.length // block)
        blocks = x.reshape(x.shape[0], -1, block)
        return blocks.index_select(1, index.flatten()).reshape(x.shape[0], count, self.length)

    def _mel(self, samples: Tensor, part: int) -> Tensor:
        cosines, sines, mel = (self.get_buffer(f"{name}_{part}") for name in ("cosines", "sines", "mel"))
        real, imaginary = samples @ cosines, samples @ sines
        return torch.sqrt(real.square() + imaginary.square()) @ mel
