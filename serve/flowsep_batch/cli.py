"""`flowsep-batch`: many recordings, on this machine or a cluster."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from flowsep_batch.cluster import LOCAL, connected, device_options, devices, set_up_ray
from flowsep_runtime import __version__
from flowsep_runtime.app.console import (
    FILE,
    SETTINGS,
    backend_options,
    bundle_option,
    clip_mode_option,
    only_one,
    run,
    separation_options,
)
from flowsep_runtime.errors import OptionError
from flowsep_runtime.options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flowsep_runtime.audio.clipping import ClipMode
    from flowsep_runtime.options import OptionFields

PROGRAM = "flowsep-batch"
WITHOUT_MEMORY = "There is not enough memory for the names of all recordings: give the folders one by one."


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.argument("source", required=False)
@click.option("--query", "queries", multiple=True, help="Sound to separate; may be repeated.")
@click.option(
    "--remove", metavar="QUERY", multiple=True, callback=only_one, help="Separate everything but this sound."
)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FOLDER",
    help="Folder for the results, which keep the folders of SOURCE. Existing results are not computed again.",
)
@click.option(
    "--table",
    type=FILE,
    help="Table (CSV or JSON lines) with columns recording, query and, optionally, output, start, duration.",
)
@click.option(
    "--name",
    metavar="TEMPLATE",
    help="Template for the names of the results, made of {folder}, {stem}, {ext}, {query} and {number}.  "
    "[default: {folder}/{stem}.{query}]",
)
@click.option("--report", metavar="FILE", help="Write a row for each result; .parquet or .jsonl.")
@click.option(
    "--address",
    envvar="RAY_ADDRESS",
    default=LOCAL,
    help="Ray cluster: an address, auto for the one of this machine, or local for a new one here.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Number of workers.  [default: one for each GPU, or for each node]",
)
@device_options("worker")
@separation_options
@bundle_option
@backend_options
@clip_mode_option
@click.option("--force", is_flag=True, help="Make existing results again.")
@click.version_option(__version__, prog_name=PROGRAM)
def command(
    source: str | None,
    queries: tuple[str, ...],
    remove: str | None,
    output: str,
    table: Path | None,
    name: str | None,
    report: str | None,
    address: str,
    workers: int | None,
    cpus: int | None,
    gpus: float | None,
    bundle: str | None,
    backend: str,
    precision: Literal["exact", "fast", "auto"],
    threads: int | None,
    clip_mode: ClipMode,
    force: bool,
    **options: Unpack[OptionFields],
) -> None:
    """Separate the sound that each --query names from the recordings of SOURCE: a folder or a file, here
    or at an address such as s3://bucket/folder.

    \b
    flowsep-batch recordings --query "dog barking" --output out
    flowsep-batch s3://bucket/in --query rain --output s3://bucket/out --address auto
    """
    set_up_ray(address)
    # Imported here, so that --help answers at once.
    try:
        from flowsep_batch.dispatch import Dispatch
        from flowsep_batch.progress import Progress
        from flowsep_batch.report import Report
        from flowsep_batch.tasks import Order, checked_queries, count
        from flowsep_batch.work import Settings
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("flowsep_batch", "flowsep_runtime"):
            raise
        raise OptionError("Batches need Ray, run: pip install 'flowsep-engine[cluster]'.") from None
    from flowsep_runtime.app.jobs import queries_or_removed
    from flowsep_runtime.app.naming import check_template

    queries = queries_or_removed(queries, remove)
    if table is not None and queries:
        raise OptionError("--table takes queries from its rows: leave out --query and --remove.")
    if table is None and source is None:
        raise click.MissingParameter(param_hint="'SOURCE'", param_type="argument")
    if table is None and not queries:
        raise click.MissingParameter(param_hint="'--query'", param_type="option")
    if name is not None:
        check_template(name)
    wanted = Options(**options)
    order = Order(
        None if source is None else _absolute(source),
        checked_queries(queries),
        _absolute(output),
        None if table is None else table.absolute(),
        remove is not None,
        name,
    )
    rows = Report(report)
    total = count(order)
    with _witness(order.output) as witness, connected(address):
        places = devices(backend, cpus, gpus, workers)
        settings = Settings(
            order.output,
            None if witness is None else witness.name,
            bundle if bundle is None or not Path(bundle).is_dir() else str(Path(bundle).absolute()),
            backend,
            precision,
            threads or (cpus if places[0].gpus == 0 else None),
            wanted,
            clip_mode,
            force,
        )
        with rows:
            progress = Progress(PROGRAM, total)
            for done in Dispatch(settings, places, progress.say).rows(order.tasks()):
                if witness is not None:
                    witness.touch()  # it would else count as abandoned after a day
                progress.add(done)
                rows.add(done)
    click.echo(progress.summary())
    if progress.counts["failed"]:
        failures = f"{progress.counts['failed']} of {progress.counts.total()} results failed"
        click.echo(f"{PROGRAM}: {failures}.", err=True)
        click.get_current_context().exit(1)


def _absolute(address: str) -> str:
    """An address that says the same in every process."""
    if address.startswith("file://"):
        address = address.removeprefix("file://")
    return address if "://" in address else os.path.abspath(address)


@contextmanager
def _witness(output: str) -> Iterator[Path | None]:
    """A file in the folder for results as long as the block lasts: workers that do not see it
    would write elsewhere. None if the folder is not on a disk here."""
    from flowsep_runtime.app.outputs import make_folder
    from flowsep_runtime.errors import OutputError, shown

    if "://" in output:
        yield None
        return
    folder = Path(output)
    make_folder(folder)
    file = folder / f".flowsep-{secrets.token_hex(6)}.tmp"
    try:
        file.touch()
    except OSError as error:
        raise OutputError(f"{shown(folder)} cannot be written: {error.strerror}.") from None
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def main() -> None:
    """Entry point of the console script."""
    run(command, PROGRAM, WITHOUT_MEMORY)


if __name__ == "__main__":
    main()
