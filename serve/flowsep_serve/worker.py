"""The bounded queue in front of the models, and the threads that take jobs from it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from flowsep_runtime.audio.writing import AudioWriter, WavStream, encoding_for
from flowsep_runtime.errors import (
    AudioError,
    FlowSepError,
    OptionError,
    OutputError,
    QueryError,
)
from flowsep_serve.errors import CancelledError, ServeError, full_disk, is_full_disk
from flowsep_serve.jobs import Job, State, Stem, Store
from flowsep_serve.limits import Limits
from flowsep_serve.metrics import Metrics
from flowsep_serve.models import Blocks
from flowsep_serve.remarks import Remarks

LOG = logging.getLogger("flowsep_serve")
PATIENCE = 2.0  # seconds that the end waits for a solver step


def stopping() -> ServeError:
    """The answer to whom the server, which ends, does not serve any more."""
    return ServeError(503, "The server is shutting down: try again in a while.", 30)


class Owner(Protocol):
    """Owns models: `Models` in this process, or the replicas of a cluster."""

    @property
    def side_by_side(self) -> int:
        """Jobs that are computed side by side at most, known when it is open."""

    @property
    def is_computing(self) -> bool:
        """True while a thread of its own is inside of a model, which after `close` may be in the middle of a
        step."""

    def open(self) -> None:
        """Makes the default model ready."""

    def blocks(self, job: Job) -> Blocks:
        """The results of a job as they are known; calls `job.begin` when a model has taken it.

        Raises:
            CancelledError: Within a solver step after the job was cancelled.
            FlowSepError: If it cannot be separated.
        """

    def ready(self) -> int:
        """The models that can compute now, for the figures."""

    def close(self) -> None:
        """Lets go of everything outside of this process, and of its threads."""


class Worker:
    """Takes jobs in their order, in as many threads as its owner computes jobs side by side.

    In this process that is one thread where a processor computes, which two separations would only share.
    """

    def __init__(self, owner: Owner, store: Store, limits: Limits, metrics: Metrics) -> None:
        self._owner, self._store, self._limits, self._metrics = owner, store, limits, metrics
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._taken: list[Job] = []  # by the threads; the owner may let them wait too
        self._admitted = 0  # requests that upload, wait or run
        self._seconds = 2.0  # of a job, for Retry-After
        self._is_draining = self._is_stopped = False
        self._remarks = Remarks()
        self.is_ready = False
        self.failure: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts a thread, which makes the owner ready and starts the others."""
        self._start_thread(self._open)

    def _start_thread(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work, name="flowsep-worker", daemon=True))
        self._threads[-1].start()

    def wait_until_ready(self) -> None:
        """Waits for the default model.

        Raises:
            Exception: Whatever kept it from being loaded.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.is_ready or self.failure is not None)
        if self.failure is not None:
            raise self.failure

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def waiting(self) -> int:
        return len(self._queue())

    @property
    def running(self) -> list[Job]:
        """The jobs that models compute now."""
        with self._changed:
            return [job for job in self._taken if job.has_begun]

    def _queue(self) -> list[Job]:
        with self._changed:
            return [*(job for job in self._taken if not job.has_begun), *self._waiting]

    def ready(self) -> int:
        """The models that can compute now."""
        return self._owner.ready() if self.is_ready else 0

    @property
    def is_idle(self) -> bool:
        return self._admitted == 0

    def admit(self) -> None:
        """Takes a place for a request, before its upload is read; `leave` or the end of its job frees it.

        Raises:
            ServeError: If all are taken, or the server ends.
        """
        with self._changed:
            if self._is_draining:
                raise stopping()
            if self._admitted >= self._limits.queue + len(self._threads):
                seconds = self._seconds * self._admitted / 2 / len(self._threads)
                after = min(600, max(1, math.ceil(seconds)))
                raise ServeError(429, f"The server is busy: try again in {after} s.", after)
            self._admitted += 1

    def leave(self) -> None:
        """Frees the place of a request that has come to no job."""
        with self._changed:
            self._admitted -= 1

    def put(self, job: Job) -> None:
        """Queues the job of a request that was admitted."""
        with self._changed:
            if not self._is_draining:
                self._waiting.append(job)
                self._changed.notify_all()
                return
            self._admitted -= 1
        job.end("failed", stopping())

    def position(self, job: Job) -> int | None:
        """A job's place in the queue, from 1; None if it does not wait."""
        queue = self._queue()
        return queue.index(job) + 1 if job in queue else None

    def drop(self, job: Job) -> None:
        """Cancels a job; one that waits ends at once."""
        job.cancel()
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
            self._admitted -= 1
        job.end("cancelled")
        self._metrics.jobs.labels("cancelled").inc()

    def drop_late(self) -> None:
        """Ends the jobs that have waited too long."""
        error = ServeError(503, f"The job has waited more than {self._limits.max_wait} s.", 60)
        with self._changed:
            oldest = time.monotonic() - self._limits.max_wait
            late = [job for job in self._waiting if job.queued_at < oldest]
            for job in late:
                self._waiting.remove(job)
                self._admitted -= 1
            taken = [job for job in self._taken if job.queued_at < oldest]
        for job in late:
            job.end("failed", error)
            self._metrics.jobs.labels("failed").inc()
        for job in taken:
            job.refuse(error)

    def drain(self) -> None:
        """Takes no more requests, ends those that wait, and lets the one that runs come to its end."""
        with self._changed:
            self._is_draining = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._admitted -= len(waiting)
            taken = list(self._taken)
        for job in waiting:
            job.end("failed", stopping())
        for job in taken:
            job.refuse(stopping())

    def stop(self) -> None:
        """Ends the threads, and what runs within a solver step; one that takes long ends with the process."""
        self.drain()
        with self._changed:
            self._is_stopped = True
            taken = list(self._taken)
            self._changed.notify_all()
        for job in taken:
            job.cancel()
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        self._owner.close()

    @property
    def is_alive(self) -> bool:
        """True while a thread runs, which after `stop` may be in the middle of a step."""
        return self._owner.is_computing or any(thread.is_alive() for thread in self._threads)

    def _open(self) -> None:
        try:
            self._owner.open()
        except BaseException as error:
            with self._changed:
                self.failure = error
                self._is_stopped = True
                self._changed.notify_all()
            return
        with self._changed:
            for _ in range(0 if self._is_stopped else self._owner.side_by_side - 1):
                self._start_thread(self._work)
            self.is_ready = True
            self._changed.notify_all()
        self._work()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_stopped)
                if self._is_stopped:
                    return
                job = self._waiting.popleft()
                self._taken.append(job)
            self._run(job)

    def _run(self, job: Job) -> None:
        error: ServeError | None = None
        try:
            # At once: an answer that streams tells those that are known when it begins.
            with self._remarks.told(job.warnings.append):
                self._separate(job)
        except CancelledError:
            error = job.refusal
        except OutputError:
            error = full_disk()
        except FlowSepError as known:
            is_request = isinstance(known, AudioError | QueryError | OptionError)
            error = ServeError(422 if is_request else 500, str(known))
        except MemoryError:
            error = ServeError(500, "There is not enough memory for this recording: give a shorter one.")
        except Exception as unknown:
            LOG.error("A separation failed.", exc_info=unknown)
            unexpected = f"Unexpected {type(unknown).__name__}: the server's log has the details."
            error = full_disk() if is_full_disk(unknown) else ServeError(500, unexpected)
        seconds = time.monotonic() - job.begun_at if job.has_begun else 0.0
        outcome: State = "failed" if error is not None else "cancelled" if job.is_cancelled else "done"
        self._metrics.jobs.labels(outcome).inc()
        if job.has_begun:
            self._metrics.seconds.observe(seconds)
        if outcome == "done":
            self._metrics.audio.inc(job.sound.seconds)
        job.end(outcome, error)
        if job.is_discarded:
            self._store.discard(job)
        # At last: whoever finds the worker idle finds the job closed.
        with self._changed:
            self._taken.remove(job)
            self._admitted -= 1
            if outcome == "done":
                self._seconds += (seconds - self._seconds) / 4

    def _separate(self, job: Job) -> None:
        job.go_on()
        with ExitStack() as stack:
            writers = [self._writer(stack, job, stem) for stem in job.stems]
            for blocks in self._owner.blocks(job):
                job.go_on()
                for writer, block in zip(writers, blocks, strict=True):
                    writer.write(block)
        job.go_on()

    def _writer(self, stack: ExitStack, job: Job, stem: Stem) -> AudioWriter | WavStream:
        sound, mode = job.sound, job.order.clip_mode
        if job.streams:
            file = stack.enter_context(stem.path.open("wb"))

            def send(content: bytes | memoryview) -> None:
                file.write(content)
                file.flush()  # all of it, or an error
                job.written += len(content)

            stream = WavStream(sound.sample_rate, sound.channels, sound.frames, sound.subtype, mode, send)
            return stack.enter_context(stream)
        encoding = encoding_for(stem.path, sound, mode)
        name = Path(stem.name)
        return stack.enter_context(
            AudioWriter(stem.path, sound.sample_rate, sound.channels, encoding, sound.tags, name, mode)
        )
