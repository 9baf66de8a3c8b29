"""Starting workers and talking to them, one at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.contestants import Contestant
from benchmarks.common.models import ROOT, Model
from benchmarks.common.task import Task
from flowsep_runtime.errors import BackendError

#: Seconds before a worker's turn, because the threads of the previous one may still spin.
PAUSE = 0.05


class WorkerError(BackendError):
    """A worker that failed; the message has its last output."""


def task_of(contestant: Contestant, model: Model, threads: int, inputs: Path) -> Task:
    """The task of a worker."""
    bundle = model.half_bundle if contestant.needs_half_bundle else model.bundle
    return Task(
        kind=contestant.kind,
        backend=contestant.backend,
        precision=contestant.precision,
        compilation=contestant.compilation,
        is_low_memory=contestant.is_low_memory,
        device=contestant.device,
        threads=threads,
        weights=str(model.weights),
        config=None if model.config is None else str(model.config),
        bundle=None if bundle is None else str(bundle),
        plain=None if model.plain is None else str(model.plain),
        inputs=str(inputs),
    )


class Process:
    """A worker that runs."""

    def __init__(self, name: str, task: Task, cache: Path) -> None:
        """Start the worker; the caches of its backend are below `cache`."""
        self.name = name
        self._started = time.perf_counter()
        # closed in `end`: it is read when the process is dead
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.common.worker"],
            cwd=ROOT,
            env=_environment(task.threads, cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self._send(asdict(task))
        except BaseException:
            self.end()
            raise

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Send a command and wait for the answer.

        Raises:
            WorkerError: If it fails or ends.
        """
        if command == "measure":
            time.sleep(PAUSE)
        return self._send({"command": command} | arguments)

    def age(self) -> float:
        """Seconds since it was started."""
        return time.perf_counter() - self._started

    def end(self) -> None:
        """Kill the worker."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _send(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise WorkerError(f"{self.name} ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name} failed: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"killed by signal {-code} (9: out of memory, most likely)"
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"


@contextmanager
def running(name: str, task: Task, cache: Path) -> Iterator[Process]:
    """A worker that runs until the end of the block."""
    process = Process(name, task, cache)
    try:
        yield process
    finally:
        process.end()


def _environment(threads: int, cache: Path) -> dict[str, str]:
    count = str(threads)
    return os.environ | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "XDG_CACHE_HOME": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "CUDA_CACHE_PATH": str(cache / "cuda"),
        "PYTHONUNBUFFERED": "1",
    }
