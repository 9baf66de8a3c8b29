"""`flowsep-run`: separates what sentences name from recordings."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from flowsep_runtime import __version__
from flowsep_runtime.app.console import (
    backend_options,
    is_closed,
    one_line,
    run,
    separation_options,
    unexpected,
)
from flowsep_runtime.errors import FlowSepError, FlowSepWarning, OptionError, shown
from flowsep_runtime.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flowsep_runtime.app.file_runs import Extras, Report
    from flowsep_runtime.app.jobs import Job
    from flowsep_runtime.audio.clipping import ClipMode
    from flowsep_runtime.audio.reading import AudioReader
    from flowsep_runtime.options import OptionFields, ResolvedOptions
    from flowsep_runtime.separation.run import Progress
    from flowsep_runtime.separator import Separator

PROGRAM = "flowsep-run"
WITHOUT_MEMORY = "There is not enough memory for this recording: add --low-memory, or give a shorter one."


@click.command(name=PROGRAM, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("arguments", nargs=-1, metavar="MIXTURE [QUERY]...")
@click.option(
    "--query",
    "queries",
    multiple=True,
    help="What to separate, as often as wanted; every argument is then a recording.",
)
@click.option(
    "--remove",
    metavar="QUERY",
    help="Give everything but this sound; every argument is then a recording.",
)
@click.option(
    "-o",
    "--output",
    help="Where the sound goes; the extension is the format; - is standard output.  "
    "[default: mix.dog-barking.wav beside mix.wav]",
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Folder for the results, made if it is missing; what is there already is not done again.",
)
@separation_options
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Folder that flowsep-export wrote.  [default: the model that ships with the package]",
)
@backend_options
@click.option(
    "--low-memory", is_flag=True, help="Keep one stage's graphs at a time, and load them again as needed."
)
@click.option(
    "--no-cache",
    is_flag=True,
    envvar="FLOWSEP_NO_CACHE",
    help="Neither use nor keep encoded queries, compiled graphs and results of checks.",
)
@click.option("--list-backends", is_flag=True, help="List the backends and their abilities, and exit.")
@click.option("--demo", is_flag=True, help="Write an example recording and separate it, in ./flowsep-demo.")
@click.option("--residual", type=click.Path(path_type=Path), help="Also write what is left of the mixture.")
@click.option(
    "--save-mixture", type=click.Path(path_type=Path), help="Also write the mixture, as it was read."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Also draw the spectrograms of mixture, target and residual.",
)
@click.option(
    "--clip-mode",
    type=click.Choice(["clamp", "rescale", "float"]),
    default="clamp",
    show_default=True,
    help="Samples beyond full scale: cut off; or the result made quieter; or written in floating point.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every result as one JSON object a line.")
@click.option("--force", is_flag=True, help="Overwrite outputs that exist.")
@click.version_option(__version__, prog_name=PROGRAM)
def command(
    arguments: tuple[str, ...],
    queries: tuple[str, ...],
    remove: str | None,
    output: str | None,
    output_dir: Path | None,
    bundle: Path | None,
    backend: str,
    precision: Literal["exact", "fast", "auto"],
    threads: int | None,
    low_memory: bool,
    no_cache: bool,
    list_backends: bool,
    demo: bool,
    residual: Path | None,
    save_mixture: Path | None,
    plot: Path | None,
    clip_mode: ClipMode,
    as_json: bool,
    force: bool,
    **options: Unpack[OptionFields],
) -> None:
    """Separate from MIXTURE (an audio file, or - for standard input) the sounds that each QUERY names, such
    as "dog barking".

    \b
    flowsep-run mix.wav "dog barking" "rain"
    flowsep-run *.wav --query "dog barking" --output-dir out
    """
    if list_backends:
        _list_backends(as_json)
        return
    # Imported here, so that --help answers at once.
    from flowsep_runtime.app.demo import DEMO_QUERIES, write_demo
    from flowsep_runtime.app.file_runs import Extras
    from flowsep_runtime.app.jobs import plan, sources_and_queries
    from flowsep_runtime.app.outputs import make_folder
    from flowsep_runtime.app.plot import check_plot

    if remove is not None:
        if queries:
            raise OptionError("--remove and --query exclude each other: leave one out.")
        queries = (remove,)
    if demo:
        output_dir = output_dir or Path("flowsep-demo")
        make_folder(output_dir)
        arguments, queries = (str(write_demo(output_dir)),), queries or arguments or DEMO_QUERIES
    sources, asked = sources_and_queries(arguments, queries)
    if not sources:
        raise click.MissingParameter(param_hint="'MIXTURE'", param_type="argument")
    if not asked:
        raise click.MissingParameter(param_hint="'QUERY'", param_type="argument")
    wanted = Options(**options)
    if plot is not None:
        check_plot(plot)
    extras = Extras(residual, save_mixture, plot, clip_mode)
    for option, path in (("--residual", residual), ("--save-mixture", save_mixture), ("--plot", plot)):
        if path is not None and len(sources) > 1:
            raise OptionError(f"{option} names one file: give one recording.")
    if plot is not None and len(asked) > 1:
        raise OptionError("--plot shows one result: give one query.")
    jobs = plan(sources, asked, output, output_dir, force, removes=remove is not None)
    if output_dir is not None:
        make_folder(output_dir)

    @cache
    def model() -> tuple[Separator, ResolvedOptions]:
        from flowsep_runtime.separator import Separator

        separator = Separator.load(bundle, backend, precision, threads, low_memory, not no_cache)
        pipeline = separator.pipeline
        return separator, wanted.resolved(pipeline.manifest.model, pipeline.precision)

    to_stdout = any(path is None for job in jobs for _, path in job.outputs)
    if to_stdout and is_closed(sys.stdout):
        raise OptionError("Standard output is closed: give --output.")
    if to_stdout and sys.stdout.isatty():
        raise OptionError("Standard output is a terminal: send it to a program or a file, or give --output.")
    say = _Speaker(as_json, to_stdout, several=len(jobs) > 1)
    if len(jobs) == 1 and not jobs[0].done:
        _separate(jobs[0], extras, model, say, force)
        return
    if any(job.outputs for job in jobs):
        with _told():  # what is wrong with it is wrong for all
            model()
    failures: list[str] = []
    for job in jobs:
        try:
            say.done_before(job)
            if job.outputs:
                _separate(job, extras, model, say, force)
        except FlowSepError as error:
            failures.append(_naming(job, str(error)))
        except MemoryError:
            failures.append(_naming(job, WITHOUT_MEMORY))
        except BrokenPipeError:  # nobody listens any more
            raise
        except Exception as error:
            failures.append(_naming(job, unexpected(error)))
    for sentence in failures:
        click.echo(f"{PROGRAM}: {one_line(sentence)}", err=True)
    if failures:
        click.echo(f"{PROGRAM}: {len(failures)} of {len(jobs)} recordings failed.", err=True)
        click.get_current_context().exit(1)


def _naming(job: Job, sentence: str) -> str:
    return sentence if job.name in sentence else f"{job.name}: {sentence}"


def _separate(
    job: Job,
    extras: Extras,
    model: Callable[[], tuple[Separator, ResolvedOptions]],
    say: _Speaker,
    force: bool,
) -> None:
    from flowsep_runtime.app.file_runs import FileRun
    from flowsep_runtime.audio.reading import AudioReader

    with _told(job if say.several else None) as remarks, AudioReader(job.source) as reader:
        file_run = FileRun(job, reader, extras, force)
        separator, options = model()
        with _progress_bar() as progress:
            report = file_run.run(separator, options, progress)
    say.done(job, extras, reader, separator, options, report, remarks)


@contextmanager
def _told(job: Job | None = None) -> Iterator[list[str]]:
    """Says the warnings of the work inside on stderr, with the job's name; the list has them at the end."""
    remarks: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FlowSepWarning)
        yield remarks
    remarks += [str(warning.message) for warning in caught]
    for remark in remarks:
        said = remark if job is None else _naming(job, remark)
        click.echo(f"{PROGRAM}: warning: {one_line(said)}", err=True)


