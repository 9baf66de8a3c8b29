"""Jobs of the command line: recordings, queries, and the place of each result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowsep_runtime.app.outputs import default_output
from flowsep_runtime.audio.writing import CONTAINERS
from flowsep_runtime.errors import OptionError, QueryError, shown

STANDARD = "-"  # standard input or output, by the custom of command lines


@dataclass(frozen=True)
class Job:
    """One recording and what is to be made of it.

    Attributes:
        source: None is standard input.
        outputs: Query and its file; None is standard output.
        done: Query and file of results that are there from an earlier run, and stay.
        removes: True if the results are the recording without the sounds.
    """

    source: Path | None
    outputs: tuple[tuple[str, Path | None], ...]
    done: tuple[tuple[str, Path], ...] = ()
    removes: bool = False

    @property
    def name(self) -> str:
        """The recording in messages."""
        return "standard input" if self.source is None else shown(self.source)


def sources_and_queries(
    arguments: Sequence[str], queries: Sequence[str]
) -> tuple[list[Path | None], list[str]]:
    """Tells recordings from queries.

    Args:
        arguments: With `queries`, all are recordings; without, the first is the recording and the others
            are queries.
        queries: Those that were given as options.

    Returns:
        Recordings (None is standard input) and queries; a list may be empty.

    Raises:
        OptionError: If an argument that counts as a query is an audio file that is there, or standard input
            is named twice.
        QueryError: If a query is empty.
    """
    files = list(arguments) if queries else list(arguments[:1])
    asked = list(queries) or list(arguments[1:])
    for query in asked:
        if not query.strip():
            raise QueryError("The query is empty: say in a few words what to separate.")
        # The shell made several files of mix*.wav.
        if not queries and Path(query).suffix.lower() in CONTAINERS and _is_there(query):
            raise OptionError(f"{shown(query)} is a file and no query: give queries with --query.")
    if files.count(STANDARD) > 1:
        raise OptionError("Standard input can be read only once: give - one time.")
    sources = [None if file == STANDARD else Path(file) for file in files]
    # Said twice is meant once.
    return list(dict.fromkeys(sources)), list(dict.fromkeys(asked))


def plan(
    sources: Sequence[Path | None],
    queries: Sequence[str],
    output: str | None = None,
    folder: Path | None = None,
    force: bool = False,
    removes: bool = False,
) -> list[Job]:
    """The work to be done, and where its results go.

    Several recordings or queries, or an output folder, make a batch: there, results of an earlier run are
    left as they are, and a recording that is itself such a result is left out (`*.wav` finds it the second
    time).

    Args:
        sources: Recordings; None is standard input.
        queries: What to separate from each.
        output: The one result's file, or "-".
        folder: Where results go; None is beside the recording.
        force: Whether results of an earlier run are made again.
        removes: True if the results are the recordings without what the queries name.

    Raises:
        OptionError: If one file would be written twice, or is a recording, or `output` cannot be.
    """
    single = len(sources) == 1 and len(queries) == 1
    if output is not None and not single:
        raise OptionError("--output names one file: give --output-dir for several recordings or queries.")
    if output is not None and folder is not None:
        raise OptionError("--output and --output-dir exclude each other: leave one out.")
    if output == STANDARD or (sources == [None] and single and output is None and folder is None):
        return [Job(sources[0], ((queries[0], None),), removes=removes)]
    if output is not None:
        return [Job(sources[0], ((queries[0], Path(output)),), removes=removes)]
    if None in sources and folder is None:
        raise OptionError("Results of standard input need a place: give --output or --output-dir.")

    label = "without {}" if removes else "{}"
    named = {
        (source, query): _place(source, label.format(query), folder)
        for source in sources
        for query in queries
    }
    results = {path.resolve(): path for path in named.values()}
    if len(results) < len(named):
        paths = [path.resolve() for path in named.values()]
        twice = next(path for path in named.values() if paths.count(path.resolve()) > 1)
        raise OptionError(f"Two outputs would go to {shown(twice)}: give each its own name.")
    batch = folder is not None or not single
    jobs = []
    for source in sources:
        if batch and source is not None and source.resolve() in results:
            continue
        wanted = [(query, named[source, query]) for query in queries]
        # Results appear whole or not at all, so one that is there is complete.
        done = [pair for pair in wanted if batch and not force and pair[1].exists()]
        outputs = tuple(pair for pair in wanted if pair not in done)
        jobs.append(Job(source, outputs, tuple(done), removes))
    return jobs


def _place(source: Path | None, label: str, folder: Path | None) -> Path:
    known = source is not None and source.suffix.lower() in CONTAINERS
    suffix = source.suffix if source is not None and known else ".wav"
    path = default_output(source or Path("standard-input"), label, suffix)
    return path if folder is None else folder / path.name


def _is_there(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False
