"""Training of the velocity network on cached latents (docs/model.md#training)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from flowsep_ref.unet import UNet
from flowsep_ref.vae import VAE
from flowsep_train.latents import LatentCache, Piece
from flowsep_train.masks import DecoderImitation, mask_loss
from flowsep_train.schedule import cosine
from flowsep_train.text import QueryEncoder, complement

SIGMA_MIN = 1e-4
TEXT_DROPOUT = 0.1
EMA_DECAY = 0.999
#: Share of mixtures with queries for absent sounds: the target is silence, the rest is everything.
ABSENT = 0.35
#: Pieces are an eighth of a clip, a quarter, half of one, or whole.
SHARES = (8, 4, 2, 1)
#: Mean distance of a latent from silence from which on a sound counts as audible at a place.
AUDIBLE = 0.3


class FlowBatch(NamedTuple):
    """One step's examples: unscaled latents and noise `[B, 8, n, 16]`, times `[B]`, queries.

    Rows 2i and 2i + 1 ask one mixture for a sound and for everything else.

    Attributes:
        mixture: a sample of the mixture's posterior.
        target: the mean of what the query asks for.
        noise: where the flow starts; zero in the rows that learn the posterior mean.
        t: zero in those rows.
        captions: the queries.
        present: 0/1, which classes are heard where in the mixture, `[B, labels, n/m, 16/m]`; m: `multiple`.
    """

    mixture: Tensor
    target: Tensor
    noise: Tensor
    t: Tensor
    captions: list[str]
    present: Tensor

    @property
    def means(self) -> Tensor:
        """True for the rows that learn the posterior mean `[B]`."""
        return (self.noise == 0).all(dim=(1, 2, 3))


class FlowBatches:
    """Draws the batches; each piece of a mixture comes with a query for a sound and one for the rest.

    The two queries of one mixture differ in the text alone, so that their gradients teach the
    network to listen to it. The rest is asked for by a complement ("everything except a dog barking"),
    or, where it is one sound, by that sound's own caption.

    Args:
        cache: mixtures.
        phrasings: captions of all classes, by label.
        clips: whole clips' worth of pieces a batch.
        multiple: pieces start and end at multiples of this number of latent frames.
        steps: of the training: short pieces first, whole clips towards the end.
        skew: times are `u ** skew` of uniform `u`; 1 as published. More puts more of the steps near
            the noise, where it is decided which sound comes out.
        mean: share of the mixtures that learn the posterior mean: no noise, t = 0, where the velocity of
            least squared error is the mean of all targets that fit. One evaluation from zero gives it.
        complements: share of the rests that are asked for by a complement.
    """

    REFRESH = 50

    def __init__(
        self,
        cache: LatentCache,
        phrasings: Mapping[str, Sequence[str]],
        clips: int,
        multiple: int,
        steps: int,
        skew: float = 1.0,
        mean: float = 0.0,
        complements: float = 0.5,
    ) -> None:
        self.cache = cache
        self.phrasings = phrasings
        self.labels = sorted(phrasings)
        self.clips = clips
        self.multiple = multiple
        self.steps = steps
        self.skew = skew
        self.mean = mean
        self.complements = complements
        self.drawn = 0
        self.check_classes()

    def check_classes(self) -> None:
        """Compare the classes of the latents with those of the captions.

        Raises:
            ValueError: a class has no caption.
        """
        missing = sorted(label for label in self.cache.labels() if not self.phrasings.get(label))
        if missing:
            raise ValueError(
                f"the captions lack {len(missing)} of the classes in {self.cache.folder}, such as "
                f"{missing[0]!r}: give a caption for each"
            )

    def share(self, progress: float, rng: np.random.Generator) -> int:
        """Length of the batch's pieces, as a share of the clip."""
        late = max(0.0, progress - 0.5)
        weights = np.array([1.5 * (1 - progress), 1.0, 0.1 + late, 0.05 + 1.5 * late])
        return int(rng.choice(SHARES, p=weights / weights.sum()))

    def __call__(self, rng: np.random.Generator, number: int) -> FlowBatch:
        """Batch `number`, from its own generator."""
        self.drawn += 1
        if self.drawn % self.REFRESH == 0:
            self.cache.refresh()
            self.check_classes()
        share = self.share(min(1.0, number / self.steps), rng)
        rows: list[tuple[Tensor, Tensor, str, Tensor]] = []
        while len(rows) < max(2, self.clips * share):
            piece = self.cache.piece(share, self.multiple, rng)
            classes = self.classes(piece)
            for target, caption in self.asked(piece, rng):
                caption = "" if rng.random() < TEXT_DROPOUT * (1 - self.mean) else caption
                rows.append((piece.mixture, target, caption, classes))
        mixtures, targets, captions, present = zip(*rows, strict=True)
        x_1 = torch.stack(targets)
        # the two rows of a mixture are of one kind: their mask is learned together
        flows = torch.from_numpy(np.repeat(rng.random(len(rows) // 2) >= self.mean, 2).astype(np.float32))
        return FlowBatch(
            mixture=torch.stack(mixtures),
            target=x_1,
            noise=torch.from_numpy(rng.standard_normal(x_1.shape, np.float32)) * flows[:, None, None, None],
            t=torch.from_numpy((rng.random(len(rows)) ** self.skew).astype(np.float32)) * flows,
            captions=list(captions),
            present=torch.stack(present),
        )

    def asked(self, piece: Piece, rng: np.random.Generator) -> list[tuple[Tensor, str]]:
        """The two targets of a piece and the captions that ask for them."""
        label, *others = piece.labels
        target, rest = piece.target, piece.rest
        missing = [name for name in self.labels if name not in piece.labels]
        if missing and rng.random() < ABSENT:
            label, target, rest = missing[int(rng.integers(len(missing)))], self.silence(piece), piece.whole
        elif len(others) == 1:
            if rng.random() < 0.5:
                label, others, target, rest = others[0], [label], rest, target
            if rng.random() >= self.complements:
                return [(target, self.caption(label, rng)), (rest, self.caption(others[0], rng))]
        return [(target, self.caption(label, rng)), (rest, complement(self.caption(label, rng), rng))]

    def silence(self, piece: Piece) -> Tensor:
        """The latent of silence, as long as a piece."""
        return self.cache.silence[:, : piece.mixture.shape[1]]

    def caption(self, label: str, rng: np.random.Generator) -> str:
        """One of the class's phrasings."""
        phrasings = self.phrasings[label]
        return phrasings[int(rng.integers(len(phrasings)))]

    def classes(self, piece: Piece) -> Tensor:
        """0/1 by label and place in the middle of the network: what is heard where in a piece."""
        heard = []
        for target in (piece.target, piece.rest):
            apart = (target - self.silence(piece)).abs().mean(0, keepdim=True)
            heard.append((nn.functional.avg_pool2d(apart, self.multiple) > AUDIBLE)[0].float())
        found = torch.zeros(len(self.labels), *heard[0].shape)
        for number, label in enumerate(piece.labels):
            found[self.labels.index(label)] = heard[min(number, 1)]
        return found


class FlowTraining(lightning.LightningModule):
    """Rectified flow from noise to the target's latent, given the mixture's latent and the query.

    A small network learns slowly from the velocity's error alone what it hears.  With `labels` a
    linear layer on its middle, thrown away afterwards, has to name the classes at every place.

    Args:
        unet: to be trained.
        queries: text encoder, frozen.
        scale_factor: of the autoencoder's latents (docs/model.md#vae).
        steps: in all.
        learning_rate: at its highest.
        vae: the autoencoder, for pictures alone.
        labels: number of classes to be named; 0 for none, as published.
        naming: weight of that loss.
        masking: weight of `mask_loss` on the rows that learn the posterior mean.
        imitate: gives the imitation of the decoder that this loss needs; called by rank zero alone.
    """

    def __init__(
        self,
        unet: UNet,
        queries: QueryEncoder,
        scale_factor: float,
        steps: int,
        learning_rate: float = 1e-3,
        vae: VAE | None = None,
        labels: int = 0,
        naming: float = 0.1,
        masking: float = 0.0,
        imitate: Callable[[], DecoderImitation] | None = None,
    ) -> None:
        super().__init__()
        self.queries = queries
        # in lists, so that checkpoints do not carry them
        self.vaes = [vae] if vae is not None else []
        self.imitations: list[DecoderImitation] = []
        self.imitate = imitate
        self.masking = masking
        self.steps = steps
        self.learning_rate = learning_rate
        # oneDNN's convolutions want the channels last; so do the GPU's
        self.unet = unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.unet).requires_grad_(False)
        self.naming = naming
        self.namer: nn.Linear | None = None
        self.middle: list[Tensor] = []
        if labels:
            last = self.unet.middle_block[-1]
            self.namer = nn.Linear(last.out_layers[-1].out_channels, labels)
            last.register_forward_hook(lambda module, given, made: self.middle.append(made))
        self.scale_factor: Tensor
        self.register_buffer("scale_factor", torch.tensor(scale_factor))

    def setup(self, stage: str) -> None:
        """Fetch the imitation from rank zero, which trains it or reads its file."""
        if self.imitate is not None:
            made = self.imitate() if self.trainer.is_global_zero else None
            self.imitations = [self.trainer.strategy.broadcast(made)]  # type: ignore[list-item]

    def training_step(self, batch: FlowBatch, _: int) -> Tensor:
        x_1, z_mixture = self.scale_factor * batch.target, self.scale_factor * batch.mixture
        u = batch.t[:, None, None, None]
        x_t = (1 - (1 - SIGMA_MIN) * u) * batch.noise + u * x_1
        text, mask = self.queries(batch.captions, self.device)
        velocity = self.unet(
            x_t.contiguous(memory_format=torch.channels_last), z_mixture, batch.t, text, mask
        ).float()
        loss = (velocity - (x_1 - (1 - SIGMA_MIN) * batch.noise)).square().mean()
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.t))
        means = batch.means
        if self.imitations and means.any():
            loss = loss + self.masking * self.mask_error(velocity[means], batch.target[means])
        if self.namer is None:
            return loss
        features = self.middle.pop().float()
        self.middle.clear()
        logits = self.namer(features.movedim(1, -1)).movedim(-1, 1)
        # summed over the classes: two of forty are heard, and a mean would hide them
        named = nn.functional.binary_cross_entropy_with_logits(logits, batch.present, reduction="none")
        named = named.sum(1).mean()
        self.log("naming", named, prog_bar=True, batch_size=len(batch.t))
        return loss + self.naming * named

    def mask_error(self, x_1: Tensor, true: Tensor) -> Tensor:
        """`mask_loss` of scaled latents, pairs of a sound and the rest, against the unscaled true ones."""
        imitation = self.imitations[0].to(self.device)
        with torch.no_grad():
            true_mel = imitation(true.contiguous(memory_format=torch.channels_last)).float()
        mel = imitation((x_1 / self.scale_factor).contiguous(memory_format=torch.channels_last)).float()
        error = mask_loss(mel[::2], mel[1::2], true_mel[::2], true_mel[1::2])
        self.log("mask", error, prog_bar=True, batch_size=len(mel))
        return error

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """The step, and the moving average: in one, for checkpoints are written right behind it."""
        super().optimizer_step(*arguments, **named)
        decay = min(EMA_DECAY, (1 + self.global_step) / (10 + self.global_step))
        for average, parameter in zip(self.ema.parameters(), self.unet.parameters(), strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    def pictures(self, batch: FlowBatch) -> dict[str, Tensor]:
        """Two examples: mixture, target, and what ten Euler steps make of it."""
        text, mask = self.queries(batch.captions[:2], self.device)
        mixture, x = self.scale_factor * batch.mixture[:2], batch.noise[:2]
        for step in range(10):
            t = torch.full((len(x),), step / 10, device=x.device)
            x = x + self.ema(x, mixture, t, text, mask) / 10
        latents = torch.stack([batch.mixture[:2], batch.target[:2], x / self.scale_factor], dim=1)
        decoded = [vae.to(x.device).decode(latents.flatten(0, 1)) for vae in self.vaes]
        return {"mixture, target, output": decoded[0]} if decoded else {}

    def configure_optimizers(self) -> lightning.pytorch.utilities.types.OptimizerLRSchedulerConfig:
        parameters = [*self.unet.parameters(), *(self.namer.parameters() if self.namer is not None else ())]
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": cosine(optimizer, self.steps), "interval": "step"},
        }
