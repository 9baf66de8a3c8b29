"""The loop around the three trainings: data, checkpoints, resuming."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from flowsep_ref.config import FlowSepConfig
from flowsep_ref.training.flow import FlowTraining
from flowsep_ref.training.mixtures import Captions, MixtureDataset
from flowsep_ref.training.sounds import SoundBank
from flowsep_ref.training.vae import VAETraining
from flowsep_ref.training.vocoder import VocoderTraining


def train(
    part: str,
    sounds: Path,
    captions: Path,
    config: FlowSepConfig,
    work: Path,
    tokenizer: Path | None = None,
    steps: int = 2000,
    batch: int = 4,
    threads: int | None = None,
    seed: int = 0,
    emphasis: Mapping[str, float] | None = None,
) -> None:
    """Run one training to its end, from `work/<part>/last.ckpt` if that is there.

    Args:
        part: `vae`, `vocoder` or `flow`; the flow needs the trained `vae` in `work`.
        sounds: sound cache (`flowsep_ref.training.sounds.SoundBank`).
        captions: table of phrasings (`flowsep_ref.training.mixtures.Captions`).
        config: sizes of the model.
        work: folder of checkpoints and logs, one folder a part.
        tokenizer: `tokenizer.json` for the flow.
        steps: optimiser steps in all.
        batch: clips a step.
        threads: CPU threads; default PyTorch's own.
        seed: of weights and mixtures.
        emphasis: how much more often than the others some classes are drawn.

    Raises:
        ValueError: something that the part needs is not there.
    """
    if threads:
        torch.set_num_threads(threads)
    lightning.seed_everything(seed)
    phrasings = Captions.read(captions)
    folder = work / part
    last = folder / "last.ckpt"
    # a resumed run must not see the mixtures of the first run's start again
    drawn = (
        int(torch.load(last, map_location="cpu", weights_only=False)["global_step"]) if last.exists() else 0
    )
    module: lightning.LightningModule
    if part == "vae":
        module = VAETraining(config, steps)
    elif part == "vocoder":
        module = VocoderTraining(config, steps)
    elif tokenizer is None:
        raise ValueError("training the flow needs --tokenizer")
    else:
        module = FlowTraining(config, phrasings, tokenizer, steps, work, batch)
    # the flow sees whole clips (it cuts their latents into pieces); the others need short ones
    samples = config.clip_samples if part == "flow" else config.clip_samples // 4
    data = MixtureDataset(SoundBank(sounds, "train"), phrasings, samples, seed + drawn, emphasis)
    trainer = lightning.Trainer(
        max_steps=steps,
        precision="32-true" if part == "vocoder" else "bf16-mixed",
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=200)],
        logger=CSVLogger(folder, name="log", version=""),
        log_every_n_steps=20,
        enable_model_summary=False,
    )
    loader = DataLoader(data, batch_size=1 if part == "flow" else batch, num_workers=1, prefetch_factor=4)
    if isinstance(module, FlowTraining):
        module.start(loader)
    trainer.fit(module, loader, ckpt_path=last if drawn else None, weights_only=False)
    trainer.save_checkpoint(last)
