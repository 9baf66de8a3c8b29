"""Options that several commands of `flowsep-train` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from flowsep_train.parts import ModelParts
    from flowsep_train.settings import Settings

PROGRAM = "flowsep-train"
FILE = click.Path(path_type=Path)
PUBLISHED = "published sizes"


@dataclass(frozen=True)
class Model:
    """The options that choose the model: sizes, work folder, start."""

    base: str | None
    work: Path
    config: Path | None
    vae: Path | None
    vocoder: Path | None
    text: str | None

    @functools.cached_property
    def settings(self) -> Settings | None:
        """Settings of the YAML beyond sizes; each remark on them is printed."""
        if self.config is None:
            return None
        from flowsep_ref.config import FlowSepConfig
        from flowsep_train.settings import Settings

        FlowSepConfig.from_yaml(self.config)  # refuses what is no configuration
        found = Settings.read(self.config)
        for remark in found.remarks:
            click.echo(f"{PROGRAM}: {remark}", err=True)
        return found

    def parts(self) -> ModelParts:
        """The parts in the work folder, over those that are given and the model to start from."""
        from flowsep_ref.config import FlowSepConfig
        from flowsep_ref.model import FlowSep
        from flowsep_train.parts import ModelParts

        named = self.settings
        base = self.base or (named.base if named is not None else None)
        if base is None:
            sizes = FlowSepConfig.published() if self.config is None else FlowSepConfig.from_yaml(self.config)
            parts = ModelParts(self.work, sizes)
        else:
            model = FlowSep.from_checkpoint(
                FlowSep.bundled_path() if base == "bundled" else base, self.config
            )
            parts = ModelParts(self.work, model.config, model)
        vae = self.vae or (named.vae if named is not None else None)
        text = self.text or (named.text if named is not None else None)
        parts.take(*(str(given) if given is not None else None for given in (vae, self.vocoder, text)))
        return parts


def _in_order(*options: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Several options as one decorator, in the order of --help."""

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `Model`, which the command takes as `model`."""

    @functools.wraps(command)
    def taking_model(
        base: str | None,
        work: Path,
        config: Path | None,
        vae: Path | None,
        vocoder: Path | None,
        text: str | None,
        **others: Any,
    ) -> Any:
        return command(model=Model(base, work, config, vae, vocoder, text), **others)

    return _in_order(
        click.option(
            "--vae", type=FILE, help="The published autoencoder, vae.ckpt, with the vocoder inside."
        ),
        click.option("--vocoder", type=FILE, help="BigVGAN's generator, a file called g_…."),
        click.option(
            "--text",
            metavar="FOLDER|NAME",
            help="A T5 encoder, such as google/flan-t5-large; it is not trained.",
        ),
        click.option(
            "--config",
            type=FILE,
            help=f"YAML of sizes, or the published project's. Default: those of --from, or the {PUBLISHED}.",
        ),
        click.option(
            "--work", type=FILE, required=True, help="Folder of checkpoints; training goes on from there."
        ),
        click.option(
            "--from",
            "base",
            metavar="MODEL",
            help="Start from a checkpoint: the published file, a model folder, or `bundled`.",
        ),
    )(taking_model)


#: Options for recordings.
sound_options = _in_order(
    click.option(
        "--sounds", type=FILE, help="Recordings: metadata (JSON), one folder per class, or a sound cache."
    ),
    click.option(
        "--root",
        type=FILE,
        help="Folder that the metadata's paths are relative to. Default: found by search.",
    ),
    click.option("--skip-missing", is_flag=True, help="Ignore recordings that are missing."),
)


#: Options for what the flow or the text encoder learns from.
query_options = _in_order(
    click.option(
        "--latents", type=FILE, help="Folder that `flowsep-train latents` wrote; the flow learns from it."
    ),
    click.option(
        "--captions", type=FILE, help="Table of label, caption, use. Default: the captions of --sounds."
    ),
    click.option(
        "--sentences", type=FILE, help="A second such table of generated sentences, for text and flow."
    ),
    click.option(
        "--tokenizer", type=FILE, help="tokenizer.json, for text and flow. Default: that of --text."
    ),
)


@dataclass(frozen=True)
class TrainingData:
    """The options for what a part learns from."""

    sounds: Path | None
    root: Path | None
    skip_missing: bool
    latents: Path | None
    captions: Path | None
    sentences: Path | None
    tokenizer: Path | None


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `TrainingData`, which the command takes as `data`."""

    @functools.wraps(command)
    def taking_data(
        sounds: Path | None,
        root: Path | None,
        skip_missing: bool,
        latents: Path | None,
        captions: Path | None,
        sentences: Path | None,
        tokenizer: Path | None,
        **others: Any,
    ) -> Any:
        data = TrainingData(sounds, root, skip_missing, latents, captions, sentences, tokenizer)
        return command(data=data, **others)

    return sound_options(query_options(taking_data))


#: Options of `loop.Run`, by the names of its fields.
run_options = _in_order(
    click.option("--steps", type=click.IntRange(1), default=2000, help="Number of optimiser steps."),
    click.option("--batch", type=click.IntRange(1), default=4, help="Pieces in a batch (flow: clips)."),
    click.option("--accumulate", type=click.IntRange(1), default=1, help="Batches for each step."),
    click.option(
        "--learning-rate",
        type=click.FloatRange(0, min_open=True),
        help="Peak of the learning rate. Default: the part's own.",
    ),
    click.option(
        "--precision",
        help="Arithmetic, by Lightning's name: bf16-mixed, 32-true, …. Default: the part's own.",
    ),
    click.option("--devices", default="auto", help="Devices, as for Lightning: auto, a number, or a list."),
    click.option("--nodes", type=click.IntRange(1), default=1, help="Number of machines."),
    click.option("--strategy", default="auto", help="Strategy, as for Lightning: auto, ddp, fsdp, …"),
    click.option("--workers", type=click.IntRange(0), default=1, help="Processes that load data."),
    click.option("--threads", type=click.IntRange(1), help="CPU threads."),
    click.option("--seed", default=0, help="Seed of weights and all random choices."),
    click.option(
        "--checkpoint-every",
        type=click.IntRange(1),
        default=200,
        help="Steps from one checkpoint to the next.",
    ),
    click.option(
        "--pictures-every",
        type=click.IntRange(1),
        default=500,
        help="Batches from one logged picture to the next.",
    ),
)
