"""Jobs: recordings on their way to results, each in a folder that goes away."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Literal

from flowsep_runtime.app.naming import slug
from flowsep_serve.decoding import Sound
from flowsep_serve.errors import CancelledError, ServeError
from flowsep_serve.limits import MIB, Limits
from flowsep_serve.orders import Order

State = Literal["queued", "running", "done", "failed", "cancelled"]
PREFIX = "flowsep-serve-"
REST = "rest"


@dataclass
class Stem:
    """A result: its name, its query (None for the rest) and the query's number, and its file."""

    name: str
    query: str | None
    number: int
    path: Path


class Job:
    """A separation and its folder. One thread works on it, others look at it and may cancel it."""

    def __init__(
        self, folder: Path, order: Order, sound: Sound, is_single: bool = False, streams: bool = False
    ) -> None:
        """
        Args:
            folder: The job's own; it holds the samples.
            order: What was asked for.
            sound: The recording.
            is_single: Whether there is one stem, which answers the request.
            streams: Whether that one, a WAV, is sent while it grows.
        """
        self.id = folder.name
        self.folder, self.order, self.sound = folder, order, sound
        self.state: State = "queued"
        self.steps_done, self.steps = 0, None  # type: int, int | None
        self.warnings = list(sound.warnings)
        self.error: ServeError | None = None
        self.created, self.finished = time.time(), None  # type: float, float | None
        self.queued_at = self.begun_at = time.monotonic()
        self.is_discarded = False
        #: Names of the stems that were fetched.
        self.fetched: set[str] = set()
        self.streams = streams
        self.stems = self._named()
        if is_single:
            self.stems = [self.stems[-1 if order.remove else 0]]
        #: Bytes of the stem that streams: they are final.
        self.written = 0
        #: Why it is cancelled, if that is not its client's wish.
        self.refusal: ServeError | None = None
        #: Called by the one who cancels.
        self.on_cancel: Callable[[], None] = lambda: None
        self._cancel, self._lock = threading.Event(), threading.Lock()

    def _named(self) -> list[Stem]:
        stems: list[Stem] = []
        taken = {REST}
        for query in self.order.queries:
            name = slug(query)
            number = 2
            while name in taken:
                name, number = f"{slug(query)}-{number}", number + 1
            taken.add(name)
            stems.append(self._stem(name, query, len(stems)))
        return [*stems, self._stem(REST, None, len(stems))]

    def _stem(self, name: str, query: str | None, number: int) -> Stem:
        ending = self.order.format
        # Only the server's own words make the name of a file.
        return Stem(f"{name}.{ending}", query, number, self.folder / f"stem-{number}.{ending}")

    @property
    def wanted(self) -> list[int | None]:
        """The number of the query of each stem; None is the rest."""
        return [None if stem.query is None else stem.number for stem in self.stems]

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def is_fetched(self) -> bool:
        return self.fetched.issuperset(stem.name for stem in self.stems)

    @property
    def has_begun(self) -> bool:
        return self.state != "queued"

    def begin(self) -> None:
        """Marks the moment when a model has taken it.

        Raises:
            CancelledError: If nobody wants it any more.
        """
        with self._lock:
            self.go_on()
            self.begun_at, self.state = time.monotonic(), "running"

    def wait_again(self) -> None:
        """Marks that no model computes it any more: it waits as at first, no longer than others."""
        with self._lock:
            self.queued_at, self.state = time.monotonic(), "queued"

    def refuse(self, error: ServeError) -> None:
        """Ends a job that no model has taken yet."""
        with self._lock:
            if self.has_begun:
                return
            self.refusal = error
            self._cancel.set()
        self.on_cancel()

    def cancel(self) -> None:
        """Asks for the end; the work stops within one solver step."""
        self._cancel.set()
        self.on_cancel()

    def go_on(self) -> None:
        """Raises `CancelledError` if nobody wants the result any more."""
        if self._cancel.is_set():
            raise CancelledError

    @property
    def is_cancelled(self) -> bool:
        return self._cancel.is_set()

    def advance(self, done: int, steps: int | None) -> None:
        """Progress of the separation, and the place where it is stopped."""
        self.steps_done, self.steps = done, steps
        self.go_on()

    def end(self, state: State, error: ServeError | None = None) -> None:
        """Closes the job; what is no result is removed."""
        keep = {stem.path for stem in self.stems} if state == "done" else set()
        with suppress(OSError):  # the folder may be gone already
            for path in self.folder.iterdir():
                if path not in keep:
                    path.unlink(missing_ok=True)
        self.finished = time.time()
        self.error = error
        self.state = state

    def stem(self, name: str) -> Stem:
        """The stem of a name.

        Raises:
            ServeError: If there is none, or it is not finished.
        """
        for stem in self.stems:
            if stem.name == name:
                if self.state != "done":
                    raise self.error or ServeError(409, f"The job is {self.state}: there is no result.")
                return stem
        known = ", ".join(stem.name for stem in self.stems)
        raise ServeError(404, f"The job has no stem {name[:80]!r}: use one of {known}.")

    def described(self, keep: int, position: int | None = None) -> dict[str, Any]:
        """The job as JSON.

        Args:
            keep: Seconds that results are kept.
            position: Its place in the queue, from 1; None if it does not wait.
        """
        return {
            "id": self.id,
            "state": self.state,
            "position": position if self.state == "queued" else None,
            "steps_done": self.steps_done,
            "steps": self.steps,
            "queries": list(self.order.queries),
            "model": self.order.model,
            "format": self.order.format,
            "sample_rate": self.sound.sample_rate,
            "channels": self.sound.channels,
            "seconds": self.sound.seconds,
            "created": _time(self.created),
            "expires": None if self.finished is None else _time(self.finished + keep),
            "warnings": self.warnings,
            "error": None if self.error is None else str(self.error),
            "stems": [
                {"name": stem.name, "query": stem.query, "url": f"/v1/jobs/{self.id}/stems/{stem.name}"}
                for stem in self.stems
            ]
            if self.state == "done"
            else [],
        }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


