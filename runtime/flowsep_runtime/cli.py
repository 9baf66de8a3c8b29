"""`flowsep-run`: separates what a sentence names from a recording."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from . import __version__
from .console import engine_options, run
from .errors import AudioError, FlowSepWarning, QueryError, shown

if TYPE_CHECKING:
    from .audio import Encoding, Recording
    from .separator import Separation, Separator

PROGRAM = "flowsep-run"


@click.command(name=PROGRAM, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("mixture", type=click.Path(path_type=Path), required=False, metavar="MIXTURE")
@click.argument("query", required=False, metavar="QUERY")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where the sound goes; the extension is the format.  [default: mix.dog-barking.wav beside mix.wav]",
)
@click.option(
    "--steps", type=click.IntRange(min=1), help="Solver steps.  [default: the bundle's, 20 as published]"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all noise.")
@click.option("--solver", default="euler", show_default=True, help="Solver of the flow.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Folder that flowsep-export wrote.  [default: the model that ships with the package]",
)
@engine_options
@click.option(
    "--low-memory", is_flag=True, help="Keep one stage's graphs at a time, and load them again as needed."
)
@click.option(
    "--no-cache",
    is_flag=True,
    envvar="FLOWSEP_NO_CACHE",
    help="Neither use nor keep encoded queries, compiled graphs and results of checks.",
)
@click.option("--list-backends", is_flag=True, help="Say what each engine can do here, and do nothing else.")
@click.option("--residual", type=click.Path(path_type=Path), help="Also write what is left of the mixture.")
@click.option(
    "--save-mixture", type=click.Path(path_type=Path), help="Also write the mixture, as it was read."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--force", is_flag=True, help="Overwrite outputs that exist.")
@click.version_option(__version__, prog_name=PROGRAM)
def command(
    mixture: Path | None,
    query: str | None,
    output: Path | None,
    steps: int | None,
    seed: int,
    solver: str,
    bundle: Path | None,
    backend: str,
    precision: Literal["exact", "fast", "auto"],
    threads: int | None,
    low_memory: bool,
    no_cache: bool,
    list_backends: bool,
    residual: Path | None,
    save_mixture: Path | None,
    as_json: bool,
    force: bool,
) -> None:
    """Separate from MIXTURE (an audio file) the sound that QUERY names, such as "dog barking"."""
    if list_backends:
        _list_backends(as_json)
        return
    # Not required in click's eyes, because of --list-backends.
    if mixture is None or query is None:
        raise click.MissingParameter(param=_argument("mixture" if mixture is None else "query"))
    # Imported here, so that --help answers at once.
    from .audio import CONTAINERS, checked_samples, encoding_for, read_audio
    from .outputs import check_outputs, default_output
    from .separator import Separator
    from .solvers import solver_named

    if not query.strip():
        raise QueryError("The query is empty: say in a few words what to separate.")
    solver_named(solver)
    recording = read_audio(mixture)
    try:
        checked_samples(recording.samples, recording.sample_rate)
    except AudioError as error:
        raise AudioError(f"{shown(mixture)}: {error}") from None
    if output is None:
        suffix = mixture.suffix if mixture.suffix.lower() in CONTAINERS else ".wav"
        output = default_output(mixture, query, suffix)
    paths = {"output": output, "residual": residual, "mixture": save_mixture}
    encodings = {path: encoding_for(path, recording) for path in paths.values() if path is not None}
    check_outputs([path for path in paths.values() if path is not None], mixture, force)

    separator = Separator.load(bundle, backend, precision, threads, low_memory, not no_cache)
    steps = separator.pipeline.manifest.model.default_steps if steps is None else steps
    with warnings.catch_warnings(record=True) as caught, _progress_bar() as progress:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FlowSepWarning)
        result = separator.separate(
            recording.samples, recording.sample_rate, query, steps, solver, seed, progress
        )
    remarks = [str(warning.message) for warning in caught]
    for remark in remarks:
        click.echo(f"{PROGRAM}: warning: {remark}", err=True)

    tracks = {"output": result.target, "residual": result.residual, "mixture": recording.samples}
    _write([(path, tracks[kind]) for kind, path in paths.items() if path is not None], encodings, recording)
    if as_json:
        options = {"query": query, "steps": steps, "solver": solver, "seed": seed}
        answer = _answer(paths, recording, separator, result) | options | {"warnings": remarks}
        click.echo(json.dumps(answer))
    else:
        click.echo(_closing_line(output, separator, result))


def _argument(name: str) -> click.Parameter:
    return next(parameter for parameter in command.params if parameter.name == name)


def _list_backends(as_json: bool) -> None:
    from .backends import BACKENDS, report

    reports = [report(name) for name in BACKENDS]
    if as_json:
        click.echo(json.dumps([asdict(report) | {"available": report.why_not is None} for report in reports]))
        return
    width = max(map(len, BACKENDS))
    for found in reports:
        able = ", ".join(f"{precision} is {words}" for precision, words in found.precisions.items())
        state = f"available; {able}" if found.why_not is None else f"not available; {found.why_not}"
        click.echo(f"{found.name:{width}}  {state}")


def main() -> None:
    """Entry point of the console script."""
    run(command, PROGRAM, "There is not enough memory for this recording: give a shorter one.")


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label="separating", file=sys.stderr, show_pos=True) as bar:

        def report(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield report


def _write(tracks: list[tuple[Path, Any]], encodings: dict[Path, Encoding], recording: Recording) -> None:
    from .audio import write_audio
    from .outputs import replacing

    with replacing([path for path, _ in tracks]) as temporary:
        for (path, samples), file in zip(tracks, temporary, strict=True):
            write_audio(file, samples, recording.sample_rate, encodings[path], path)


def _answer(
    paths: dict[str, Path | None], recording: Recording, separator: Separator, result: Separation
) -> dict[str, Any]:
    pipeline = separator.pipeline
    return {
        **{kind: None if path is None else str(path) for kind, path in paths.items()},
        "sample_rate": recording.sample_rate,
        "channels": recording.samples.shape[1],
        "seconds": len(recording.samples) / recording.sample_rate,
        "bundle": pipeline.manifest.name,
        "backend": pipeline.backend.name,
        "description": pipeline.backend.description,
        "precision": pipeline.precision,
        "timings": result.timings,
        "real_time_factor": result.real_time_factor,
    }


def _closing_line(output: Path, separator: Separator, result: Separation) -> str:
    stages = ", ".join(
        f"{stage.replace('_', ' ')} {seconds:.2f} s" for stage, seconds in result.timings.items()
    )
    factor = f"real-time factor {result.real_time_factor:.3f}"
    return f"{shown(output)}: {stages}; {factor}; {separator.pipeline.backend.description}"


if __name__ == "__main__":
    main()
