"""Jobs from a table: CSV with a line of names, or JSON lines."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from flowsep_runtime.app.jobs import Job, check_places, default_place
from flowsep_runtime.app.recordings import listed
from flowsep_runtime.audio.reading import Span
from flowsep_runtime.errors import OptionError, shown


@dataclass(frozen=True)
class Row:
    """A row of a table: a recording, its query, the name of the result if it has one, and the part that is
    wanted."""

    recording: str
    query: str
    output: str | None
    span: Span


def jobs_of_table(
    table: Path, folder: Path | None = None, force: bool = False, name: str | None = None
) -> list[Job]:
    """The jobs of a table, one a row.

    A row has a `recording`, relative to the table's folder, and a `query`; it may have an `output`, relative
    to the folder for results, a `start` and a `duration` in seconds. Other columns are not looked at.

    Args:
        table: The file.
        folder: Where results go; None is the table's folder for those that have a name, and the recording's
            for the others.
        force: Whether results of an earlier run are made again.
        name: A template for those that have no name.

    Raises:
        OptionError: With the line of the first row that is wrong, or if there is none, or two rows would
            write one file.
    """
    found = list(rows(table))
    if not found:
        raise OptionError(f"{shown(table)} has no row: give one for each recording and query.")
    sources = [table.parent / row.recording for row in found]
    wanted: dict[Job, None] = {}
    for number, (recording, row) in enumerate(zip(listed(sources), found, strict=True), 1):
        if row.output is not None:
            path = (folder or table.parent) / row.output
        else:
            path = default_place(recording, row.query, number, folder, name)
        is_done = not force and path.exists()
        results = ((row.query, path),)
        outputs, done = ((), results) if is_done else (results, ())
        wanted[Job(recording.path, outputs, done, span=row.span, makes_folders=True)] = None
    check_places(path for job in wanted for _, path in (*job.outputs, *job.done) if path is not None)
    return list(wanted)


def rows(table: Path) -> Iterator[Row]:
    """The rows of a table, one after the other, in the memory of one.

    Raises:
        OptionError: With the line of the first row that is wrong, when it is reached.
    """
    for row, where in _raw_rows(table):
        recording, query = _text(row, "recording", where), _text(row, "query", where)
        output = _text(row, "output", where) if row.get("output") else None
        start, duration = _seconds(row, "start", where) or 0.0, _seconds(row, "duration", where)
        if duration == 0:
            raise OptionError(f"{where}: 'duration' is 0: leave it out for all of the rest.")
        yield Row(recording, query, output, Span(start, duration))


def _raw_rows(table: Path) -> Iterator[tuple[Mapping[str, object], str]]:
    """Rows as they stand there, and how a message names them."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            # A pipe is read once: the lines up to the first that says what it is go before the others.
            head: list[str] = []
            while not (head and head[-1].strip()) and (line := file.readline()):
                head.append(line)
            lines = chain(head, file)
            is_json = head and head[-1].lstrip().startswith("{")
            yield from _json_rows(lines, table) if is_json else _csv_rows(lines, table)
    except OSError as error:
        raise OptionError(f"{shown(table)} cannot be read: {error.strerror}.") from None
    except OptionError:  # a ValueError too
        raise
    except ValueError:  # no UTF-8, or a NUL in the name
        raise OptionError(f"{shown(table)} is not UTF-8 text: give a table of CSV or JSON lines.") from None


def _csv_rows(file: Iterable[str], table: Path) -> Iterator[tuple[Mapping[str, object], str]]:
    reader = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
    try:
        missing = [name for name in ("recording", "query") if name not in (reader.fieldnames or ())]
        if missing:
            raise OptionError(f"{shown(table)} has no column {missing[0]!r}: name it in the first line.")
        for row in reader:
            yield row, f"{shown(table)} line {reader.line_num}"
    except csv.Error as error:
        raise OptionError(f"{shown(table)} line {reader.line_num} is not CSV: {error}.") from None


def _json_rows(file: Iterable[str], table: Path) -> Iterator[tuple[Mapping[str, object], str]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{shown(table)} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{where} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise OptionError(f"{where} is not a JSON object: write one object a line.")
        yield row, where


def _text(row: Mapping[str, object], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise OptionError(f"{where}: {name!r} is missing or not text.")
    return value


def _seconds(row: Mapping[str, object], name: str, where: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise OptionError(f"{where}: {name!r} is not a number of seconds.")
    return seconds