@dataclass
class Store:
    """Jobs and their folders, below one that goes away with the server.

    Attributes:
        root: A folder of the server's own, which no one else may read.
    """

    limits: Limits
    root: Path = field(init=False)
    _jobs: dict[str, Job] = field(default_factory=dict)
    _reserved: dict[str, int] = field(default_factory=dict)
    _held: IO[bytes] | None = None
    # The event loop, the worker and the tidying thread meet here.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        _remove_abandoned()
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._held = _locked(self.root)

    def new_folder(self, room: int) -> Path:
        """Folder for a job, with a name that nobody can guess and space reserved for it.

        Raises:
            ServeError: If the disk that the server may use is full.
        """
        folder = self.root / secrets.token_urlsafe(18)
        self.reserve(folder.name, room)
        try:
            folder.mkdir(mode=0o700)
        except OSError:
            self.remove(folder.name)
            raise
        return folder

    def reserve(self, name: str, count: int) -> None:
        """Keeps room for a job: `count` bytes in all.

        Raises:
            ServeError: If there is not so much.
        """
        most = self.limits.max_disk * MIB
        if count > most:
            raise ServeError(
                413,
                f"The recording and its results need {-(-count // MIB)} MiB of disk, more than the "
                f"{self.limits.max_disk} MiB of this server: cut it, or ask for fewer sounds.",
            )
        with self._lock:
            if sum(self._reserved.values()) - self._reserved.get(name, 0) + count > most:
                raise ServeError(507, "The server has no room for more results: try again later.", 60)
            self._reserved[name] = count

    def add(self, job: Job) -> None:
        with self._lock:
            self._jobs[job.id] = job

    def get(self, name: str) -> Job:
        """The job of an identifier.

        Raises:
            ServeError: If there is none, or it has expired.
        """
        with self._lock:
            job = self._jobs.get(name)
        if job is None:
            raise ServeError(404, "There is no such job, or it has expired.")
        return job

    def all(self) -> list[Job]:
        with self._lock:
            return list(self._jobs.values())

    def remove(self, name: str) -> None:
        """Removes a folder, and the job if there is one: all that there is of the recording."""
        with self._lock:
            self._jobs.pop(name, None)
        shutil.rmtree(self.root / name, ignore_errors=True)
        with self._lock:
            self._reserved.pop(name, None)

    def discard(self, job: Job) -> None:
        """Removes a job; one that still runs when its thread has stopped."""
        with self._lock:
            self._jobs.pop(job.id, None)
        job.is_discarded = True
        if job.is_over:
            self.remove(job.id)

    def expire(self) -> None:
        """Removes the jobs whose time is over, and gives back the room that finished ones do not need."""
        for job in self.all():
            if not job.is_over or job.finished is None:
                continue
            if time.time() - job.finished > self.limits.keep:
                self.discard(job)
                continue
            size = sum(_size(stem.path) for stem in job.stems)
            with self._lock:
                if job.id in self._jobs:  # it may have been removed meanwhile
                    self._reserved[job.id] = size

    @property
    def used(self) -> int:
        """Bytes that are in use or promised."""
        with self._lock:
            return sum(self._reserved.values())

    def close(self) -> None:
        """Removes everything."""
        with self._lock:
            self._jobs.clear()
        shutil.rmtree(self.root, ignore_errors=True)
        if self._held is not None:
            self._held.close()


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _locked(folder: Path) -> IO[bytes] | None:
    """A lock that is held as long as this process lives; None if another one holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    # the folder for temporary files belongs to all users: no link of theirs is followed, nothing is cut
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(folder / ".lock", flags, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _remove_abandoned() -> None:
    """Removes the folders of servers that were killed: no recording stays."""
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with suppress(OSError):
            if folder.is_symlink() or (hasattr(os, "geteuid") and folder.lstat().st_uid != os.geteuid()):
                continue
            if (folder / ".lock").is_file() and (lock := _locked(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()
