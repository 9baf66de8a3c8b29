"""Training of the autoencoder: reconstruction and a little Kullback-Leibler divergence."""

from __future__ import annotations

import math

import lightning
import torch
from torch import Tensor

from flowsep_ref.config import FlowSepConfig
from flowsep_ref.mel import FrontEnd
from flowsep_ref.vae import VAE

KL_WEIGHT = 3e-3


class VAETraining(lightning.LightningModule):
    """L1 and half of L2 on log-mel frames, plus `KL_WEIGHT` times the mean KL of a latent number."""

    def __init__(self, config: FlowSepConfig, steps: int, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.front_end = FrontEnd(config.audio)
        self.vae = VAE(config.vae)
        self.frames = 128
        self.steps = steps
        self.learning_rate = learning_rate
        # spectrograms of silence and sound lie around -7: starting there saves the first epochs
        torch.nn.init.constant_(self.vae.decoder.conv_out.bias, -7.0)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Tensor, Tensor, list[str]], _: int) -> Tensor:
        """A batch of `(mixture, target, caption)`, of which both waveforms `[B, S]` are examples."""
        log_mel = self.front_end(random_crops(torch.cat(batch[:2]), self.frames * 160))
        mean, logvar = self.vae.encode(log_mel)
        mean, logvar = mean.float(), logvar.float()
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        error = self.vae.decode(z).float() - log_mel
        reconstruction = error.abs().mean() + 0.5 * error.square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        self.log("L1", error.abs().mean(), prog_bar=True)
        self.log("KL", kl, prog_bar=True)
        return reconstruction + KL_WEIGHT * kl

    def configure_optimizers(self) -> lightning.pytorch.utilities.types.OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.vae.parameters(), self.learning_rate, betas=(0.9, 0.98))
        return scheduled(optimizer, self.steps)


def scheduled(
    optimizer: torch.optim.Optimizer, steps: int
) -> lightning.pytorch.utilities.types.OptimizerLRSchedulerConfig:
    """A short linear warm-up, then a cosine to a twentieth of the rate, over `steps` in all.

    A function of the step alone, so that a training resumed with other `steps` follows the new curve.
    """
    warm_up = min(200, steps // 10 + 1)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        progress = min(1.0, (step - warm_up) / max(steps - warm_up, 1))
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def random_crops(x: Tensor, samples: int) -> Tensor:
    """The same random piece of every row of `[B, S]`: `[B, samples]`, or all if there are no more."""
    samples = min(samples, x.shape[-1])
    start = int(torch.randint(x.shape[-1] - samples + 1, ()))
    return x[:, start : start + samples]
