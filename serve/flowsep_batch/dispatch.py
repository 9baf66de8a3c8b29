"""Tasks over the workers of a Ray cluster, each of which is an actor that keeps a model.

Ray Data is not used: it tries a block whose worker dies again without end, or drops it without a row, and
counts blocks where the report needs single files. What it would add is here: a bound on what is in hand.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from flowsep_batch.cluster import Device
from flowsep_batch.tasks import Task
from flowsep_batch.work import Row, Settings, Worker, failed
from flowsep_runtime import __version__
from flowsep_runtime.app.console import one_line
from flowsep_runtime.errors import BackendError, FlowSepError

AHEAD = 2  # tasks that a worker has in hand: the one it computes, and the next, so that it never waits
TRIES = 3  # workers that may die over one task, or while they load the model
PATIENCE = 30.0  # seconds without any worker after which that is said


class Holder:
    """The actor: a process that keeps a worker."""

    _worker: Worker

    def prepare(self, settings: Settings) -> str:
        """Opens the model; the version of this package in the worker's process."""
        self._worker = Worker(settings)
        return __version__

    def work(self, task: Task, again: bool) -> list[Row]:
        """The rows of a task."""
        return self._worker.work(task, again)


@dataclass
class Attempt:
    """A task, and how many workers have died over it."""

    task: Task
    deaths: int = 0


@dataclass
class Hand:
    """A worker and what it has in hand; it computes the first.

    Attributes:
        failures: Workers on this device in a row that died while they loaded the model.
        opening: The answer of `prepare`, until it is there.
        waiting: Attempts and the answers to come.
    """

    device: Device
    actor: Any
    failures: int
    opening: Any
    waiting: deque[tuple[Attempt, Any]] = field(default_factory=deque)


class Dispatch:
    """Gives tasks to workers, and takes the rows.

    A worker that dies is replaced, by Ray on any node with room. The task that it computed is tried again,
    at most `TRIES` times in all; the one behind it has no part in the death.
    """

    def __init__(self, settings: Settings, places: Sequence[Device], warn: Callable[[str], None]) -> None:
        """Starts the workers.

        Args:
            settings: For all workers.
            places: A device for each.
            warn: Takes sentences for the user.
        """
        self._settings, self._warn = settings, warn
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(Holder)
        self._hands: list[Hand] = []
        self._again: deque[Attempt] = deque()
        self._refusal: str | None = None
        self._end: FlowSepError | None = None
        for place in places:
            self._start(place, 0)

    def rows(self, tasks: Iterator[Task]) -> Iterator[list[Row]]:
        """The rows of each task, as they are done; the workers end with the last.

        Raises:
            BackendError: If no worker is left.
            FlowSepError: Of `tasks`, when what was in hand before it is done.
        """
        fresh = self._attempts(tasks)
        quiet_since = time.monotonic()
        try:
            while True:
                for hand in self._hands:
                    self._fill(hand, fresh)
                busy = [hand for hand in self._hands if hand.waiting]
                if busy:
                    quiet_since = time.monotonic()
                elif self._is_over(fresh):
                    if self._end is not None:
                        raise self._end
                    return
                elif not self._hands:
                    raise BackendError(self._refusal or "No worker is left.")
                elif time.monotonic() - quiet_since > PATIENCE:
                    self._warn("no worker is ready yet: waiting for a node with room.")
                    quiet_since = time.monotonic()
                answers = [hand.waiting[0][1] for hand in busy]
                answers += [hand.opening for hand in self._hands if hand.opening is not None]
                ray.wait(answers, timeout=1.0)
                ready = set(ray.wait(answers, num_returns=len(answers), timeout=0)[0])
                for hand in list(self._hands):
                    if hand.opening in ready:
                        self._open(hand)
                    elif hand.waiting and hand.waiting[0][1] in ready:
                        yield from self._take(hand)
        finally:
            for hand in self._hands:
                ray.kill(hand.actor)
            self._hands.clear()

    def _attempts(self, tasks: Iterator[Task]) -> Iterator[Attempt]:
        """The tasks up to an error, which waits for those that are in hand."""
        try:
            for task in tasks:
                yield Attempt(task)
        except FlowSepError as error:
            self._end = error

    def _is_over(self, fresh: Iterator[Attempt]) -> bool:
        """True if nothing is left to be taken in hand."""
        attempt = None if self._again else next(fresh, None)
        if attempt is not None:
            self._again.append(attempt)
        return not self._again

    def _start(self, device: Device, failures: int) -> None:
        actor = self._actor.options(num_cpus=device.cpus, num_gpus=device.gpus).remote()
        self._hands.append(Hand(device, actor, failures, actor.prepare.remote(self._settings)))

    def _fill(self, hand: Hand, fresh: Iterator[Attempt]) -> None:
        while hand.opening is None and len(hand.waiting) < AHEAD:
            attempt = self._again.popleft() if self._again else next(fresh, None)
            if attempt is None:
                return
            answer = hand.actor.work.remote(attempt.task, attempt.deaths > 0)
            hand.waiting.append((attempt, answer))

    def _open(self, hand: Hand) -> None:
        """Takes the answer of a worker that was started."""
        try:
            version = ray.get(hand.opening)
        except RayTaskError as error:
            cause = error.cause
            sentence = str(cause) if isinstance(cause, FlowSepError) else f"{type(cause).__name__}: {cause}"
            self._refuse(hand, sentence)
        except RayError as error:
            self._hands.remove(hand)
            if hand.failures + 1 < TRIES:
                self._start(hand.device, hand.failures + 1)
            else:
                self._refusal = f"A worker dies before it is ready: {one_line(str(error))[:300]}"
                self._warn(self._refusal)
        else:
            hand.opening, hand.failures = None, 0
            if version != __version__:
                self._refuse(hand, f"A node has version {version} of this package: install {__version__}.")

    def _refuse(self, hand: Hand, sentence: str) -> None:
        """Does without a device on which every worker would fail alike."""
        self._refusal = sentence
        self._warn(f"a worker is left out: {one_line(sentence)}")
        self._hands.remove(hand)
        ray.kill(hand.actor)

    def _take(self, hand: Hand) -> Iterator[list[Row]]:
        """Takes the first answer of a worker, and all that it has in hand if it has died."""
        attempt, answer = hand.waiting.popleft()
        try:
            yield ray.get(answer)
            return
        except RayTaskError as error:  # a fault of ours
            yield self._failed(attempt, f"Unexpected {type(error.cause).__name__} ({error.cause}).")
            return
        except RayError:
            attempt.deaths += 1
        self._warn("a worker has died: what it had in hand is tried again.")
        # Ray may still believe that it lives: two would then write into one folder.
        ray.kill(hand.actor)
        self._hands.remove(hand)
        self._start(hand.device, 0)
        self._again.extend(each for each, _ in hand.waiting)
        if attempt.deaths < TRIES:
            self._again.append(attempt)
        else:
            sentence = f"{TRIES} workers died over this recording: is it too long for their memory?"
            yield self._failed(attempt, sentence)

    def _failed(self, attempt: Attempt, sentence: str) -> list[Row]:
        return failed(attempt.task, self._settings.output, sentence)
