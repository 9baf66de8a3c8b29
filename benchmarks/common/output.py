"""Common parts of the benchmarks' command lines: the choice of the model, and complete output files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import click

from flowsep_runtime.app.outputs import replacing
from flowsep_runtime.errors import OptionError, OutputError, shown

Function = TypeVar("Function", bound=Callable[..., None])
FILE = click.Path(path_type=Path)


def model_options(command: Function) -> Function:
    """The options that choose the model."""
    for option in (
        click.option(
            "--work",
            type=FILE,
            help="Where weights and exports are kept.  [default: the user's cache folder]",
        ),
        click.option("--bundle", type=FILE, help="Bundle that flowsep-export made of the checkpoint."),
        click.option("--config", type=FILE, help="The checkpoint's sizes (YAML)."),
        click.option("--checkpoint", type=FILE, help="Weights to use in place of --sizes."),
        click.option(
            "--sizes",
            type=click.Choice(["published", "bundled", "tiny"]),
            default="published",
            show_default=True,
            help="The model: stand-in weights of the published or of tiny sizes, or the one that ships here.",
        ),
    ):
        command = option(command)
    return command


def output_options(picture: str) -> Callable[[Function], Function]:
    """Options for output files; `picture` describes the drawing."""

    def with_options(command: Function) -> Function:
        for option in (
            click.option("--picture", type=FILE, help=f"{picture} (PNG)."),
            click.option("--markdown", type=FILE, help="Write the tables, which are also printed."),
            click.option("--json", "json_file", type=FILE, help="Write everything that was measured."),
        ):
            command = option(command)
        return command

    return with_options


def numbers(text: str, option: str, kind: type[int] | type[float]) -> list[float]:
    """The positive numbers of a comma-separated list, each once, in its order.

    Raises:
        OptionError: If one is not a number, or not positive.
    """
    found: list[float] = []
    for piece in text.split(","):
        try:
            value = kind(piece)
        except ValueError:
            raise OptionError(f"{option} takes numbers with commas between them and not {text!r}.") from None
        if not 0 < value < float("inf"):
            raise OptionError(f"{option} takes numbers above 0 and not {text!r}.")
        if value not in found:
            found.append(value)
    return found


def check_destinations(json_file: Path | None, markdown: Path | None, picture: Path | None) -> None:
    """Check the output files before an hour of measurement.

    Raises:
        OptionError: If a file's folder does not exist, or the picture cannot be drawn.
    """
    for path in (json_file, markdown, picture):
        if path is not None and not path.parent.is_dir():
            raise OptionError(f"There is no folder {shown(path.parent)}: make it, or choose another output.")
        if path is not None and path.is_dir():
            raise OptionError(f"{shown(path)} is a folder: give the name of a file.")
    if picture is not None and find_spec("matplotlib") is None:
        raise OptionError("A picture needs matplotlib: pip install matplotlib.")


def write_findings(
    text: str, content: Mapping[str, object], json_file: Path | None, markdown: Path | None
) -> None:
    """Print the tables, and write tables and numbers to the requested files.

    Raises:
        OutputError: If the disk does not take a file.
    """
    click.echo(text)
    if markdown is not None:
        write_text(markdown, text + "\n")
    if json_file is not None:
        write_text(json_file, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file.

    Raises:
        OutputError: If the disk does not take it.
    """
    try:
        with replacing([path]) as (temporary,):
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{shown(path)} cannot be written: {error.strerror or error}.") from None
