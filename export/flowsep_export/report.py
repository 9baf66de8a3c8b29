"""Terminal output of the export: progress, and the table of errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from flowsep_runtime.bundle.manifest import Manifest, StageEntry


@contextmanager
def export_progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr, if that is a terminal, for `export.export_bundle`."""
    columns = (TextColumn("{task.description:28}"), BarColumn(), TimeElapsedColumn())
    with _bar(*columns) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda doing, done: bar.update(task, description=doing, completed=done)


@contextmanager
def download_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if that is a terminal, for `download.published_checkpoint`."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with _bar(*columns) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, size: bar.update(task, completed=done, total=size)


def _bar(*columns: Any) -> Progress:
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def error_rows(stages: Mapping[str, StageEntry]) -> list[tuple[str, ...]]:
    """Stage, then relative error and SNR on random input and on the recording, then the tolerance."""
    rows: list[tuple[str, ...]] = []
    for name, entry in stages.items():
        error = entry.error
        cells = (
            _number(error.relative, ".1e"),
            _number(error.snr_db, ".1f"),
            _number(error.real_relative, ".1e"),
            _number(error.real_snr_db, ".1f"),
        )
        rows.append((name, *cells, f"{error.tolerance:.1e}"))
    return rows


COLUMNS = ("stage", "error, random", "dB", "error, recording", "dB", "tolerance")


def print_report(manifest: Manifest) -> None:
    """The table of errors and the ranges, on stdout: boxed on a terminal, plain in a pipe."""
    print_errors(manifest.stages)
    for graph, entry in manifest.ranges.items():
        print(
            f"largest half-precision value in {graph}: {entry.largest:.3g} at {entry.tensor}, "
            f"limit {entry.limit:.3g}"
        )


def print_errors(stages: Mapping[str, StageEntry]) -> None:
    """The table of errors alone."""
    rows = error_rows(stages)
    if sys.stdout.isatty():
        table = Table(*COLUMNS)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
        for row in (COLUMNS, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
