"""`flowsep-train`: the trainings from the command line."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import click

PROGRAM = "flowsep-train"
FILE = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Train the parts of FlowSep: vae, vocoder, then flow; then collect them into one model."""


@command.command()
@click.argument("part", type=click.Choice(["vae", "vocoder", "flow"]))
@click.option(
    "--sounds", type=FILE, required=True, help="Sound cache: a folder with audio.npy and index.json."
)
@click.option("--captions", type=FILE, required=True, help="Table of label, caption, use.")
@click.option("--config", type=FILE, required=True, help="Sizes of the model (YAML).")
@click.option("--work", type=FILE, required=True, help="Folder of checkpoints; training goes on from there.")
@click.option("--tokenizer", type=FILE, help="tokenizer.json; the flow needs it.")
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Optimiser steps.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Clips a step.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--emphasise",
    type=(str, click.FloatRange(min=0, min_open=True)),
    multiple=True,
    metavar="LABEL WEIGHT",
    help="Draw a class WEIGHT times as often as the others; may be given several times.",
)
def fit(
    part: str,
    sounds: Path,
    captions: Path,
    config: Path,
    work: Path,
    tokenizer: Path | None,
    steps: int,
    batch: int,
    threads: int | None,
    seed: int,
    emphasise: tuple[tuple[str, float], ...],
) -> None:
    """Train one PART: vae, vocoder, or flow (after vae, in the same --work)."""
    # imported here: torch takes seconds, --help should not
    from flowsep_ref.config import FlowSepConfig
    from flowsep_ref.training.loop import train

    sizes = FlowSepConfig.from_yaml(config)
    train(part, sounds, captions, sizes, work, tokenizer, steps, batch, threads, seed, dict(emphasise))


@command.command()
@click.option("--work", type=FILE, required=True, help="Folder of the trainings.")
@click.option("--config", type=FILE, required=True, help="Sizes of the model (YAML).")
@click.option("--tokenizer", type=FILE, required=True, help="tokenizer.json of the flow's training.")
@click.option("--output", type=FILE, required=True, help="Folder for the model.")
@click.option("--float32", is_flag=True, help="Do not round the weights to half precision.")
def collect(work: Path, config: Path, tokenizer: Path, output: Path, float32: bool) -> None:
    """Put the trained parts together into one model folder."""
    from flowsep_ref.config import FlowSepConfig
    from flowsep_ref.training.collect import collect as put_together

    put_together(work, FlowSepConfig.from_yaml(config), tokenizer, output, half=not float32)
    click.echo(f"{output}: model.safetensors, config.yaml, tokenizer.json", err=True)


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
        _fail(f"{error}.", 2)


def _fail(sentence: str, code: int) -> None:
    if os.environ.get("FLOWSEP_DEBUG") == "1":
        traceback.print_exc()
    click.echo(f"{PROGRAM}: {' '.join(sentence.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
