"""`flowsep-train`: the command line of the trainings."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from flowsep_train.parts import ModelParts
    from flowsep_train.settings import Settings
    from flowsep_train.sounds import SoundBank

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

    wrapped: Callable[..., Any] = taking_model
    for option in (
        click.option(
            "--from",
            "base",
            metavar="MODEL",
            help="Start from a checkpoint: the published file, a model folder, or `bundled`.",
        ),
        click.option(
            "--work", type=FILE, required=True, help="Folder of checkpoints; training goes on from there."
        ),
        click.option(
            "--config",
            type=FILE,
            help=f"YAML of sizes, or the published project's. Default: of --from, or the {PUBLISHED}.",
        ),
        click.option(
            "--text",
            metavar="FOLDER|NAME",
            help="A T5 encoder, such as google/flan-t5-large; it is not trained.",
        ),
        click.option("--vocoder", type=FILE, help="BigVGAN's generator, a file called g_…."),
        click.option(
            "--vae", type=FILE, help="The published autoencoder, vae.ckpt, with the vocoder inside."
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def sound_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for recordings."""
    for option in (
        click.option("--skip-missing", is_flag=True, help="Ignore recordings that are missing."),
        click.option(
            "--root",
            type=FILE,
            help="Folder that the metadata's paths are relative to. Default: found by search.",
        ),
        click.option(
            "--sounds", type=FILE, help="Recordings: metadata (JSON), a folder a class, or a sound cache."
        ),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(None, "-V", "--version", package_name="flowsep-engine", prog_name=PROGRAM)
def command() -> None:
    """Train the parts of FlowSep, then collect them into one model.

    \b
    fit text      a small text encoder (not for FLAN-T5)
    fit vocoder   log-mel to waveform
    fit vae       log-mel to latents and back
    latents       mixtures as latents, for the flow
    fit flow      the velocity network
    collect       one model of them all
    """


@command.command()
@click.argument("part", type=click.Choice(["text", "vae", "vocoder", "flow"]))
@model_options
@sound_options
@click.option(
    "--latents", type=FILE, help="Folder that `flowsep-train latents` wrote; the flow learns from it."
)
@click.option(
    "--captions", type=FILE, help="Table of label, caption, use. Default: the captions of --sounds."
)
@click.option("--sentences", type=FILE, help="A second such table of generated sentences, for text and flow.")
@click.option("--tokenizer", type=FILE, help="tokenizer.json, for text and flow. Default: of --text.")
@click.option("--steps", type=click.IntRange(1), default=2000, help="Number of optimiser steps.")
@click.option("--batch", type=click.IntRange(1), default=4, help="Pieces in a batch (flow: clips).")
@click.option("--accumulate", type=click.IntRange(1), default=1, help="Batches for each step.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Default: the part's own.")
@click.option("--precision", help="Lightning's name, such as bf16-mixed or 32-true. Default: the part's own.")
@click.option("--devices", default="auto", help="Lightning's: auto, a number, or a list.")
@click.option("--nodes", type=click.IntRange(1), default=1, help="Machines.")
@click.option("--strategy", default="auto", help="Lightning's: auto, ddp, fsdp, …")
@click.option("--workers", type=click.IntRange(0), default=1, help="Processes that load data.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--seed", default=0)
@click.option("--checkpoint-every", type=click.IntRange(1), default=200, help="Steps.")
@click.option("--pictures-every", type=click.IntRange(1), default=500, help="Batches.")
@click.option("--skew", type=click.FloatRange(0, min_open=True), default=1.0, help="Flow: times are u^SKEW.")
@click.option(
    "--naming",
    type=click.FloatRange(0),
    default=0.0,
    help="Flow: weight of naming the classes in the mixture (few classes only).",
)
@click.option(
    "--mean",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Flow: share of mixtures that learn the posterior mean, for masks by one evaluation.",
)
@click.option(
    "--masking", type=click.FloatRange(0), default=0.0, help="Flow: weight of the mask's loss on those."
)
@click.option(
    "--complements",
    type=click.FloatRange(0, 1),
    default=0.5,
    help='Flow: share of the rests of a mixture that are asked for by "everything except …".',
)
@click.option(
    "--adversarial-from", type=click.IntRange(0), default=0, help="Vocoder: first step with discriminators."
)
@click.option("--width", type=click.IntRange(1), default=32, help="Vocoder: width of the discriminators.")
def fit(
    part: str,
    model: Model,
    sounds: Path | None,
    root: Path | None,
    skip_missing: bool,
    latents: Path | None,
    captions: Path | None,
    sentences: Path | None,
    tokenizer: Path | None,
    skew: float,
    naming: float,
    mean: float,
    masking: float,
    complements: float,
    adversarial_from: int,
    width: int,
    **settings: Any,
) -> None:
    """Train one PART. Run again after an interruption, it goes on from the last checkpoint."""
    if part == "vocoder" and settings["accumulate"] > 1:
        raise click.UsageError("--accumulate is not for the vocoder, which has two optimisers.")
    if part == "text" and model.text is not None:
        raise click.UsageError("the encoder of --text is trained already: leave fit text out.")
    if part == "flow" and model.settings is not None:
        settings |= {name: value for name, value in model.settings.numbers.items() if is_open(name, value)}
    # imported here: torch takes seconds, --help should not
    from flowsep_train import loop
    from flowsep_train.latents import LatentCache
    from flowsep_train.mixtures import Captions

    run = loop.Run(**settings)
    parts = model.parts()
    if part in ("vae", "vocoder"):
        bank = bank_of(part, sounds, root, skip_missing)
        if part == "vae":
            loop.train_vae(parts, bank, run)
        else:
            loop.train_vocoder(parts, bank, run, adversarial_from, width)
        return
    if captions is not None:
        phrases = Captions.read(captions).trained
    else:
        phrases = bank_of(part, sounds, root, skip_missing, "--captions or --sounds").captions
    more = Captions.read(sentences).trained if sentences is not None else None
    file = needed(part, "--tokenizer", tokenizer or own_tokenizer(parts))
    if part == "text":
        loop.train_text(parts, file, phrases, more, settings["steps"], settings["seed"], run.learning_rate)
    else:
        cache = LatentCache(needed(part, "--latents", latents))
        loop.train_flow(
            parts, cache, file, loop.mixed(phrases, more), run, skew, naming, mean, masking, complements
        )


@command.command()
@model_options
@sound_options
@click.option("--output", type=FILE, required=True, help="Folder of the latents; missing shards are added.")
@click.option("--shards", type=click.IntRange(1), default=32, help="Shards of 32 clips.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--seed", default=0)
def latents(
    model: Model,
    sounds: Path | None,
    root: Path | None,
    skip_missing: bool,
    output: Path,
    shards: int,
    threads: int | None,
    seed: int,
) -> None:
    """Mix recordings and encode the mixtures with the trained autoencoder."""
    import torch

    from flowsep_train.loop import cache_latents

    if threads:
        torch.set_num_threads(threads)
    parts = model.parts()
    bank = bank_of("latents", sounds, root, skip_missing)
    with click.progressbar(length=shards, label="latents", file=sys.stderr) as bar:
        cache_latents(parts, bank, output, shards, seed, lambda done: bar.update(done - bar.pos))


@command.command()
@model_options
@click.option("--tokenizer", type=FILE, help="tokenizer.json of the text's training. Default: of --text.")
@click.option("--output", type=FILE, required=True, help="Folder for the model.")
@click.option("--float32", is_flag=True, help="Do not round the weights to half precision.")
@click.option(
    "--keep",
    "kept",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Share of --from in the average of its flow's weights and the trained ones.",
)
def collect(model: Model, tokenizer: Path | None, output: Path, float32: bool, kept: float) -> None:
    """Put the trained parts together into one model folder."""
    from flowsep_train.collect import collect as put_together

    parts = model.parts()
    file = tokenizer or own_tokenizer(parts)
    if file is None:
        raise click.UsageError("collect needs --tokenizer.")
    put_together(parts, file, output, not float32, kept)
    click.echo(f"{output}: model.safetensors, config.yaml, tokenizer.json", err=True)


def own_tokenizer(parts: ModelParts) -> Path | None:
    """The tokenizer that came with the text encoder, if one was given."""
    return parts.tokenizer if parts.tokenizer.is_file() else None


def is_open(name: str, value: Any) -> bool:
    """True if a YAML has a value for an option that the command line leaves open."""
    source = click.get_current_context().get_parameter_source(name)
    return value is not None and source == ParameterSource.DEFAULT


def bank_of(
    part: str, sounds: Path | None, root: Path | None, skip_missing: bool, option: str = "--sounds"
) -> SoundBank:
    """The recordings to train on."""
    from flowsep_train.sounds import SoundBank

    return SoundBank(needed(part, option, sounds), root=root, skip_missing=skip_missing)


def needed(part: str, option: str, value: Path | None) -> Path:
    """The value of an option that a part requires."""
    if value is None:
        raise click.UsageError(f"training the {part} needs {option}.")
    return value


def main() -> None:
    """Entry point of the console script; ends with 0, 1 (failure), 2 (misuse) or 130 (interrupted)."""
    try:
        code = command.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; the same command goes on from the last checkpoint.", 130)
    except click.ClickException as error:
        _fail(f"{error.format_message()} (see {PROGRAM} --help)", error.exit_code)
    except (ValueError, OSError) as error:  # what the parts raise for missing or wrong files
        # a process that loads data hands over its traceback; the sentence is its last line
        sentence = str(error).strip()
        if "Traceback (most recent call last)" in sentence:
            sentence = sentence.rpartition("\n")[2].partition(": ")[2]
        _fail(sentence.rstrip(".") + ".", 2)


def _fail(sentence: str, code: int) -> None:
    if os.environ.get("FLOWSEP_DEBUG") == "1":
        traceback.print_exc()
    click.echo(f"{PROGRAM}: {' '.join(sentence.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
