"""Jobs of the command line: recordings, queries, and the place of each result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowsep_runtime.app.made import made_by
from flowsep_runtime.app.naming import BESIDE, MIRRORED, named
from flowsep_runtime.app.recordings import Recording
from flowsep_runtime.audio.reading import WHOLE, Span
from flowsep_runtime.audio.writing import CONTAINERS
from flowsep_runtime.errors import OptionError, QueryError, shown

STANDARD = "-"  # standard input or output, by the custom of command lines
#: Other names of it, which would else stand for files beside which results go.
INPUTS = (STANDARD, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
OUTPUTS = (STANDARD, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


@dataclass(frozen=True)
class Job:
    """One recording and what is to be made of it.

    Attributes:
        source: None is standard input.
        outputs: Query and its file; None is standard output.
        done: Query and file of results that are there from an earlier run, and stay.
        removes: True if the results are the recording without the sounds.
        span: The part of the recording that is wanted.
        makes_folders: True if the folders of the results are made where they are missing.
    """

    source: Path | None
    outputs: tuple[tuple[str, Path | None], ...]
    done: tuple[tuple[str, Path], ...] = ()
    removes: bool = False
    span: Span = WHOLE
    makes_folders: bool = False

    @property
    def name(self) -> str:
        """The recording in messages."""
        return "standard input" if self.source is None else shown(self.source)


def queries_or_removed(queries: tuple[str, ...], removed: str | None) -> tuple[str, ...]:
    """The queries of `--query` or the one of `--remove`.

    Raises:
        OptionError: If both are given.
    """
    if removed is None:
        return queries
    if queries:
        raise OptionError("--remove and --query exclude each other: leave one out.")
    return (removed,)


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
        if not queries and Path(query).suffix.lower() in CONTAINERS and is_there(query):
            raise OptionError(f"{shown(query)} is a file and no query: give queries with --query.")
    sources = [None if file in INPUTS else Path(file) for file in files]
    if sources.count(None) > 1:
        raise OptionError("Standard input can be read only once: give - one time.")
    # Said twice is meant once.
    return list(dict.fromkeys(sources)), list(dict.fromkeys(asked))


def plan(
    recordings: Sequence[Recording],
    queries: Sequence[str],
    output: str | None = None,
    folder: Path | None = None,
    force: bool = False,
    removes: bool = False,
    name: str | None = None,
    span: Span = WHOLE,
) -> list[Job]:
    """The work to be done, and where its results go.

    Results of an earlier run are left as they are. Several recordings or queries, or an output folder, make a
    batch: there, every file in a result's place counts as one, and a recording that is itself a result is
    left out (`*.wav` finds it the second time). Elsewhere only a file with a mark (`made.py`) does, and never
    `output`: it may be of another recording, which the mark does not tell.

    Args:
        recordings: Where the sound comes from.
        queries: What to separate from each.
        output: The one result's file, or "-".
        folder: Where results go; None is beside the recording.
        force: Whether results of an earlier run are made again.
        removes: True if the results are the recordings without what the queries name.
        name: A template for the names of results.
        span: The part that is wanted of each.

    Raises:
        OptionError: If one file would be written twice, or is a recording, or `output` cannot be.
    """
    single = len(recordings) == 1 and len(queries) == 1 and not recordings[0].is_found
    if output is not None and not single:
        raise OptionError("--output names one file: give --output-dir for several recordings or queries.")
    if output is not None and folder is not None:
        raise OptionError("--output and --output-dir exclude each other: leave one out.")
    if output is not None and name is not None:
        raise OptionError("--output and --name exclude each other: leave one out.")
    is_piped = single and recordings[0].path is None and output is None and folder is None
    if output in OUTPUTS or is_piped:
        return [Job(recordings[0].path, ((queries[0], None),), removes=removes, span=span)]
    if output is not None:
        return [Job(recordings[0].path, ((queries[0], Path(output)),), removes=removes, span=span)]
    if folder is None and any(recording.path is None for recording in recordings):
        raise OptionError("Results of standard input need a place: give --output or --output-dir.")

    label = "without {}" if removes else "{}"
    places = {
        (recording, query): default_place(recording, label.format(query), number, folder, name)
        for recording in recordings
        for number, query in enumerate(queries, 1)
    }
    results = check_places(places.values())
    batch = folder is not None or not single
    jobs = []
    for recording in recordings:
        source = recording.path
        if batch and source is not None and source.resolve() in results:
            continue
        wanted = [(query, places[recording, query]) for query in queries]
        # Results appear whole or not at all, so one that is there is complete.
        is_done = Path.exists if batch else made_by
        done = [pair for pair in wanted if not force and is_done(pair[1])]
        outputs = tuple(pair for pair in wanted if pair not in done)
        makes_folders = folder is not None or name is not None
        jobs.append(Job(source, outputs, tuple(done), removes, span, makes_folders))
    return jobs


def default_place(
    recording: Recording, label: str, number: int, folder: Path | None, template: str | None
) -> Path:
    """The place of a result that was given no name of its own.

    In the folder for results, recordings that were found keep their folders; those that were named do only
    if a template says so. Without that folder, results lie beside their recordings; a template with
    `{folder}` counts from the folder that all of them share.
    """
    if folder is not None:
        return folder / named(
            template or (MIRRORED if recording.is_found else BESIDE), recording, label, number
        )
    base = recording.root if template is not None and "{folder}" in template else _beside(recording)
    return base / named(template or BESIDE, recording, label, number)


def _beside(recording: Recording) -> Path:
    return Path() if recording.path is None else recording.path.parent


def check_places(paths: Iterable[Path]) -> set[Path]:
    """Makes sure that no file would be written twice.

    Returns:
        The paths, resolved.

    Raises:
        OptionError: If one would be.
    """
    seen: set[Path] = set()
    for path in paths:
        place = path.resolve()
        if place in seen:
            raise OptionError(
                f"Two outputs would go to {shown(path)}: tell them apart with --name, by {{folder}}, "
                "{stem}, {ext}, {query} or {number}."
            )
        seen.add(place)
    return seen


def is_there(name: str) -> bool:
    """True for the name of a file or folder that exists."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False
