"""Tasks of a batch: recordings, queries, and the names of their results, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowsep_batch.stores import Store, split
from flowsep_runtime.app.naming import BESIDE, MIRRORED, named
from flowsep_runtime.app.recordings import Recording, below, common_folder
from flowsep_runtime.app.table import rows
from flowsep_runtime.audio.reading import WHOLE, Span
from flowsep_runtime.errors import AudioError, OptionError, shown


@dataclass(frozen=True)
class Task:
    """One recording and what is to be made of it.

    Attributes:
        folder: The address of the folder that the recording's name counts from.
        name: The recording.
        outputs: Each query, and the name of its result in the folder for results.
        removes: True if the result is the recording without the sound.
        span: The part of the recording that is wanted.
        is_found: True if the recording was found in a folder, and not named.
    """

    folder: str
    name: str
    outputs: tuple[tuple[str, str], ...]
    removes: bool = False
    span: Span = WHOLE
    is_found: bool = False


@dataclass(frozen=True)
class Order:
    """Everything that says what is to be done; its tasks can be gone through several times, and are never all
    in memory.

    Attributes:
        source: A folder or file; with a table, the folder that its recordings count from, or None for the
            table's own.
        queries: What to separate from each recording; empty with a table.
        output: The folder for results.
        table: A table of recordings and queries.
        removes: True if the results are the recordings without what the query names.
        template: For the names of results; None is that of `flowsep-run`.
    """

    source: str | None
    queries: tuple[str, ...]
    output: str
    table: Path | None = None
    removes: bool = False
    template: str | None = None

    def tasks(self) -> Iterator[Task]:
        """The tasks, in the order of the folders or the table.

        Raises:
            OptionError: If a source or a row is wrong, or two results would have one name.
            AudioError: If the source does not exist.
        """
        template = self.template or MIRRORED
        is_apart = template.startswith("{folder}/") and ".." not in template and self.table is None
        seen: dict[int, int] = {}
        folder = None
        for task in self._of_source() if self.table is None else self._of_table(self.table):
            if is_apart and folder != (folder := os.path.dirname(task.name)):
                seen.clear()  # results of different folders have different names
            names = [os.path.normpath(name) for _, name in task.outputs]
            ours = hash(task)
            if all(seen.get(hash(name)) == ours for name in names):
                continue  # said twice is meant once
            for place, name in enumerate(names):
                if hash(name) in seen or name in names[:place]:
                    raise OptionError(
                        f"Two results would go to {shown(name)}: tell them apart with --name, by {{folder}}, "
                        "{stem}, {ext}, {query} or {number}."
                    )
            seen.update((hash(name), ours) for name in names)
            yield task

    def _of_source(self) -> Iterator[Task]:
        assert self.source is not None
        store = Store(self.source)
        if not store.is_folder():
            base, name = split(self.source)
            if not name or not Store(base).exists(name):
                raise AudioError(f"{shown(store.address)} does not exist.")
            yield self._named(base, name, is_found=False)
            return
        is_empty = True
        for name in store.recordings(Store(self.output)):
            yield self._named(self.source, name, is_found=True)
            is_empty = False
        if is_empty:
            raise OptionError(f"{shown(store.address)} has no recordings in it with a known extension.")

    def _named(self, base: str, name: str, is_found: bool) -> Task:
        path = Path(name)
        recording = Recording(path, folder=str(path.parent), is_found=is_found)
        label = "without {}" if self.removes else "{}"
        template = self.template or (MIRRORED if is_found else BESIDE)
        outputs = tuple(
            (query, _normal(named(template, recording, label.format(query), number)))
            for number, query in enumerate(self.queries, 1)
        )
        return Task(base, name, outputs, self.removes, is_found=is_found)

    def _of_table(self, table: Path) -> Iterator[Task]:
        if table.exists() and not table.is_file():
            raise OptionError(f"{shown(table)} can be read only once: write the table to a file first.")
        base = str(table.parent) if self.source is None else self.source
        root = common_folder({Path(_joined(base, row.recording)).parent for row in rows(table)})
        number = 0
        for number, row in enumerate(rows(table), 1):
            address = _joined(base, row.recording)
            if row.output is None:
                recording = below(root, Path(address), is_found=True)
                name = _normal(named(self.template or MIRRORED, recording, row.query, number))
            else:
                name = _normal(Path(row.output))
            folder, file = split(address)
            yield Task(folder, file, ((row.query, name),), span=row.span)
        if not number:
            raise OptionError(f"{shown(table)} has no row: give one for each recording and query.")


def count(order: Order) -> int:
    """The number of tasks; all of them are looked at, so that what is wrong is said before the work starts.

    Raises:
        FlowSepError: As `Order.tasks`.
    """
    return sum(1 for _ in order.tasks())


def checked_queries(queries: Sequence[str]) -> tuple[str, ...]:
    """The queries, each once.

    Raises:
        QueryError: If one is empty.
    """
    from flowsep_runtime.app.jobs import sources_and_queries

    return tuple(sources_and_queries((), queries)[1])


def _joined(base: str, recording: str) -> str:
    """The address of a table's recording."""
    if "://" in recording:
        return recording
    return f"{base.rstrip('/')}/{recording}" if "://" in base else os.path.abspath(Path(base, recording))


def _normal(name: Path) -> str:
    """A name that stays in the folder for results.

    Raises:
        OptionError: If it does not.
    """
    text = os.path.normpath(name)
    if os.path.isabs(text) or text.startswith(".."):
        raise OptionError(f"{shown(name)} lies outside the folder for results: give a name within it.")
    return Path(text).as_posix()
