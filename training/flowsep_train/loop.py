"""The loop around the trainings: data, precision, devices, checkpoints, resuming, progress."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from flowsep_ref.mel import FrontEnd
from flowsep_ref.vae import VAE
from flowsep_train.distill import Distillation
from flowsep_train.flow import FlowBatches, FlowTraining
from flowsep_train.latents import Encoder, LatentCache, write_cache
from flowsep_train.masks import DecoderImitation, imitate
from flowsep_train.mixtures import Stream, Waveforms
from flowsep_train.parts import DISTILLED, TEACHER, ModelParts, digest
from flowsep_train.pictures import Pictures
from flowsep_train.progress import Progress
from flowsep_train.sounds import SoundBank
from flowsep_train.text import QueryEncoder, learn_phrasings, read_tokenizer
from flowsep_train.vae import VAETraining
from flowsep_train.vocoder import VocoderTraining

Phrases = Mapping[str, Sequence[str]]

#: Mel frames of the pieces that these two learn on: 1.28 s and 0.32 s.
FRAMES = {"vae": 128, "vocoder": 32}
DEFAULT_PRECISION = {
    "vae": "bf16-mixed",
    "vocoder": "32-true",
    "flow": "bf16-mixed",
    DISTILLED: "bf16-mixed",
}
LEARNING_RATE = {"text": 1e-3, "vae": 1e-3, "vocoder": 5e-4, "flow": 1e-3, DISTILLED: 1e-4}
TYPICAL_LOG_MEL = -7.0


@dataclass(frozen=True)
class Run:
    """Settings of one training; the defaults are for two CPU cores.

    Attributes:
        batch: Pieces a batch; for the flow, whole clips' worth of pieces.
        precision: Lightning's name; default bf16-mixed, and float32 for the vocoder.
    """

    steps: int = 2000
    batch: int = 4
    learning_rate: float | None = None
    precision: str | None = None
    accumulate: int = 1
    workers: int = 1
    threads: int | None = None
    devices: str = "auto"
    nodes: int = 1
    strategy: str = "auto"
    seed: int = 0
    checkpoint_every: int = 200
    pictures_every: int = 500


def train_text(
    parts: ModelParts,
    tokenizer: Path,
    captions: Phrases,
    sentences: Phrases | None = None,
    steps: int = 600,
    seed: int = 0,
    learning_rate: float | None = None,
) -> None:
    """Train the text encoder to classify phrasings, without checkpoints (minutes)."""
    lightning.seed_everything(seed, verbose=False)
    encoder = parts.untrained("text")
    if parts.starts_anew("text"):
        nn.init.normal_(encoder.shared.weight, std=1.0)
    loss = learn_phrasings(
        encoder,
        read_tokenizer(tokenizer),
        captions,
        sentences,
        steps,
        seed,
        LEARNING_RATE["text"] if learning_rate is None else learning_rate,
    )
    folder = parts.work / "text"
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"text_encoder.{key}": value for key, value in encoder.state_dict().items()}
    torch.save({"state_dict": state, "loss": loss}, folder / "last.ckpt.writing")
    (folder / "last.ckpt.writing").replace(folder / "last.ckpt")


def cache_latents(
    parts: ModelParts,
    bank: SoundBank,
    folder: Path,
    shards: int,
    seed: int = 0,
    written: Callable[[int], None] = print,
) -> None:
    """Mixtures of a bank as the latents that `train_flow` reads: see `flowsep_train.latents`."""
    encoder = Encoder(FrontEnd(parts.config.audio), parts.trained("vae"))
    write_cache(folder, bank, encoder, parts.config.clip_samples, shards, seed, written)


def train_vae(parts: ModelParts, bank: SoundBank, run: Run) -> None:
    """Train the autoencoder on pieces of mixtures and of sounds."""
    lightning.seed_everything(run.seed, verbose=False)
    vae = parts.untrained("vae")
    if parts.starts_anew("vae"):
        # spectrograms of silence and sound lie around -7: starting there saves the first epochs
        nn.init.constant_(vae.decoder.conv_out.bias, TYPICAL_LOG_MEL)
    module = VAETraining(parts.config, vae, run.steps, rate("vae", run))
    fit("vae", module, waveforms(parts, bank, "vae", run), parts.work, run)


def train_vocoder(
    parts: ModelParts, bank: SoundBank, run: Run, adversarial_from: int = 0, width: int = 32
) -> None:
    """Train the vocoder on pieces of mixtures and of sounds: see `VocoderTraining` for the last two."""
    lightning.seed_everything(run.seed, verbose=False)
    vocoder = parts.untrained("vocoder")
    module = VocoderTraining(
        parts.config,
        vocoder,
        run.steps,
        adversarial_from,
        width,
        rate("vocoder", run),
    )
    fit("vocoder", module, waveforms(parts, bank, "vocoder", run), parts.work, run)


def train_flow(
    parts: ModelParts,
    cache: LatentCache,
    tokenizer: Path,
    phrasings: Phrases,
    run: Run,
    skew: float = 1.0,
    naming: float = 0.0,
    mean: float = 0.0,
    masking: float = 0.0,
    complements: float = 0.5,
) -> None:
    """Train the velocity network on cached latents.

    `skew`, `mean` and `complements` are those of `FlowBatches`, `naming` and `masking` of `FlowTraining`.
    """
    lightning.seed_everything(run.seed, verbose=False)
    config = parts.config
    unet = parts.untrained("flow")
    if parts.starts_anew("flow"):
        # as in every diffusion network: the first velocities are small
        nn.init.zeros_(unet.out[-1].weight)
    scale_factor, queries, vae = flow_surroundings(parts, cache, tokenizer)
    module = FlowTraining(
        unet,
        queries,
        scale_factor,
        run.steps,
        rate("flow", run),
        vae,
        labels=len(phrasings) if naming else 0,
        naming=naming,
        masking=masking,
        imitate=(lambda: decoder_imitation(parts, cache, run)) if masking else None,
    )
    multiple = config.frame_multiple // config.latent_stride
    batches = FlowBatches(
        cache, phrasings, run.batch, multiple, run.steps * run.accumulate, skew, mean, complements
    )
    fit("flow", module, batches, parts.work, run)


def distill_flow(
    parts: ModelParts,
    cache: LatentCache,
    tokenizer: Path,
    phrasings: Phrases,
    run: Run,
    evaluations: int = 2,
    teacher_steps: int = 20,
    mean: float = 0.25,
) -> None:
    """Train the flow for a few steps of Euler's method, by itself: see `Distillation`.

    Args:
        mean: Share of the mixtures that keep the posterior mean, for masks.
    """
    lightning.seed_everything(run.seed, verbose=False)
    scale_factor, queries, vae = flow_surroundings(parts, cache, tokenizer)
    unet = parts.trained("flow")
    taught_by = parts.work / DISTILLED / TEACHER
    if not taught_by.exists():
        taught_by.parent.mkdir(parents=True, exist_ok=True)
        # whole or not at all: another process may look at it
        writing = taught_by.with_suffix(f".{os.getpid()}.writing")
        writing.write_text(digest(unet), encoding="utf-8")
        writing.replace(taught_by)
    parts.check_teacher(unet)
    unet.requires_grad_(True).train()
    module = Distillation(
        unet, queries, scale_factor, run.steps, evaluations, teacher_steps, rate(DISTILLED, run), vae
    )
    multiple = parts.config.frame_multiple // parts.config.latent_stride
    batches = FlowBatches(cache, phrasings, run.batch, multiple, run.steps * run.accumulate, mean=mean)
    fit(DISTILLED, module, batches, parts.work, run)


def flow_surroundings(
    parts: ModelParts, cache: LatentCache, tokenizer: Path
) -> tuple[float, QueryEncoder, VAE | None]:
    """Scale of the latents, encoder of the queries, and autoencoder, if there is one.

    Raises:
        ValueError: The latents are those of another autoencoder.
    """
    vae = parts.trained("vae") if parts.has("vae") else None
    if vae is not None and cache.vae not in (None, digest(vae)):
        raise ValueError(
            f"{cache.folder} holds latents of another autoencoder than the one of {parts.work}: write "
            f"latents with this one into another folder"
        )
    scale_factor = parts.scale_factor()
    queries = QueryEncoder(parts.trained("text"), read_tokenizer(tokenizer))
    return cache.scale_factor() if scale_factor is None else float(scale_factor), queries, vae


def decoder_imitation(parts: ModelParts, cache: LatentCache, run: Run) -> DecoderImitation:
    """The imitation of the decoder that the mask's loss needs: trained once, kept in `work/flow`."""
    path = parts.work / "flow" / "decoder_imitation.pt"
    mark = path.with_suffix(".sha256")
    vae = parts.trained("vae")
    made_of = digest(vae)
    if path.exists():
        if mark.exists() and mark.read_text(encoding="utf-8") != made_of:
            raise ValueError(f"{path} imitates another autoencoder than the one of {parts.work}: delete it")
        imitation = DecoderImitation(parts.config.latent_channels)
        imitation.load_state_dict(torch.load(path, weights_only=True))
        return imitation.requires_grad_(False).eval()
    if run.threads:
        torch.set_num_threads(run.threads)
    imitation = imitate(vae, cache, seed=run.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(made_of, encoding="utf-8")
    torch.save(imitation.state_dict(), path.with_suffix(".writing"))
    path.with_suffix(".writing").replace(path)
    return imitation


def mixed(captions: Phrases, sentences: Phrases | None, share: int = 600) -> Phrases:
    """Captions and generated sentences of every class, half of each kind.

    Args:
        captions: by label.
        sentences: by label; the first `share` of each are taken.
        share: of both, by repeating the captions.
    """
    if sentences is None:
        return captions
    return {
        label: [*(list(texts) * -(-share // len(texts)))[:share], *sentences.get(label, [])[:share]]
        for label, texts in captions.items()
    }


def rate(part: str, run: Run) -> float:
    """The given learning rate, or the part's default."""
    return LEARNING_RATE[part] if run.learning_rate is None else run.learning_rate


def waveforms(parts: ModelParts, bank: SoundBank, part: str, run: Run) -> Waveforms:
    """The batches of one of the two parts that learn on waveforms."""
    config = parts.config
    samples = min(FRAMES[part] * config.audio.hop_length, config.clip_samples)
    return Waveforms(
        bank, run.batch, samples, min(4 * FRAMES["vae"] * config.audio.hop_length, config.clip_samples)
    )


class Repeatable(Callback):
    """Draws the noise of every batch from its number, so that a resumed training repeats the killed one."""

    def __init__(self, seed: int, progress: Progress) -> None:
        self.seed = seed
        self.progress = progress

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        entropy = np.random.SeedSequence([self.seed, trainer.global_rank, self.progress.done])
        torch.manual_seed(int(entropy.generate_state(1)[0]))


class Batches(lightning.LightningDataModule):
    """A stream of batches that starts after the last trained one."""

    def __init__(self, draw: Callable[[np.random.Generator, int], Any], run: Run, progress: Progress) -> None:
        super().__init__()
        self.draw = draw
        self.run = run
        self.progress = progress

    def train_dataloader(self) -> DataLoader[Any]:
        # here, not earlier: the rank and the restored position are known now
        trainer = self.trainer
        assert trainer is not None
        stream = Stream(self.draw, [self.run.seed, trainer.global_rank], self.progress.done)
        return DataLoader(
            stream,
            batch_size=None,
            num_workers=self.run.workers,
            prefetch_factor=4 if self.run.workers else None,
            pin_memory=torch.cuda.is_available(),
        )


def fit(
    part: str,
    module: lightning.LightningModule,
    draw: Callable[[np.random.Generator, int], Any],
    work: Path,
    run: Run,
) -> None:
    """Run one training to its end, from `work/<part>/last.ckpt` if that is there."""
    if run.threads:
        torch.set_num_threads(run.threads)
    # its advertisements and its list of devices are not for users
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = work / part
    last = folder / "last.ckpt"
    progress = Progress(part, run.steps * run.accumulate, sys.stderr)
    trainer = lightning.Trainer(
        max_steps=-1,
        max_epochs=-1,
        precision=run.precision or DEFAULT_PRECISION[part],  # type: ignore[arg-type]
        # the vocoder has two optimisers and clips for itself
        gradient_clip_val=1.0 if module.automatic_optimization else None,
        accumulate_grad_batches=run.accumulate if module.automatic_optimization else 1,
        devices=run.devices,
        num_nodes=run.nodes,
        strategy=run.strategy,
        callbacks=[
            Repeatable(run.seed, progress),
            progress,
            ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=run.checkpoint_every),
            Pictures(run.pictures_every),
        ],
        logger=TensorBoardLogger(folder, name="log", version=""),
        log_every_n_steps=10,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        module, Batches(draw, run, progress), ckpt_path=last if last.exists() else None, weights_only=False
    )
    trainer.save_checkpoint(last)
