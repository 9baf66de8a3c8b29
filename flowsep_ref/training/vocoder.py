"""Training of the vocoder on mel and multi-resolution spectral losses."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor

from flowsep_ref.config import AudioConfig, FlowSepConfig
from flowsep_ref.mel import FrontEnd
from flowsep_ref.training.vae import random_crops, scheduled
from flowsep_ref.vocoder import Vocoder

FLOOR = -9.2
"""Mel bands below this (-80 dB) are inaudible: without it the gaps between sounds are all of the loss."""


class SpectralLoss(torch.nn.Module):
    """Log-mel L1 at the model's resolution, and log-magnitude and magnitude L1 at three more."""

    def __init__(self, audio: AudioConfig) -> None:
        super().__init__()
        self.front_end = FrontEnd(audio)
        self.sizes = (256, 512, 2048)
        for size in self.sizes:
            self.register_buffer(f"window{size}", torch.hann_window(size), persistent=False)

    def forward(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Generated `y [B, S]` against real `x [B, S]`: mel loss and spectral loss."""
        mel = (self.front_end(y).clamp(min=FLOOR) - self.front_end(x).clamp(min=FLOOR)).abs().mean()
        spectral = mel.new_zeros(())
        for size in self.sizes:
            a, b = (self.magnitude(w, size) for w in (y, x))
            log_error = (a.clamp(min=1e-3).log() - b.clamp(min=1e-3).log()).abs().mean()
            spectral = spectral + log_error + torch.linalg.norm(a - b) / (torch.linalg.norm(b) + 1e-2)
        return mel, spectral / len(self.sizes)

    def magnitude(self, x: Tensor, size: int) -> Tensor:
        """`[B, S]` to `[B, size/2 + 1, frames]`."""
        window = getattr(self, f"window{size}")
        spectrum = torch.stft(x, size, size // 4, window=window, return_complex=True)
        return torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)


class VocoderTraining(lightning.LightningModule):
    """Real log-mel in, waveform out; pieces of a third of a second."""

    def __init__(self, config: FlowSepConfig, steps: int, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.vocoder = Vocoder(config.vocoder)
        self.loss = SpectralLoss(config.audio)
        self.frames = 32
        self.steps = steps
        self.learning_rate = learning_rate

    def training_step(self, batch: tuple[Tensor, Tensor, list[str]], _: int) -> Tensor:
        """A batch of `(mixture, target, caption)`, of which both waveforms `[B, S]` are examples."""
        x = random_crops(torch.cat(batch[:2]), self.frames * 160)
        log_mel = self.loss.front_end(x)
        y = self.vocoder(log_mel)[:, : x.shape[-1]]
        mel, spectral = self.loss(y, x)
        self.log("mel", mel, prog_bar=True)
        self.log("spectral", spectral, prog_bar=True)
        return 2.0 * mel + spectral

    def configure_optimizers(self) -> lightning.pytorch.utilities.types.OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.vocoder.parameters(), self.learning_rate, betas=(0.8, 0.98))
        return scheduled(optimizer, self.steps)
