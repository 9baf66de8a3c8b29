"""Options that several benchmarks have: the model, the clip, the backend's threads, and the output files."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from benchmarks.common.models import Sizes, choose, default_work
from flowsep_runtime.app.console import FILE, options
from flowsep_runtime.app.outputs import replacing
from flowsep_runtime.errors import OptionError, OutputError, shown

Function = TypeVar("Function", bound=Callable[..., None])

sizes_option = click.option(
    "--sizes",
    type=click.Choice(["published", "bundled", "tiny"]),
    default="published",
    help="The model: stand-in weights of the published or of tiny sizes, or the one that ships here.",
)
work_option = click.option(
    "--work", type=FILE, help="Folder of weights and exports.  [default: the user's cache folder]"
)
#: The clip that is measured, with the same options in every benchmark of speed or cost.
steps_option = click.option("--steps", type=click.IntRange(1), default=20, help="Solver steps of a clip.")
batch_option = click.option("--batch", type=click.IntRange(1), default=1, help="Batch size.")
clip_options = options(
    steps_option,
    click.option("--seconds", type=click.FloatRange(0.1, 60), default=10.24, help="Length of a clip."),
    batch_option,
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, help="Seed of noise and random choices."
)


def threads_option(default: int) -> Callable[[Function], Function]:
    """`--threads` of a benchmark."""
    return click.option("--threads", type=click.IntRange(1), default=default, help="Threads of each backend.")


def model_options(command: Function) -> Function:
    """The options that choose the model. The command gets `work`, the folder of weights and exports, and
    `make_model`, which makes the chosen model there."""

    @functools.wraps(command)
    def with_model(
        sizes: Sizes,
        checkpoint: Path | None,
        config: Path | None,
        bundle: Path | None,
        work: Path | None,
        **others: Any,
    ) -> None:
        folder = (work or default_work()).resolve()
        make_model = functools.partial(choose, sizes, folder, checkpoint, config, bundle)
        command(work=folder, make_model=make_model, **others)

    return options(
        sizes_option,
        click.option("--checkpoint", type=FILE, help="Weights to use in place of --sizes."),
        click.option("--config", type=FILE, help="The checkpoint's sizes (YAML)."),
        click.option("--bundle", type=FILE, help="Bundle that flowsep-export made of the checkpoint."),
        work_option,
    )(cast("Function", with_model))


@dataclass(frozen=True)
class Outputs:
    """Files that a benchmark writes, checked before an hour of measurement.

    Raises:
        OptionError: If a file's folder does not exist, or the picture cannot be drawn.
    """

    json: Path | None
    markdown: Path | None
    picture: Path | None

    def __post_init__(self) -> None:
        for path in (self.json, self.markdown, self.picture):
            if path is not None and not path.parent.is_dir():
                raise OptionError(
                    f"There is no folder {shown(path.parent)}: make it, or choose another output."
                )
            if path is not None and path.is_dir():
                raise OptionError(f"{shown(path)} is a folder: give the name of a file.")
        if self.picture is not None and find_spec("matplotlib") is None:
            raise OptionError("A picture needs matplotlib: pip install matplotlib.")

    def write(self, text: str, content: Mapping[str, object]) -> None:
        """Print the tables, and write tables and numbers to the requested files.

        Raises:
            OutputError: If the disk does not take a file.
        """
        click.echo(text)
        if self.markdown is not None:
            write_text(self.markdown, text + "\n")
        if self.json is not None:
            write_text(self.json, json.dumps(content, indent=1, allow_nan=False) + "\n")


def output_options(picture: str | None = None) -> Callable[[Function], Function]:
    """The options for output files, which the command gets as `outputs`.

    Args:
        picture: Describes the drawing; None if there is none.
    """

    def with_options(command: Function) -> Function:
        @functools.wraps(command)
        def with_outputs(
            json_file: Path | None, markdown: Path | None, picture: Path | None = None, **others: Any
        ) -> None:
            command(outputs=Outputs(json_file, markdown, picture), **others)

        drawing = [] if picture is None else [click.option("--picture", type=FILE, help=f"{picture} (PNG).")]
        return options(
            click.option("--json", "json_file", type=FILE, help="Write everything that was measured."),
            click.option("--markdown", type=FILE, help="Write the tables, which are also printed."),
            *drawing,
        )(cast("Function", with_outputs))

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
