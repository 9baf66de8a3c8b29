"""A strict double of `cuda.bindings.runtime`: device memory is host memory, and work waits for a synchronise.

It offers what `bindings/cuda-*.json` describes and nothing else, and is stricter than the real one: every
error code must be compared, asynchronous copies need pinned memory, ranges are checked, the default stream is
refused, and what was not freed is known. Enqueued work runs when the stream is synchronised, so that a result
which is read too early is wrong, and memory that is changed too early too.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType
from typing import Any

import numpy as np

ALIGNMENT = 256
IMPLEMENTED: list[str] = []


class DoubleError(AssertionError):
    """Something that the real library would punish by a crash, or by silence."""


def new_enum(name: str, values: dict[str, int]) -> Any:
    """An enumeration; Any, because no type checker knows its members."""
    return IntEnum(name, values)


class Status:
    """An error code that knows whether somebody looked at it."""

    def __init__(self, code: IntEnum, function: str) -> None:
        self.code, self.function, self.is_checked = code, function, False

    @property
    def name(self) -> str:
        return self.code.name

    def __eq__(self, other: object) -> bool:
        self.is_checked = True
        return self.code == (other.code if isinstance(other, Status) else other)

    def __hash__(self) -> int:
        return hash(self.code)


class Graph:
    """A captured or instantiated graph."""

    def __init__(self, work: list[Callable[[], object]]) -> None:
        self.work = work


class Stream:
    def __init__(self, number: int) -> None:
        self.number = number
        self.work: list[Callable[[], object]] = []
        self.capture: list[Callable[[], object]] | None = None
        self.is_broken = False  # the capture

    def __int__(self) -> int:
        return self.number


class CudaDouble:
    """The functions, and the state of the one GPU behind them."""

    def __init__(self, description: dict[str, Any], memory: int = 1 << 30) -> None:
        self.description = description
        self.free_bytes = memory
        self.devices = 1
        self.name = b"NVIDIA Double 1"
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: set[Graph] = set()
        self.executables: set[Graph] = set()
        self.statuses: list[Status] = []
        self.last = 0
        self.fails: set[str] = set()  # functions that shall fail
        self.launches = 0
        self._current = threading.local()
        self.enums = {name: new_enum(name, values) for name, values in description["enums"].items()}

    def module(self) -> ModuleType:
        """The modules that the code under test imports."""
        module = ModuleType("cuda.bindings.runtime")
        module.__dict__.update(self.enums | self.description["constants"])
        for name in IMPLEMENTED:
            setattr(module, name, self._function(name))
        return module

    def _function(self, name: str) -> Callable[..., tuple[Any, ...]]:
        parameters = self.description["functions"][name]
        required = sum(not has_default for _, has_default in parameters)

        def function(*arguments: Any) -> tuple[Any, ...]:
            if not required <= len(arguments) <= len(parameters):
                raise TypeError(f"{name}() takes {len(parameters)} arguments, not {len(arguments)}")
            if name in self.fails:
                self.last = self.enums["cudaError_t"]["cudaErrorUnknown"]
                return self._status(self.last, name), *([None] * RESULTS.get(name, 0))
            try:
                result = getattr(self, name)(*arguments)
            except Refusal as failure:
                self.last = self.enums["cudaError_t"][failure.name]
                return self._status(self.last, name), *([None] * RESULTS.get(name, 0))
            values = result if isinstance(result, tuple) else () if result is None else (result,)
            return self._status(self.enums["cudaError_t"]["cudaSuccess"], name), *values

        return function

    def _status(self, code: Any, function: str) -> Status:
        status = Status(code, function)
        if function != "cudaGetLastError":
            self.statuses.append(status)
        return status

    def faults(self) -> list[str]:
        """Results left unchecked and memory not freed."""
        unchecked = [f"{status.function} unchecked" for status in self.statuses if not status.is_checked]
        left = {
            "memory": self.memory,
            "pinned memory": self.pinned,
            "stream": self.streams,
            "graph": self.graphs,
            "executable graph": self.executables,
        }
        return unchecked + [f"{len(those)} {what} not freed" for what, those in left.items() if those]

    # --- memory

    def block(self, pointer: int, nbytes: int, kinds: str) -> None:
        """Refuses a range that is not inside one live block: kinds has d for device, p for pinned."""
        blocks = (self.memory if "d" in kinds else {}) | (self.pinned if "p" in kinds else {})
        if not any(start <= pointer and pointer + nbytes <= start + len(b[0]) for start, b in blocks.items()):
            raise DoubleError(f"{nbytes} bytes at {pointer:#x} are not in live memory of kind {kinds}")

    def cudaMalloc(self, size: int) -> int:  # noqa: N802
        self._require_device()
        self._no_capture()
        if size > self.free_bytes:
            raise Refusal("cudaErrorMemoryAllocation")
        raw = np.full(size + ALIGNMENT, 0xCD, np.uint8)  # new memory holds anything but zeros
        start = -(-raw.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.free_bytes -= size
        self.memory[start] = (raw[start - raw.ctypes.data :][:size], raw)
        return start

    def cudaFree(self, pointer: int) -> None:  # noqa: N802
        self._nothing_pending("cudaFree")
        self.free_bytes += len(self._pop(self.memory, pointer)[0])

    def cudaMallocHost(self, size: int) -> int:  # noqa: N802
        self._no_capture()
        raw = np.full(max(size, 1), 0xCD, np.uint8)
        self.pinned[raw.ctypes.data] = (raw,)
        return int(raw.ctypes.data)

    def cudaFreeHost(self, pointer: int) -> None:  # noqa: N802
        self._nothing_pending("cudaFreeHost")
        self._pop(self.pinned, pointer)

    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: Any, stream: Any) -> None:  # noqa: N802
        direction = kind.name.removeprefix("cudaMemcpy")
        kinds = {"HostToDevice": "pd", "DeviceToHost": "dp", "DeviceToDevice": "dd"}[direction]
        self.block(target, count, kinds[1])
        self.block(source, count, kinds[0])
        if target < source + count and source < target + count:
            raise DoubleError("a copy onto itself")
        self.enqueue(stream, lambda: ctypes.memmove(target, source, count))

    def cudaMemsetAsync(self, pointer: int, value: int, count: int, stream: Any) -> None:  # noqa: N802
        self.block(pointer, count, "d")
        self.enqueue(stream, lambda: ctypes.memset(pointer, value, count))

    # --- the device

    def cudaGetDeviceCount(self) -> int:  # noqa: N802
        if not self.devices:
            raise Refusal("cudaErrorInsufficientDriver")
        return self.devices

    def cudaSetDevice(self, device: int) -> None:  # noqa: N802
        if device >= self.devices:
            raise Refusal("cudaErrorInvalidDevice")
        self._current.device = device

    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        properties = ModuleType("cudaDeviceProp")
        properties.__dict__.update(name=self.name, major=9, minor=0)
        return properties

    def cudaDriverGetVersion(self) -> int:  # noqa: N802
        return 13020

    def cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        used = sum(len(block[0]) for block in self.memory.values())
        return self.free_bytes, self.free_bytes + used

    def cudaGetLastError(self) -> int:  # noqa: N802
        last, self.last = self.last, 0
        return last

    def _require_device(self) -> None:
        if getattr(self._current, "device", None) is None:
            raise DoubleError("no device was made current in this thread")

    # --- streams and graphs

    def stream(self, handle: Any) -> Stream:
        """The live stream of a handle."""
        self._require_device()
        number = int(handle)
        if number not in self.streams:
            raise DoubleError(f"{number} is no live stream (0 is the default one, which is slow)")
        return self.streams[number]

    def enqueue(self, handle: Any, work: Callable[[], object]) -> None:
        """Later, in order; into the graph while the stream is captured."""
        stream = self.stream(handle)
        (stream.work if stream.capture is None else stream.capture).append(work)

    def cudaStreamCreateWithFlags(self, flags: int) -> Stream:  # noqa: N802
        self._require_device()
        if flags != self.description["constants"]["cudaStreamNonBlocking"]:
            raise DoubleError("the stream waits for the default one")
        number = 0x1000 + len(self.streams)
        self.streams[number] = Stream(number)
        return self.streams[number]

    def cudaStreamSynchronize(self, handle: Any) -> None:  # noqa: N802
        stream = self.stream(handle)
        if stream.capture is not None:
            stream.is_broken = True
            raise Refusal("cudaErrorStreamCaptureUnsupported")
        work, stream.work = stream.work, []
        for piece in work:
            piece()

    def cudaStreamDestroy(self, handle: Any) -> None:  # noqa: N802
        self._nothing_pending("cudaStreamDestroy")
        self._pop(self.streams, int(handle))

    def cudaStreamBeginCapture(self, handle: Any, mode: Any) -> None:  # noqa: N802
        stream = self.stream(handle)
        if stream.capture is not None:
            raise Refusal("cudaErrorIllegalState")
        stream.capture, stream.is_broken = [], False

    def cudaStreamEndCapture(self, handle: Any) -> Graph:  # noqa: N802
        stream = self.stream(handle)
        if stream.capture is None:
            raise Refusal("cudaErrorIllegalState")
        work, stream.capture = stream.capture, None
        if stream.is_broken:
            raise Refusal("cudaErrorStreamCaptureInvalidated")
        graph = Graph(work)
        self.graphs.add(graph)
        return graph

    def cudaGraphGetNodes(self, graph: Graph, count: int = 0) -> tuple[list[Any], int]:  # noqa: N802
        self._live(self.graphs, graph)
        return [], len(graph.work)

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> Graph:  # noqa: N802
        self._live(self.graphs, graph)
        executable = Graph(list(graph.work))
        self.executables.add(executable)
        return executable

    def cudaGraphUpload(self, executable: Graph, stream: Any) -> None:  # noqa: N802
        self._live(self.executables, executable)
        self.stream(stream)

    def cudaGraphLaunch(self, executable: Graph, stream: Any) -> None:  # noqa: N802
        self._live(self.executables, executable)
        self.launches += 1
        for work in executable.work:
            self.enqueue(stream, work)

    def cudaGraphDestroy(self, graph: Graph) -> None:  # noqa: N802
        self._live(self.graphs, graph)
        self.graphs.remove(graph)

    def cudaGraphExecDestroy(self, executable: Graph) -> None:  # noqa: N802
        self._nothing_pending("cudaGraphExecDestroy")
        self._live(self.executables, executable)
        self.executables.remove(executable)

    def _no_capture(self) -> None:
        for stream in self.streams.values():
            if stream.capture is not None:
                stream.is_broken = True
                raise Refusal("cudaErrorStreamCaptureUnsupported")

    def _nothing_pending(self, function: str) -> None:
        if any(stream.work for stream in self.streams.values()):
            raise DoubleError(f"{function} while work is enqueued")

    @staticmethod
    def _live(those: set[Graph], one: Graph) -> None:
        if one not in those:
            raise DoubleError("a graph that is not alive")

    @staticmethod
    def _pop(those: dict[int, Any], key: int) -> Any:
        if key not in those:
            raise DoubleError(f"{key:#x} was freed before, or never made")
        return those.pop(key)


class Refusal(Exception):  # noqa: N818
    def __init__(self, name: str) -> None:
        self.name = name


IMPLEMENTED.extend(name for name in vars(CudaDouble) if name.startswith("cuda"))

#: How many values come with the error code.
RESULTS = {
    "cudaMalloc": 1,
    "cudaMallocHost": 1,
    "cudaGetDeviceCount": 1,
    "cudaGetDeviceProperties": 1,
    "cudaDriverGetVersion": 1,
    "cudaMemGetInfo": 2,
    "cudaStreamCreateWithFlags": 1,
    "cudaStreamEndCapture": 1,
    "cudaGraphInstantiate": 1,
    "cudaGraphGetNodes": 2,
}
