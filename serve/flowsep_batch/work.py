"""One task through the model: a recording is fetched and separated, and its results are put away."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from flowsep_batch.stores import Store
from flowsep_batch.tasks import Task
from flowsep_runtime.app.console import one_line, unexpected
from flowsep_runtime.app.file_runs import Extras, FileRun, check_done
from flowsep_runtime.app.jobs import Job
from flowsep_runtime.app.made import made_by
from flowsep_runtime.app.outputs import ABANDONED
from flowsep_runtime.audio.clipping import ClipMode
from flowsep_runtime.audio.reading import AudioReader
from flowsep_runtime.backends import Precision
from flowsep_runtime.errors import BackendError, FlowSepError, FlowSepWarning, shown
from flowsep_runtime.options import Options
from flowsep_runtime.separator import Separator

PREFIX = "flowsep-batch-"
WITHOUT_MEMORY = "There is not enough memory for this recording: give fewer workers, or a shorter recording."

State: TypeAlias = Literal["done", "done before", "left out", "failed"]


@dataclass(frozen=True)
class Settings:
    """Everything that holds for all tasks.

    Attributes:
        output: The address of the folder for results.
        witness: The name of a file that lies there as long as the run lasts; None if `output` is elsewhere.
        bundle: As for `Separator.load`, like the next three.
        options: Options of the separation.
        clip_mode: What becomes of samples beyond full scale.
        force: True if results that are there are made again.
    """

    output: str
    witness: str | None = None
    bundle: str | None = None
    backend: str = "auto"
    precision: Precision = "exact"
    threads: int | None = None
    options: Options = field(default_factory=Options)
    clip_mode: ClipMode = "clamp"
    force: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the report: one result, or what stands in its way.

    Attributes:
        file: The recording.
        query: The sound.
        output: The result.
        state: "left out" is a recording that is itself a result of an earlier run.
        seconds: Length of what was separated.
        real_time_factor: Seconds of work for a second of audio, for all queries of the recording.
        wall_seconds: Seconds from its beginning to its end, with reading and writing.
        host: The machine.
        error: A sentence, if it failed.
        warnings: Sentences.
    """

    file: str
    query: str
    output: str
    state: State
    seconds: float | None = None
    real_time_factor: float | None = None
    wall_seconds: float | None = None
    host: str | None = None
    error: str | None = None
    warnings: str = ""


def failed(task: Task, output: str, sentence: str) -> list[Row]:
    """The rows of a task that no worker came to an end with."""
    file, results = _store(task.folder).at(task.name), _store(output)
    return [Row(file, query, results.at(name), "failed", error=sentence) for query, name in task.outputs]


class Worker:
    """Keeps a model, and takes one task after the other."""

    def __init__(self, settings: Settings) -> None:
        """Opens the model.

        Raises:
            FlowSepError: If it cannot be opened here, or the folder for results is another one here.
        """
        self._settings = settings
        self._results = _store(settings.output)
        if settings.witness is not None and not self._results.exists(settings.witness):
            raise BackendError(
                f"{shown(settings.output)} is not the same folder on {socket.gethostname()}: give one that "
                "all machines share."
            )
        self._separator = Separator.load(
            settings.bundle, settings.backend, settings.precision, settings.threads
        )
        pipeline = self._separator.pipeline
        self._options = settings.options.resolved(pipeline.manifest.model, pipeline.precision)
        _remove_abandoned()

    def work(self, task: Task, again: bool = False) -> list[Row]:
        """The rows of a task, whatever happens to it.

        Args:
            task: What to do.
            again: True if a worker has died over it: what is there is then of this run.
        """
        began = time.monotonic()
        states: dict[str, State] = {}
        seconds = factor = error = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", FlowSepWarning)
            try:
                seconds, factor = self._separate(task, again, states)
            except FlowSepError as known:
                error = str(known)
            except MemoryError:
                error = WITHOUT_MEMORY
            except Exception as unknown:
                error = unexpected(unknown)
        remarks = " ".join(one_line(str(warning.message)) for warning in caught)
        rows = []
        for query, name in task.outputs:
            state = states.get(name, "failed")
            is_made = state == "done"
            rows.append(
                Row(
                    _store(task.folder).at(task.name),
                    query,
                    self._results.at(name),
                    state,
                    seconds if is_made else None,
                    factor if is_made else None,
                    time.monotonic() - began,
                    socket.gethostname(),
                    None if error is None or state != "failed" else one_line(error),
                    remarks,
                )
            )
        return rows

    def _separate(
        self, task: Task, again: bool, states: dict[str, State]
    ) -> tuple[float | None, float | None]:
        """The seconds that were separated, and their real-time factor; writes to `states` what became of each
        result, also of those before an error."""
        settings, results = self._settings, self._results
        there = {name for _, name in task.outputs if not settings.force and results.exists(name)}
        missing = [(query, name) for query, name in task.outputs if name not in there]
        store = _store(task.folder)
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            room = Path(folder)
            targets = {
                name: room / f"{number}{Path(name).suffix}" if results.local is None else results.local / name
                for number, (_, name) in enumerate(missing)
            }
            source = room / Path(task.name).name if store.local is None else store.local / task.name
            job = Job(
                source,
                tuple((query, targets[name]) for query, name in missing),
                tuple((query, Path(name)) for query, name in task.outputs if name in there),
                task.removes,
                task.span,
                makes_folders=True,
            )
            check_done(
                job,
                self._separator.pipeline,
                self._options,
                settings.clip_mode,
                lambda path: results.mark(path.as_posix()),
            )
            states |= dict.fromkeys(there, "done" if again else "done before")
            if not missing:
                return None, None
            if store.local is None:
                store.fetch(task.name, source)
            if task.is_found and made_by(source) is not None:
                states |= dict.fromkeys((name for _, name in task.outputs), "left out")
                return None, None
            try:
                with AudioReader(source, task.span) as reader:
                    # What is there was looked up above. A machine that was given up may still write the same
                    # file, and that is no reason to fail.
                    run = FileRun(job, reader, Extras(clip_mode=settings.clip_mode), force=True)
                    report = run.run(self._separator, self._options)
                    seconds = reader.frames / reader.sample_rate
            except FlowSepError as error:
                raise type(error)(self._in_words(str(error), task, source, targets)) from None
            for name, target in targets.items():
                if results.local is None:
                    results.put(target, name)
                states[name] = "done"
        return seconds, report.real_time_factor

    def _in_words(self, sentence: str, task: Task, source: Path, targets: dict[str, Path]) -> str:
        """A sentence with the names that the user knows in the place of temporary ones."""
        sentence = sentence.replace(shown(source), shown(_store(task.folder).at(task.name)))
        for name, target in targets.items():
            sentence = sentence.replace(shown(target), shown(self._results.at(name)))
        return sentence


@lru_cache(maxsize=64)
def _store(address: str) -> Store:
    return Store(address)


def _remove_abandoned() -> None:
    """Removes what killed workers have fetched, when it is a day old."""
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with suppress(OSError):
            if time.time() - folder.lstat().st_mtime > ABANDONED and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
