"""The report of a run: a row for each result, as Parquet or JSON lines."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from flowsep_batch.stores import Store, split
from flowsep_batch.work import Row
from flowsep_runtime.app.outputs import make_folder, replacing
from flowsep_runtime.errors import OptionError, shown

LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
GROUP = 1024  # rows that are in memory before they are written
NUMBERS = ("seconds", "real_time_factor", "wall_seconds")


class Report:
    """Takes rows as they come; a context manager. The file appears at the end, whole, also if the run was
    interrupted, and takes the place of that of an earlier run."""

    def __init__(self, address: str | None) -> None:
        """Looks at the address.

        Args:
            address: The file, local or not; None keeps no report.

        Raises:
            OptionError: If its extension is none of a report, or its folder cannot be made.
        """
        self._rows: list[Row] = []
        self._parquet: Any = None
        self._address = address
        if address is None:
            return
        folder, self._name = split(address)
        self._store = Store(folder)
        self._suffix = Path(address).suffix.lower()
        if self._suffix not in (PARQUET, *LINES):
            raise OptionError(f"{shown(address)} is no report: end it with {PARQUET} or {LINES[0]}.")
        if self._suffix == PARQUET and find_spec("pyarrow") is None:
            raise OptionError(
                f"{shown(address)} needs pyarrow: pip install 'flowsep-engine[cluster]', or end it with "
                f"{LINES[0]}."
            )
        if self._store.local is not None:
            make_folder(self._store.local)

    def __enter__(self) -> Report:
        if self._address is not None:
            self._room = tempfile.TemporaryDirectory(prefix="flowsep-report-")
            self._file = Path(self._room.name, self._name)
            self._file.touch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._address is None:
            return
        with self._room:
            self._flush()
            if self._parquet is not None:
                self._parquet.close()
            if self._store.local is None:
                self._store.put(self._file, self._name)
            else:
                with replacing([self._store.local / self._name], keep=False) as (temporary,):
                    shutil.copyfile(self._file, temporary)

    def add(self, rows: Sequence[Row]) -> None:
        """Appends rows."""
        if self._address is not None:
            self._rows += rows
            if len(self._rows) >= GROUP:
                self._flush()

    def _flush(self) -> None:
        # A name that is no text has broken characters, which no file of text takes.
        rows = [
            {
                name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
                for name, value in asdict(row).items()
            }
            for row in self._rows
        ]
        self._rows.clear()
        if self._suffix != PARQUET:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        import pyarrow
        from pyarrow import parquet

        schema = pyarrow.schema(
            [
                (each.name, pyarrow.float64() if each.name in NUMBERS else pyarrow.string())
                for each in fields(Row)
            ]
        )
        if self._parquet is None:
            self._parquet = parquet.ParquetWriter(self._file, schema)
        self._parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
