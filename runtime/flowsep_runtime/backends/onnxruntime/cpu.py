"""ONNX Runtime on the CPU, in float32 arithmetic.

Half-precision graphs run too: ONNX Runtime's CPU kernels compute them through float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from flowsep_runtime.arrays import Array
from flowsep_runtime.backends import Arithmetic, give_memory_back, offline, threads_in_words
from flowsep_runtime.backends.locks import GraphLocks
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.errors import BackendError, shown

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions


def why_not() -> str | None:
    """None if onnxruntime is installed, else what to install."""
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed, run: pip install 'flowsep-engine[cpu]'"
    return None


def arithmetic(precision: Arithmetic) -> str:
    """Its quickest arithmetic is the exact one."""
    return "float32"


def open(
    folder: Path, manifest: Manifest, precision: Arithmetic, threads: int | None, cache: bool
) -> OnnxRuntimeCpu:
    """Opens a bundle; `precision` changes nothing, and nothing is kept in the cache folder."""
    return OnnxRuntimeCpu(folder, manifest, threads)


class OnnxRuntimeCpu:
    """One session a graph, made when the graph is first wanted."""

    name = "cpu"

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        self._folder = folder
        self._manifest = manifest
        self._threads = threads
        self._sessions: dict[str, InferenceSession] = {}
        #: By graph: bytes of the largest inputs since memory was given back; number of smaller runs in a row.
        self._largest: dict[str, tuple[int, int]] = {}
        self._locks = GraphLocks()

    @property
    def description(self) -> str:
        return f"cpu, float32, {threads_in_words(self._threads)}"

    def load(self, graph: str) -> None:
        self._session(graph)

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        session = self._session(graph)
        names = [output.name for output in self._manifest.graphs[graph].outputs]
        size = sum(array.nbytes for array in inputs.values())
        # A session keeps the memory of its largest run. The second smaller one in a row gives it back, so
        # that one recording of many channels does not fill a server for good. The first may be the rest of
        # rows that go through four by four.
        largest, smaller = self._largest.get(graph, (0, 0))
        smaller = smaller + 1 if size < largest else 0
        options = self._giving_back() if smaller == 2 else None
        self._largest[graph] = (size, 0) if smaller in (0, 2) else (largest, smaller)
        try:
            return dict(zip(names, session.run(names, dict(inputs), options), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(f"ONNX Runtime failed in graph {graph}: {_first_line(error)}") from error

    def free(self, graph: str) -> None:
        with self._locks(graph):
            session = self._sessions.pop(graph, None)
        if session is not None:
            del session
            give_memory_back()

    def _giving_back(self) -> RunOptions:
        options = offline.onnxruntime().RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options

    def _session(self, graph: str) -> InferenceSession:
        with self._locks(graph):
            if graph not in self._sessions:
                self._sessions[graph] = self._open_session(
                    self._folder / self._manifest.graph(graph, self.name).files[0].name
                )
            return self._sessions[graph]

    def _open_session(self, path: Path) -> InferenceSession:
        onnxruntime = offline.onnxruntime()

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Every session has threads of its own, which go on spinning for a while after a run: they would take
        # the cores from the next graph. While a graph runs they still spin, so it is as quick as before.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot load {shown(path)}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