@dataclass(frozen=True)
class _Speaker:
    """Says what was done: in words or as JSON, on stdout unless the sound goes there.

    Attributes:
        several: True if there is more than one recording.
    """

    as_json: bool
    on_stderr: bool
    several: bool

    def done_before(self, job: Job) -> None:
        for _, path in job.done:
            if self.as_json:
                answer = {"input": _path(job.source), "output": str(path), "skipped": True}
                click.echo(json.dumps(answer), err=self.on_stderr)
            else:
                click.echo(f"{shown(path)}: done before; --force does it again", err=self.on_stderr)

    def done(
        self,
        job: Job,
        extras: Extras,
        reader: AudioReader,
        separator: Separator,
        options: ResolvedOptions,
        report: Report,
        remarks: Sequence[str],
    ) -> None:
        from flowsep_runtime.app.memory import peak_memory

        peak = peak_memory()
        if not self.as_json:
            names = ", ".join("standard output" if path is None else shown(path) for _, path in job.outputs)
            stages = [f"{name.replace('_', ' ')} {spent:.2f} s" for name, spent in report.timings.items()]
            parts = [", ".join(stages)] if stages else []
            parts.append(f"real-time factor {report.real_time_factor:.3f}")
            parts.extend([] if peak is None else [f"peak memory {peak / 1e6:.0f} MB"])
            parts.append(separator.pipeline.backend.description)
            click.echo(f"{names}: {'; '.join(parts)}", err=self.on_stderr)
            return
        pipeline = separator.pipeline
        for query, path in job.outputs:
            answer: dict[str, Any] = {
                "input": _path(job.source),
                "output": _path(path),
                "residual": None if extras.residual is None else str(extras.residual),
                "mixture": None if extras.mixture is None else str(extras.mixture),
                "plot": None if extras.plot is None else str(extras.plot),
                "sample_rate": reader.sample_rate,
                "channels": reader.channels,
                "seconds": reader.frames / reader.sample_rate,
                "bundle": pipeline.manifest.name,
                "backend": pipeline.backend.name,
                "description": pipeline.backend.description,
                "precision": pipeline.precision,
                "query": query,
                "removed": job.removes,
                **asdict(options),
                "timings": report.timings,
                "real_time_factor": report.real_time_factor,
                "peak_memory": peak,
                "warnings": list(remarks),
            }
            click.echo(json.dumps(answer), err=self.on_stderr)


def _path(path: Path | None) -> str:
    return "-" if path is None else str(path)


def _list_backends(as_json: bool) -> None:
    from flowsep_runtime.backends import BACKENDS, report

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
    run(command, PROGRAM, WITHOUT_MEMORY)


@contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label="separating", file=sys.stderr, show_percent=True) as bar:

        def report(done: int, total: int | None) -> None:
            bar.length = total or done + 1
            bar.update(done - bar.pos)

        yield report


if __name__ == "__main__":
    main()
