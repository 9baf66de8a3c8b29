"""A GPU that requests share: what waits for it goes through the model together.

Each request runs in a thread of its own, and one more thread computes for all of them: captures of a GPU
belong to a thread, and a capture of one model may fail while another one allocates. Whatever a request asks
of a model comes to that thread in its turn. A run of whole clips takes the runs with it that wait then and
fit beside it; nobody waits for company.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.backends import DeviceBackend
from flowsep_runtime.device_pipeline import Clip, ClipResult, StageContext, StepProgress, joined, parted
from flowsep_runtime.pipeline import Pipeline
from flowsep_runtime.separation.run import largest_batch, largest_loop

LOG = logging.getLogger("flowsep_serve")
PAUSE = 0.05  # seconds after which a request that waits looks whether it is still wanted
PATIENCE = 2.0  # seconds that the end waits for what the device computes

#: Raises if the request that this thread works on is not wanted any more.
still_wanted: ContextVar[Callable[[], None]] = ContextVar("still_wanted", default=lambda: None)

T = TypeVar("T")


def mixtures_together(pipeline: Pipeline) -> int:
    """Mixtures of requests with the model's own options that go through it together; 1 on a processor, where
    nothing is quicker for being done together."""
    if not isinstance(pipeline.backend, DeviceBackend):
        return 1
    model = pipeline.manifest.model
    asks_twice = model.default_kind == "masked" and model.complement is not None
    return max(1, min(largest_batch(pipeline), largest_loop(pipeline) // (2 if asks_twice else 1)))


class _UnwantedError(Exception):
    """Nobody waits for a run any more."""


@dataclass(eq=False)
class _Call:
    """A call of `Pipeline.run` by a request that waits for its answer.

    Attributes:
        pipeline: The model's own.
        clip, progress, stage: As for `Pipeline.run`.
        options: Its other arguments.
        tell: Told the rows of the run that it begins.
        answer: Over when the request has it, or has gone.
        told: Steps that the request knows of.
    """

    pipeline: Pipeline
    clip: Clip
    options: Mapping[str, Any]
    progress: StepProgress | None
    stage: StageContext
    tell: Callable[[int], None]
    answer: Future[ClipResult] = field(default_factory=Future)
    told: int = 0

    @property
    def rows(self) -> int:
        """The rows that it takes in the loop."""
        return len(self.clip.rows) * (1 if self.clip.guidance is None else 2)

    @property
    def kind(self) -> tuple[object, ...]:
        """The same for calls that can go together."""
        clip = self.clip
        arrays = clip.waveform, clip.posterior_noise, clip.noise, clip.text, clip.mask
        shapes = [array.shape[1:] for array in arrays]
        return self.pipeline, self.options, clip.guidance is None, shapes

    def advance(self, done: int, steps: int) -> None:
        """Tell the request of a step, once; one that wants no more has its error as its answer."""
        if self.progress is None or done <= self.told or self.answer.done():
            return
        self.told = done
        try:
            self.progress(done, steps)
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):  # it has gone
            self.answer.set_exception(error)


class DeviceThread:
    """The thread that computes on a device, for models and requests in the order in which they ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Call] = []
        self._executor = ThreadPoolExecutor(1, "flowsep-device")
        self._thread = self._executor.submit(threading.current_thread).result()

    def do(self, work: Callable[[], T]) -> T:
        """Work that goes with no other, done in the thread.

        Raises:
            CancelledError: As soon as the request is not wanted any more.
        """
        if threading.current_thread() is self._thread:  # inside of a run
            return work()
        return _answered(self._executor.submit(work))

    def run(self, call: _Call) -> ClipResult:
        """The answer to a call, which may be computed together with others.

        Raises:
            CancelledError: As soon as the request is not wanted any more.
        """
        with self._lock:
            self._waiting.append(call)
        self._executor.submit(self._run_next)  # finds less to do if others have taken the call with them
        return _answered(call.answer)

    def close(self) -> None:
        """Ends the thread, after what it computes now."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._thread.join(PATIENCE)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run_next(self) -> None:
        calls = self._take()
        if len(calls) > 1:
            try:
                return self._compute(calls)
            except Exception as error:  # the fault of one of them costs no other
                LOG.warning("Requests that failed together are computed one by one.", exc_info=error)
        for call in calls:
            if not call.answer.done():
                try:
                    self._compute([call])
                except BaseException as error:
                    call.fail(error)

    def _take(self) -> list[_Call]:
        """The first call that waits, and those that fit beside it."""
        calls: list[_Call] = []
        with self._lock:
            waiting = [call for call in self._waiting if not call.answer.done()]
            for call in waiting:
                if not calls or (call.kind == calls[0].kind and _fit([*calls, call])):
                    calls.append(call)
            self._waiting = [call for call in waiting if call not in calls]
        return calls

    def _compute(self, calls: Sequence[_Call]) -> None:
        """One run for all calls; it stops at its next step if all of them have gone."""

        def advance(done: int, steps: int) -> None:
            for call in calls:
                call.advance(done, steps)
            if all(call.answer.done() for call in calls):
                raise _UnwantedError

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            with ExitStack() as stack:
                for call in calls:
                    stack.enter_context(call.stage(name))
                yield

        clips = [call.clip for call in calls]
        with suppress(_UnwantedError):
            clip = joined(clips) if len(clips) > 1 else clips[0]
            result = calls[0].pipeline.run(clip, progress=advance, stage=stage, **calls[0].options)
            calls[0].tell(sum(call.rows for call in calls))
            for call, part in zip(calls, parted(result, clips), strict=True):
                with suppress(InvalidStateError):  # it has gone
                    call.answer.set_result(part)


def _fit(calls: Sequence[_Call]) -> bool:
    """True if one run takes all of them."""
    mixtures, rows = sum(len(call.clip.waveform) for call in calls), sum(call.rows for call in calls)
    pipeline = calls[0].pipeline
    return mixtures <= largest_batch(pipeline) and rows <= largest_loop(pipeline)


def _answered(answer: Future[T]) -> T:
    """An answer, for which a request waits as long as it is wanted."""
    try:
        while not wait([answer], PAUSE).done:
            still_wanted.get()()
    except BaseException:
        answer.cancel()
        raise
    return answer.result()


class SharedPipeline(Pipeline):
    """A model whose work is done in a device's thread, whichever thread asks for it."""

    def __init__(self, pipeline: Pipeline, device: DeviceThread) -> None:
        """
        Args:
            pipeline: The model, on a device.
            device: Its thread.
        """
        super().__init__(
            pipeline.folder, pipeline.manifest, pipeline.backend, pipeline.precision, pipeline.low_memory
        )
        self._own, self._device = pipeline, device
        #: Told the rows of every run.
        self.on_run: Callable[[int], None] = lambda rows: None

    def load_stage(self, stage: str) -> None:
        self._device.do(partial(self._own.load_stage, stage))

    def free_stage(self, stage: str) -> None:
        self._device.do(partial(self._own.free_stage, stage))

    def run(
        self,
        clip: Clip,
        steps: int,
        solver: str = "euler",
        progress: StepProgress | None = None,
        stage: StageContext = lambda name: nullcontext(),
        vocode: bool = True,
        log_mels: bool = True,
        largest_loop: int | None = None,
    ) -> ClipResult:
        options = {"steps": steps, "solver": solver, "vocode": vocode, "log_mels": log_mels}
        options["largest_loop"] = largest_loop
        return self._device.run(_Call(self._own, clip, options, progress, stage, self.on_run))

    def _run(self, graph: str, **inputs: Array) -> tuple[Floats, ...]:
        return self._device.do(partial(super()._run, graph, **inputs))
