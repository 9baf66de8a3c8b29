"""Jobs from a table: CSV with a line of names, or JSON lines."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from flowsep_runtime.app.jobs import Job, check_places, default_place
from flowsep_runtime.app.recordings import listed
from flowsep_runtime.audio.reading import Span
from flowsep_runtime.errors import OptionError, shown


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
    rows = list(_rows(table))
    if not rows:
        raise OptionError(f"{shown(table)} has no row: give one for each recording and query.")
    sources = [table.parent / _text(row, "recording", where) for row, where in rows]
    wanted: dict[Job, None] = {}
    for number, (recording, (row, where)) in enumerate(zip(listed(sources), rows, strict=True), 1):
        query = _text(row, "query", where)
        if row.get("output"):
            path = (folder or table.parent) / _text(row, "output", where)
        else:
            path = default_place(recording, query, number, folder, name)
        start, duration = _seconds(row, "start", where) or 0.0, _seconds(row, "duration", where)
        if duration == 0:
            raise OptionError(f"{where}: 'duration' is 0: leave it out for all of the rest.")
        is_done = not force and path.exists()
        results = ((query, path),)
        outputs, done = ((), results) if is_done else (results, ())
        wanted[Job(recording.path, outputs, done, span=Span(start, duration), makes_folders=True)] = None
    check_places(path for job in wanted for _, path in (*job.outputs, *job.done) if path is not None)
    return list(wanted)


def _rows(table: Path) -> Iterator[tuple[Mapping[str, object], str]]:
    """Rows, and how a message names them."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OptionError(f"{shown(table)} cannot be read: {error.strerror}.") from None
    except ValueError:  # no UTF-8, or a NUL in the name
        raise OptionError(f"{shown(table)} is not UTF-8 text: give a table of CSV or JSON lines.") from None
    lines = text.splitlines(keepends=True)
    if not text.lstrip().startswith("{"):
        reader = csv.DictReader(lines, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
        try:
            missing = [name for name in ("recording", "query") if name not in (reader.fieldnames or ())]
            if missing:
                raise OptionError(f"{shown(table)} has no column {missing[0]!r}: name it in the first line.")
            for row in reader:
                yield row, f"{shown(table)} line {reader.line_num}"
        except csv.Error as error:
            raise OptionError(f"{shown(table)} line {reader.line_num} is not CSV: {error}.") from None
        return
    for number, line in enumerate(lines, 1):
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
