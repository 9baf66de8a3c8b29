"""`flowsep-run`: separates the sounds that sentences name from recordings."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from flowsep_runtime import __version__
from flowsep_runtime.app.answers import (
    PROGRAM,
    Speaker,
    naming,
    progress_bar,
    say_backends,
    say_bundles,
    say_prepared,
    told,
)
from flowsep_runtime.app.console import (
    FILE,
    SETTINGS,
    backend_options,
    bundle_option,
    clip_mode_option,
    is_closed,
    one_line,
    only_one,
    run,
    separation_options,
    unexpected,
)
from flowsep_runtime.errors import FlowSepError, OptionError, shown
from flowsep_runtime.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flowsep_runtime.app.file_runs import Extras
    from flowsep_runtime.app.jobs import Job
    from flowsep_runtime.audio.clipping import ClipMode
    from flowsep_runtime.options import OptionFields, ResolvedOptions
    from flowsep_runtime.separator import Separator

WITHOUT_MEMORY = "There is not enough memory for this recording: add --low-memory, or give a shorter one."


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.argument("arguments", nargs=-1, metavar="MIXTURE [QUERY]...")
@click.option(
    "--query",
    "queries",
    multiple=True,
    help="Sound to separate; may be repeated. All arguments are then recordings.",
)
@click.option(
    "--remove",
    metavar="QUERY",
    multiple=True,
    callback=only_one,
    help="Separate everything but this sound. All arguments are then recordings.",
)
@click.option(
    "-o",
    "--output",
    help="Output file; its extension is the format; - is standard output.  "
    "[default: mix.dog-barking.wav beside mix.wav]",
)
@click.option(
    "--output-dir",
    type=FILE,
    help="Folder for the results, made if it is missing. Existing results are not computed again.",
)
@click.option(
    "--name",
    metavar="TEMPLATE",
    help="Template for the names of the results, made of {folder}, {stem}, {ext}, {query} and {number}.  "
    "[default: {stem}.{query}; {folder}/{stem}.{query} in --output-dir, for recordings of a folder]",
)
@click.option(
    "--jobs",
    "table",
    type=FILE,
    help="Table (CSV or JSON lines) with columns recording, query and, optionally, output, start, duration.",
)
@click.option(
    "--start",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Start of the part to separate.",
)
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Length of the part to separate.  [default: up to the end]",
)
@separation_options
@bundle_option
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
@click.option(
    "--prepare",
    is_flag=True,
    help="Load and compile everything for this machine, keep it in the cache, and exit.",
)
@click.option("--list-bundles", is_flag=True, help="List the bundles that are here, and exit.")
@click.option("--demo", is_flag=True, help="Write an example recording and separate it, in ./flowsep-demo.")
@click.option("--residual", type=FILE, help="Also write the rest of the mixture.")
@click.option("--save-mixture", type=FILE, help="Also write the mixture as it was read.")
@click.option("--plot", type=FILE, help="Also draw the spectrograms of mixture, target and residual.")
@clip_mode_option
@click.option("--json", "as_json", is_flag=True, help="Print every result as one JSON object per line.")
@click.option("--force", is_flag=True, help="Overwrite outputs that exist.")
@click.version_option(__version__, prog_name=PROGRAM)
def command(
    arguments: tuple[str, ...],
    queries: tuple[str, ...],
    remove: str | None,
    output: str | None,
    output_dir: Path | None,
    name: str | None,
    table: Path | None,
    start: float,
    duration: float | None,
    bundle: str | None,
    backend: str,
    precision: Literal["exact", "fast", "auto"],
    threads: int | None,
    low_memory: bool,
    no_cache: bool,
    list_backends: bool,
    prepare: bool,
    list_bundles: bool,
    demo: bool,
    residual: Path | None,
    save_mixture: Path | None,
    plot: Path | None,
    clip_mode: ClipMode,
    as_json: bool,
    force: bool,
    **options: Unpack[OptionFields],
) -> None:
    """Separate the sound that each QUERY names, such as "dog barking", from MIXTURE: an audio file, a folder
    of them, or - for standard input. A QUERY of several words needs quotes.

    \b
    flowsep-run mix.wav "dog barking" "rain"
    flowsep-run *.wav --query "dog barking" --output-dir out
    """
    if list_backends:
        say_backends(as_json)
        return
    if list_bundles:
        say_bundles(as_json)
        return
    # Imported here, so that --help answers at once.
    from flowsep_runtime.app.demo import DEMO_QUERIES, write_demo
    from flowsep_runtime.app.file_runs import Extras, check_done
    from flowsep_runtime.app.jobs import INPUTS, is_there, plan, queries_or_removed, sources_and_queries
    from flowsep_runtime.app.naming import check_template
    from flowsep_runtime.app.outputs import make_folder
    from flowsep_runtime.app.plot import check_plot
    from flowsep_runtime.app.recordings import recordings
    from flowsep_runtime.app.table import jobs_of_table
    from flowsep_runtime.audio.reading import Span

    queries = queries_or_removed(queries, remove)
    last = arguments[-1] if arguments else ""
    if remove is not None and len(arguments) > 1 and last not in INPUTS and not is_there(last):
        raise OptionError(f"--remove takes recordings alone, and {shown(last)!r} is no file: leave it out.")
    wanted = Options(**options)

    @cache
    def model() -> tuple[Separator, ResolvedOptions]:
        from flowsep_runtime.separator import Separator

        separator = Separator.load(bundle, backend, precision, threads, low_memory, not no_cache)
        pipeline = separator.pipeline
        return separator, wanted.resolved(pipeline.manifest.model, pipeline.precision)

    if prepare:
        began = time.monotonic()
        with told(), progress_bar("preparing"):
            separator, _ = model()
            separator.warm_up(**options)
            separator.pipeline.load_stage("vocode")  # for results of either kind
        say_prepared(separator, time.monotonic() - began, as_json)
        return
    span = Span(start, duration)
    if name is not None:
        check_template(name)
    if plot is not None:
        check_plot(plot)
    if table is not None:
        for option, given in (
            ("MIXTURE", arguments),
            ("--query and --remove", queries),
            ("--output", output),
            ("--demo", demo),
            ("--start and --duration", span != Span()),
        ):
            if given:
                raise OptionError(f"--jobs takes these from its table: leave out {option}.")
        jobs = jobs_of_table(table, output_dir, force, name)
    else:
        if demo:
            output_dir = output_dir or Path("flowsep-demo")
            make_folder(output_dir)
            arguments, queries = (str(write_demo(output_dir)),), queries or arguments or DEMO_QUERIES
        sources, asked = sources_and_queries(arguments, queries)
        if not sources:
            raise click.MissingParameter(param_hint="'MIXTURE'", param_type="argument")
        if not asked:
            raise click.MissingParameter(param_hint="'QUERY'", param_type="argument")
        with told():
            found = recordings(sources, output_dir)
        jobs = plan(found, asked, output, output_dir, force, remove is not None, name, span)
    extras = Extras(residual, save_mixture, plot, clip_mode)
    for option, path in (("--residual", residual), ("--save-mixture", save_mixture), ("--plot", plot)):
        if path is not None and len(jobs) > 1:
            raise OptionError(f"{option} names one file: give one recording.")
    if plot is not None and any(len(job.outputs) + len(job.done) > 1 for job in jobs):
        raise OptionError("--plot shows one result: give one query.")
    if output_dir is not None:
        make_folder(output_dir)

    to_stdout = any(path is None for job in jobs for _, path in job.outputs)
    if to_stdout and is_closed(sys.stdout):
        raise OptionError("Standard output is closed: give --output.")
    if to_stdout and sys.stdout.isatty():
        raise OptionError("Standard output is a terminal: send it to a program or a file, or give --output.")
    say = Speaker(as_json, to_stdout, several=len(jobs) > 1)
    if len(jobs) == 1 and not jobs[0].done:
        _separate(jobs[0], extras, model, say, force)
        return
    if jobs:
        with told():  # what is wrong with it is wrong for all
            model()
    failures: list[str] = []
    for job in jobs:
        try:
            separator, resolved = model()
            check_done(job, separator.pipeline, resolved, clip_mode)
            say.done_before(job)
            missing = extras if job.outputs or force else extras.missing()
            if job.outputs or missing.files:
                _separate(job, missing, model, say, force)
        except FlowSepError as error:
            failures.append(naming(job, str(error)))
        except MemoryError:
            failures.append(naming(job, WITHOUT_MEMORY))
        except BrokenPipeError:  # nobody listens any more
            raise
        except Exception as error:
            failures.append(naming(job, unexpected(error)))
    for sentence in failures:
        click.echo(f"{PROGRAM}: {one_line(sentence)}", err=True)
    if failures:
        if say.several:
            click.echo(f"{PROGRAM}: {len(failures)} of {len(jobs)} recordings failed.", err=True)
        click.get_current_context().exit(1)


def _separate(
    job: Job,
    extras: Extras,
    model: Callable[[], tuple[Separator, ResolvedOptions]],
    say: Speaker,
    force: bool,
) -> None:
    from flowsep_runtime.app.file_runs import FileRun
    from flowsep_runtime.audio.reading import AudioReader

    with told(job if say.several else None) as remarks, AudioReader(job.source, job.span) as reader:
        file_run = FileRun(job, reader, extras, force)
        separator, options = model()
        with progress_bar() as progress:
            report = file_run.run(separator, options, progress)
    say.done(job, extras, reader, separator, options, report, remarks)


def main() -> None:
    """Entry point of the console script."""
    run(command, PROGRAM, WITHOUT_MEMORY)


if __name__ == "__main__":
    main()
