"""`flowsep-train`: the command line of the trainings."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from flowsep_train.options import (
    FILE,
    PROGRAM,
    Model,
    TrainingData,
    data_options,
    model_options,
    run_options,
    sound_options,
)

if TYPE_CHECKING:
    from flowsep_train.loop import Phrases
    from flowsep_train.parts import ModelParts
    from flowsep_train.sounds import SoundBank


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
    distill       the velocity network for fewer steps
    collect       one model of them all
    """


@command.command()
@click.argument("part", type=click.Choice(["text", "vae", "vocoder", "flow"]))
@model_options
@data_options
@run_options
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
    "--masking",
    type=click.FloatRange(0),
    default=0.0,
    help="Flow: weight of the mask's loss on the mixtures of --mean.",
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
    data: TrainingData,
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

    run = loop.Run(**settings)
    parts = model.parts()
    if part in ("vae", "vocoder"):
        bank = bank_of(part, data.sounds, data.root, data.skip_missing)
        if part == "vae":
            loop.train_vae(parts, bank, run)
        else:
            loop.train_vocoder(parts, bank, run, adversarial_from, width)
        return
    phrases, more = phrases_of(part, data)
    file = needed(part, "--tokenizer", data.tokenizer or own_tokenizer(parts))
    if part == "text":
        loop.train_text(parts, file, phrases, more, settings["steps"], settings["seed"], run.learning_rate)
    else:
        cache = LatentCache(needed(part, "--latents", data.latents))
        loop.train_flow(
            parts, cache, file, loop.mixed(phrases, more), run, skew, naming, mean, masking, complements
        )


@command.command()
@model_options
@data_options
@run_options
@click.option(
    "--evaluations",
    type=click.IntRange(1),
    default=2,
    help="Steps of Euler's method that the model is made for.",
)
@click.option(
    "--teacher-steps",
    type=click.IntRange(1),
    default=20,
    help="Steps of the flow as it is; the few learn to end where these do.",
)
@click.option(
    "--mean",
    type=click.FloatRange(0, 1),
    default=0.25,
    help="Share of mixtures that keep the posterior mean, for masks.",
)
def distill(
    model: Model,
    data: TrainingData,
    evaluations: int,
    teacher_steps: int,
    mean: float,
    **settings: Any,
) -> None:
    """Train the flow to need fewer steps, from its own results with many.

    The flow is that of --work, or else of --from. `collect` then takes the distilled one.
    """
    from flowsep_train import loop
    from flowsep_train.latents import LatentCache

    parts = model.parts()
    phrases, more = phrases_of("flow", data)
    loop.distill_flow(
        parts,
        LatentCache(needed("flow", "--latents", data.latents)),
        needed("flow", "--tokenizer", data.tokenizer or own_tokenizer(parts)),
        loop.mixed(phrases, more),
        loop.Run(**settings),
        evaluations,
        teacher_steps,
        mean,
    )


@command.command()
@model_options
@sound_options
@click.option("--output", type=FILE, required=True, help="Folder of the latents; missing shards are added.")
@click.option("--shards", type=click.IntRange(1), default=32, help="Shards of 32 clips.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--seed", default=0, help="Seed of all random choices.")
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
@click.option(
    "--tokenizer", type=FILE, help="tokenizer.json of the text's training. Default: that of --text."
)
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


def phrases_of(part: str, data: TrainingData) -> tuple[Phrases, Phrases | None]:
    """The captions to learn from, and the generated sentences, if there are any."""
    from flowsep_train.mixtures import Captions

    if data.captions is not None:
        phrases = Captions.read(data.captions).trained
    else:
        option = "--captions or --sounds"
        phrases = bank_of(part, data.sounds, data.root, data.skip_missing, option).captions
    return phrases, Captions.read(data.sentences).trained if data.sentences is not None else None


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
