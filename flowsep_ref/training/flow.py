"""Training of the velocity network and the text encoder on cached latents (SPEC §5)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from flowsep_ref.config import FlowSepConfig
from flowsep_ref.mel import FrontEnd
from flowsep_ref.text import TextEncoder
from flowsep_ref.training.collect import below, part
from flowsep_ref.training.mixtures import Captions
from flowsep_ref.training.text import learn_phrasings
from flowsep_ref.training.vae import scheduled
from flowsep_ref.unet import UNet
from flowsep_ref.vae import VAE

SIGMA_MIN = 1e-4
TEXT_DROPOUT = 0.1
EMA_DECAY = 0.999


class FlowTraining(lightning.LightningModule):
    """Rectified flow from noise to the target's latent, given the mixture's latent and the query.

    Encoding a clip costs about as much as a training step on it, so every clip's latent is kept in a
    buffer of `CLIPS` and used several times, each time with another noise, time and piece.
    """

    CLIPS = 512
    #: shapes of a step's batch, all of the same number of latent frames: (pieces, share of a clip)
    PIECES = ((8, 4), (4, 2), (2, 1))

    def __init__(
        self,
        config: FlowSepConfig,
        captions: Captions,
        tokenizer: Path,
        steps: int,
        work: Path,
        clips: int,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        self.config = config
        self.steps = steps
        self.clips = clips
        self.learning_rate = learning_rate
        self.front_end = FrontEnd(config.audio)
        self.vae = load_vae(config, work)
        self.unet = UNet(config.unet, config.latent_channels)
        self.text_encoder = TextEncoder(config.text)
        nn.init.normal_(self.text_encoder.shared.weight, std=1.0)
        # the last convolution starts at zero, as in every diffusion network: the first velocities are small
        nn.init.zeros_(self.unet.out[-1].weight)  # type: ignore[arg-type]
        self.ema = nn.ModuleDict(
            {"unet": copy.deepcopy(self.unet), "text_encoder": copy.deepcopy(self.text_encoder)}
        )
        self.ema.requires_grad_(False)
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.captions = captions
        self.scale_factor: Tensor
        self.register_buffer("scale_factor", torch.zeros(()))
        self.buffer: list[tuple[Tensor, Tensor, Tensor, str]] = []

    def on_train_start(self) -> None:
        # not in on_fit_start: a resumed training has not learnt its step there yet
        if self.global_step == 0:
            learn_phrasings(self.text_encoder, self.captions.trained, self.tokens)
            self.ema["text_encoder"].load_state_dict(self.text_encoder.state_dict())

    def tokens(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask `[B, 50]`; an empty caption gets a mask of all ones (SPEC §3)."""
        length = self.config.text.max_length
        ids, mask = torch.zeros(len(captions), length, dtype=torch.long), torch.zeros(len(captions), length)
        for row, caption in enumerate(captions):
            found = self.tokenizer.encode(caption).ids
            found = found[: length - 1] + found[-1:] if len(found) > length else found
            ids[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found) if caption else length] = 1
        return ids.to(self.device), mask.to(self.device)

    @torch.no_grad()
    def encode(self, mixture: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixture mean and deviation, and a sample of the target, each `[8, t, 16]`, unscaled."""
        mean, logvar = self.vae.encode(self.front_end(torch.cat([mixture, target])))
        std = torch.exp(0.5 * logvar.float())
        mean = mean.float()
        sample = mean[1] + std[1] * torch.randn_like(std[1])
        return mean[0].half(), std[0].half(), sample.half()

    def fill(self, batch: tuple[Tensor, Tensor, list[str]]) -> None:
        """Put a batch of clips into the buffer, in place of random older ones once it is full."""
        mixture, target, captions = batch
        for row, caption in enumerate(captions):
            item = (*self.encode(mixture[row : row + 1], target[row : row + 1]), caption)
            if len(self.buffer) < self.CLIPS:
                self.buffer.append(item)
            else:
                self.buffer[int(torch.randint(self.CLIPS, ()))] = item

    def start(self, batches: Iterable[tuple[Tensor, Tensor, list[str]]], clips: int = 48) -> None:
        """Fill the buffer with the first clips, and let their latents set the scale (SPEC §2)."""
        for batch in batches:
            self.fill(batch)
            if len(self.buffer) >= clips:
                break
        self.scale_factor.fill_(1.0 / torch.stack([item[2] for item in self.buffer]).float().std())

    def draw(self) -> tuple[Tensor, Tensor, list[str]]:
        """Pieces of random clips of the buffer: mixture and target latents `[B, 8, n, 16]`, captions."""
        progress = self.global_step / self.steps
        weights = torch.tensor([1.0 - progress, 0.5, 0.25 + progress])
        pieces, share = self.PIECES[int(torch.multinomial(weights, 1))]
        pieces = max(1, pieces * self.clips // 2)
        multiple = self.config.frame_multiple // self.config.latent_stride
        mixtures, targets, captions = [], [], []
        for _ in range(pieces):
            mean, std, target, caption = self.buffer[int(torch.randint(len(self.buffer), ()))]
            length = mean.shape[1] // share
            start = int(torch.randint((mean.shape[1] - length) // multiple + 1, ())) * multiple
            window = slice(start, start + length)
            mixtures.append(
                mean[:, window].float() + std[:, window].float() * torch.randn_like(std[:, window].float())
            )
            targets.append(target[:, window].float())
            captions.append("" if torch.rand(()) < TEXT_DROPOUT else caption)
        return self.scale_factor * torch.stack(mixtures), self.scale_factor * torch.stack(targets), captions

    def training_step(self, batch: tuple[Tensor, Tensor, list[str]], index: int) -> Tensor:
        """One new clip every other step; a loss from two clips' worth of pieces."""
        if index % 2 == 0:
            self.fill(batch)
        z_mixture, x_1, captions = self.draw()
        ids, mask = self.tokens(captions)
        noise = torch.randn_like(x_1)
        t = torch.rand(len(captions), device=self.device)
        u = t[:, None, None, None]
        x_t = (1 - (1 - SIGMA_MIN) * u) * noise + u * x_1
        velocity = self.unet(x_t, z_mixture, t, self.text_encoder(ids, mask), mask).float()
        loss = (velocity - (x_1 - (1 - SIGMA_MIN) * noise)).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        decay = min(EMA_DECAY, (1 + self.global_step) / (10 + self.global_step))
        live = [*self.unet.parameters(), *self.text_encoder.parameters()]
        for average, parameter in zip(self.ema.parameters(), live, strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    def configure_optimizers(self) -> lightning.pytorch.utilities.types.OptimizerLRSchedulerConfig:
        parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
        return scheduled(optimizer, self.steps)


def load_vae(config: FlowSepConfig, work: Path) -> VAE:
    """The trained autoencoder in a folder of trainings, frozen.

    Raises:
        ValueError: there is none.
    """
    vae = VAE(config.vae)
    vae.load_state_dict(below(part(work, "vae"), "vae."))
    return vae.requires_grad_(False).eval()
