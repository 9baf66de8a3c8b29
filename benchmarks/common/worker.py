"""A contestant's own process: it loads one model and executes one command at a time.

PyTorch, ONNX Runtime and OpenVINO each keep a pool of threads that spins for a while after work; in one
process they slow each other down. Requests come as JSON lines on stdin, answers go as JSON lines to stdout;
what libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.inputs import STAGE_INPUTS, read_inputs
from benchmarks.common.runners import CLIP, BundleRunner, Runner, open_runner
from benchmarks.common.task import Task
from flowsep_runtime.app.memory import peak_memory
from flowsep_runtime.errors import FlowSepWarning

#: Calls before the first measured one: on a GPU the first may compile, the second be captured.
WARM_UPS = {"cpu": 1, "cuda": 3}

#: A stage that takes milliseconds is called again, until so much time or so many calls have passed. A GPU
#: raises its clock only under load, so it always runs for that time.
LEAST_SECONDS, MOST_CALLS = 0.2, {"cpu": 20, "cuda": 1000}


class Worker:
    """Answers requests; every method is a command."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._inputs = read_inputs(Path(task.inputs))
        self._runner: Runner | None = None
        self._timed: Callable[[], dict[str, float]] | None = None
        if task.device == "cuda":
            from benchmarks.common.gpu import Gpu

            self._gpu = Gpu()
            self._gpu_bytes_before = self._gpu.used_bytes()

    def open(self, stage: str, output: str) -> dict[str, Any]:
        """Load a stage, run it once, and store its results."""
        arguments = [self._inputs[name] for name in STAGE_INPUTS[stage]]
        self._runner = open_runner(self._task)
        np.savez(output, *self._runner.call(stage, arguments))
        return self._warm_up(partial(self._runner.timed, stage, arguments))

    def open_clip(self, steps: int, solver: str) -> dict[str, Any]:
        """Loads all stages."""
        self._runner = open_runner(self._task)
        clip = partial(self._runner.clip, self._inputs, steps, solver)

        def timed() -> dict[str, float]:
            start = time.perf_counter()
            clip()  # its waveform is on the host: nothing is left to wait for
            return {CLIP: time.perf_counter() - start}

        return self._warm_up(timed)

    def _warm_up(self, timed: Callable[[], dict[str, float]]) -> dict[str, Any]:
        for _ in range(WARM_UPS[self._task.device]):
            timed()  # the first call in the loop is a warm-up too
        self._timed = timed
        return {}

    def measure(self) -> dict[str, Any]:
        """Median seconds of the loaded stages, by name."""
        assert self._timed is not None
        start, found = time.perf_counter(), []
        while True:
            found.append(self._timed())
            if time.perf_counter() - start >= LEAST_SECONDS or len(found) == MOST_CALLS[self._task.device]:
                break
        return {name: statistics.median(seconds[name] for seconds in found) for name in found[0]}

    def close(self) -> dict[str, Any]:
        """Free the loaded stages."""
        self._runner = self._timed = None
        gc.collect()
        if self._task.device == "cuda" and self._task.kind == "torch":
            import torch

            torch.cuda.empty_cache()
        with suppress(AttributeError, OSError, TypeError):  # not glibc, which keeps freed blocks
            ctypes.CDLL(None).malloc_trim(0)
        return {}

    def first(self, steps: int, solver: str, output: str) -> dict[str, Any]:
        """Load the model and separate a clip as a user does; this project uses `Separator`."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FlowSepWarning)
            runner = open_runner(self._task)
            if isinstance(runner, BundleRunner) and runner.is_whole_clip(self._inputs):
                waveform = runner.separate(self._inputs, steps, solver)
            else:
                waveform = runner.clip(self._inputs, steps, solver)
        self._runner = runner
        np.savez(output, waveform)
        remarks = [str(each.message) for each in caught if issubclass(each.category, FlowSepWarning)]
        return {"peak_bytes": peak_memory(), "remarks": remarks}

    def clip(self, steps: int, solver: str) -> dict[str, Any]:
        """Runs every stage on a batch of clips; the model is loaded the first time."""
        start = time.perf_counter()
        if self._runner is None:
            self._runner = open_runner(self._task)
        self._runner.clip(self._inputs, steps, solver)
        return {"seconds": time.perf_counter() - start, "peak_bytes": peak_memory()}

    def gpu_bytes(self, steps: int, solver: str) -> dict[str, Any]:
        """GPU memory of this process after every stage has run and none was freed; backends keep the memory
        that they have allocated."""
        self.clip(steps, solver)
        return {"gpu_bytes": self._gpu.used_bytes() - self._gpu_bytes_before}

    def peak(self) -> dict[str, Any]:
        """Name and peak performance of the GPU."""
        from benchmarks.common.peak import measured

        return {"name": self._gpu.name, "peak": asdict(measured())}


def main() -> None:
    """Reads requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # from here on nothing that a library prints can be taken for an answer
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if worker is None:
                worker = Worker(Task(**request))
                answer: dict[str, Any] = {}
            else:
                command: Callable[..., dict[str, Any]] = getattr(worker, request.pop("command"))
                answer = command(**request)
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            answer = {"error": f"{type(error).__name__}: {first}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
