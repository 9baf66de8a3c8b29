"""Training of the autoencoder: reconstruction and a little Kullback-Leibler divergence."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor

from flowsep_ref.config import FlowSepConfig
from flowsep_ref.mel import FrontEnd
from flowsep_ref.vae import VAE
from flowsep_train.schedule import cosine

KL_WEIGHT = 3e-3


class VAETraining(lightning.LightningModule):
    """L1 and half of L2 on log-mel frames, plus `KL_WEIGHT` times the mean KL of a latent number.

    Args:
        config: sizes.
        vae: to be trained.
        steps: in all.
        learning_rate: at its highest.
    """

    def __init__(self, config: FlowSepConfig, vae: VAE, steps: int, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.front_end = FrontEnd(config.audio)
        self.vae = vae
        self.steps = steps
        self.learning_rate = learning_rate

    def training_step(self, x: Tensor, _: int) -> Tensor:
        """A batch of waveforms `[B, S]`, S a multiple of the latent's stride in samples."""
        log_mel = self.front_end(x)
        mean, logvar = self.vae.encode(log_mel)
        mean, logvar = mean.float(), logvar.float()
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        error = self.vae.decode(z).float() - log_mel
        reconstruction = error.abs().mean() + 0.5 * error.square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        self.log("L1", error.abs().mean(), prog_bar=True)
        self.log("KL", kl, prog_bar=True)
        return reconstruction + KL_WEIGHT * kl

    def pictures(self, x: Tensor) -> dict[str, Tensor]:
        """Two pieces, each above what the autoencoder makes of it."""
        log_mel = self.front_end(x[:2])
        decoded = self.vae.decode(self.vae.encode(log_mel)[0])
        return {"piece and reconstruction": torch.stack([log_mel, decoded], dim=1).flatten(0, 1)}

    def configure_optimizers(self) -> lightning.pytorch.utilities.types.OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.vae.parameters(), self.learning_rate, betas=(0.9, 0.98))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": cosine(optimizer, self.steps), "interval": "step"},
        }
