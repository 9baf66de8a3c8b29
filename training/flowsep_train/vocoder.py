"""Training of the vocoder: mel and multi-resolution spectral losses, then discriminators too."""

from __future__ import annotations

from typing import cast

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from flowsep_ref.config import AudioConfig, FlowSepConfig
from flowsep_ref.mel import FrontEnd
from flowsep_ref.vocoder import Vocoder
from flowsep_train.discriminators import Discriminators, discriminator_loss, generator_loss
from flowsep_train.schedule import cosine

#: Floor of mel bands (-80 dB, inaudible): without it, gaps between sounds dominate the loss.
FLOOR = -9.2

#: Against an adversarial weight of 1; HiFi-GAN's 45 for the mel loss, shared with the spectral one.
MEL_WEIGHT, SPECTRAL_WEIGHT, FEATURE_WEIGHT = 15.0, 7.5, 2.0


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
    """Real log-mel in, waveform out.

    Args:
        config: sizes.
        vocoder: to be trained.
        steps: in all.
        adversarial_from: step from which the discriminators train and are listened to; before it a
            step costs half as much.
        width: of the discriminators.
        learning_rate: at its highest.
    """

    def __init__(
        self,
        config: FlowSepConfig,
        vocoder: Vocoder,
        steps: int,
        adversarial_from: int = 0,
        width: int = 32,
        learning_rate: float = 5e-4,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.vocoder = vocoder
        self.discriminators = Discriminators(width)
        self.loss = SpectralLoss(config.audio)
        self.steps = steps
        self.adversarial_from = adversarial_from
        self.learning_rate = learning_rate
        # Lightning counts every optimiser's steps in its global_step; this counts batches
        self.batches: Tensor
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def training_step(self, x: Tensor, _: int) -> None:
        """A batch of waveforms `[B, S]`, S a multiple of the hop."""
        vocoder_optimizer, discriminator_optimizer = cast(list[LightningOptimizer], self.optimizers())
        y = self.vocoder(self.loss.front_end(x))[:, : x.shape[-1]]
        mel, spectral = self.loss(y, x)
        total = MEL_WEIGHT * mel + SPECTRAL_WEIGHT * spectral
        if int(self.batches) >= self.adversarial_from:
            judged = discriminator_loss(self.discriminators(x), self.discriminators(y.detach()))
            discriminator_optimizer.zero_grad()
            self.manual_backward(judged)
            self.clip_gradients(discriminator_optimizer.optimizer, 10.0, "norm")
            discriminator_optimizer.step()
            self.discriminators.requires_grad_(False)
            with torch.no_grad():
                real = self.discriminators(x)
            adversarial, features = generator_loss(real, self.discriminators(y))
            self.discriminators.requires_grad_(True)
            total = total + adversarial + FEATURE_WEIGHT * features
            self.log_dict({"discriminator": judged, "adversarial": adversarial, "features": features})
        vocoder_optimizer.zero_grad()
        self.manual_backward(total)
        self.clip_gradients(vocoder_optimizer.optimizer, 50.0, "norm")
        vocoder_optimizer.step()
        self.batches += 1
        for schedule in cast(list[torch.optim.lr_scheduler.LambdaLR], self.lr_schedulers()):
            schedule.step()
        self.log_dict({"mel": mel, "spectral": spectral}, prog_bar=True)

    def pictures(self, x: Tensor) -> dict[str, Tensor]:
        """Two pieces, each above what the vocoder makes of it."""
        log_mel = self.loss.front_end(x[:2])
        made = self.loss.front_end(self.vocoder(log_mel)[:, : x.shape[-1]])
        return {"piece and vocoder": torch.stack([log_mel, made], dim=1).flatten(0, 1)}

    def configure_optimizers(
        self,
    ) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LambdaLR]]:
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(part.parameters(), self.learning_rate, betas=(0.8, 0.99))
            for part in (self.vocoder, self.discriminators)
        ]
        return optimizers, [cosine(optimizer, self.steps) for optimizer in optimizers]
