"""CUDA through cuda-python: a device, one stream, buffers, and captured graphs.

Everything runs on one stream, so that whatever is enqueued sees the results of what was enqueued before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from flowsep_runtime.arrays import Array
from flowsep_runtime.backends.nvidia_driver import why_no_driver, why_too_old
from flowsep_runtime.errors import BackendError

ALIGNMENT = 256  # bytes; what TensorRT asks of every address


def why_no_device() -> str | None:
    """Why cuda-python finds no GPU, in words; None if there is one."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "cuda-python is not installed, run: pip install 'flowsep-engine[tensorrt]'"
    from cuda import bindings
    from cuda.bindings import runtime

    error, count = runtime.cudaGetDeviceCount()
    if error == runtime.cudaError_t.cudaSuccess:
        return None if count else "there is no NVIDIA GPU here"
    if error == runtime.cudaError_t.cudaErrorInsufficientDriver:  # also where there is none at all
        reason = why_no_driver() or why_too_old(
            "this cuda-python", bindings.__version__, "flowsep-engine[tensorrt-cu12]"
        )
        if reason is not None:
            return reason
    return f"CUDA does not start ({error.name})"


class Device:
    """A GPU, its stream, and all that was allocated on it; `close` frees everything."""

    def __init__(self, index: int = 0) -> None:
        from cuda.bindings import runtime

        self.cudart = runtime
        self.index = index
        self._pointers: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[Any] = []
        self.select()
        self.stream = self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)

    def call(self, function: str, *arguments: Any) -> Any:
        """A function of the CUDA runtime: its result, or a tuple of its results.

        Raises:
            BackendError: If it does not succeed.
        """
        error, *values = getattr(self.cudart, function)(*arguments)
        if error != self.cudart.cudaError_t.cudaSuccess:
            if error.name == "cudaErrorMemoryAllocation":
                raise BackendError(f"The GPU has not enough memory ({function}: {error.name}).")
            raise BackendError(f"The GPU failed ({function}: {error.name}).")
        return values[0] if len(values) == 1 else tuple(values)

    def select(self) -> None:
        """Makes this GPU the calling thread's; engines run on whichever is current."""
        self.call("cudaSetDevice", self.index)

    def synchronize(self) -> None:
        """Waits until the stream has done everything."""
        self.call("cudaStreamSynchronize", self.stream)

    def allocate(self, nbytes: int) -> Buffer:
        """A block of device memory, filled with zeros."""
        size = max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
        pointer = int(self.call("cudaMalloc", size))
        self._pointers.append(pointer)
        buffer = Buffer(self, pointer, size)
        buffer.fill(0)
        return buffer

    def free(self, buffer: Buffer) -> None:
        """Frees a block of `allocate`; it must be in no captured graph that will run again."""
        self.synchronize()
        self._pointers.remove(buffer.pointer)
        self.call("cudaFree", buffer.pointer)
        staging = buffer.staging
        if staging is not None:
            self._pinned.remove(staging.ctypes.data)
            self.call("cudaFreeHost", staging.ctypes.data)

    def pinned(self, nbytes: int) -> Array:
        """Host memory that the GPU copies from and to at full speed, as bytes."""
        pointer = int(self.call("cudaMallocHost", nbytes))
        self._pinned.append(pointer)
        return np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(pointer))

    def copy(self, target: int, source: int, nbytes: int, kind: str = "DeviceToDevice") -> None:
        """Enqueues a copy between addresses."""
        direction = getattr(self.cudart.cudaMemcpyKind, f"cudaMemcpy{kind}")
        self.call("cudaMemcpyAsync", target, source, nbytes, direction, self.stream)

    def capture(self, record: Callable[[], None]) -> Captured | None:
        """The work that `record` enqueues, as one graph; nothing of it runs. None if it cannot be captured.

        Whatever is enqueued must have run once before: what a library initialises late cannot be captured.
        """
        cudart = self.cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        recorded = False
        try:
            record()
            recorded = True
        except BackendError:
            pass
        finally:
            # a stream that is left capturing refuses everything from then on
            error, graph = cudart.cudaStreamEndCapture(self.stream)
        if error != cudart.cudaError_t.cudaSuccess or not recorded:
            cudart.cudaGetLastError()  # so that the next call does not report this failure again
            if error == cudart.cudaError_t.cudaSuccess:
                self.call("cudaGraphDestroy", graph)
            return None
        try:
            _, nodes = self.call("cudaGraphGetNodes", graph)
            if not nodes:
                return None
            executable = self.call("cudaGraphInstantiate", graph, 0)
        except BackendError:
            cudart.cudaGetLastError()
            return None
        finally:
            self.call("cudaGraphDestroy", graph)
        self._graphs.append(executable)
        captured = Captured(self, executable, int(nodes))
        self.call("cudaGraphUpload", executable, self.stream)
        return captured

    def discard(self, captured: Captured) -> None:
        """Frees a graph that is of no use."""
        self.synchronize()
        self._graphs.remove(captured.executable)
        self.call("cudaGraphExecDestroy", captured.executable)

    def close(self) -> None:
        """Frees everything; the device object cannot be used again."""
        self.select()
        self.synchronize()
        for function, handles in (
            ("cudaGraphExecDestroy", self._graphs),
            ("cudaFree", self._pointers),
            ("cudaFreeHost", self._pinned),
            ("cudaStreamDestroy", [self.stream]),
        ):
            for handle in handles:
                self.call(function, handle)
            handles.clear()


@dataclass(eq=False)
class Buffer:
    """A block of device memory, with pinned host memory of its size where numpy needs it."""

    device: Device = field(repr=False)
    pointer: int
    nbytes: int
    staging: Array | None = field(default=None, repr=False)

    def fill(self, byte: int) -> None:
        """Enqueues filling it with one byte."""
        self.device.call("cudaMemsetAsync", self.pointer, byte, self.nbytes, self.device.stream)

    def part(self, offset: int, nbytes: int) -> Buffer:
        """Some of its bytes; what is enqueued on them need not be aligned if it is a copy."""
        return Buffer(self.device, self.pointer + offset, nbytes)

    def upload(self, values: Array) -> None:
        """Enqueues a copy of an array to its start. The stream must have done the upload before."""
        staging = self._host()[: values.nbytes]
        np.copyto(staging.view(values.dtype).reshape(values.shape), values)
        self.device.copy(self.pointer, staging.ctypes.data, values.nbytes, "HostToDevice")

    def download(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """The content at its start, after all enqueued work."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        staging = self._host()[:nbytes]
        self.device.copy(staging.ctypes.data, self.pointer, nbytes, "DeviceToHost")
        self.device.synchronize()
        return staging.view(dtype).reshape(shape).copy()

    def _host(self) -> Array:
        if self.staging is None:
            self.staging = self.device.pinned(self.nbytes)
        return self.staging


@dataclass(frozen=True)
class Captured:
    """A CUDA graph that is ready to run."""

    device: Device = field(repr=False)
    executable: Any
    nodes: int

    def launch(self) -> None:
        """Enqueues all of it."""
        self.device.call("cudaGraphLaunch", self.executable, self.device.stream)


@dataclass(frozen=True)
class DeviceArray:
    """An array in device memory, until the graph that made it runs again."""

    buffer: Buffer
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def numpy(self) -> Array:
        """A copy on the host, after all that is enqueued."""
        return self.buffer.download(self.shape, self.dtype)


def faithful(captured: Captured, run: Callable[[], None], outputs: list[DeviceArray]) -> bool:
    """True if a graph gives the results of the same work without it.

    An enqueue that fails while it is captured can leave a graph without its kernels and no error; every
    replay would then leave the outputs of the run before. So the outputs are overwritten in between.

    Args:
        captured: The graph.
        run: The same work without it.
        outputs: All that it writes and that may be read afterwards, by itself too.
    """
    run()
    expected = [output.numpy() for output in outputs]
    for output in outputs:
        output.buffer.fill(0xFF)  # NaN as float32
    captured.launch()
    return all(_close(output.numpy(), wanted) for output, wanted in zip(outputs, expected, strict=True))


def _close(found: Array, wanted: Array) -> bool:
    # two runs of one engine may differ in rounding, a stale or empty output differs altogether
    finite = np.isfinite(wanted)
    if not finite.any() or not np.array_equal(finite, np.isfinite(found)):
        return False  # NaN is what the outputs were overwritten with: it proves nothing
    one, other = found[finite].astype(np.float64), wanted[finite].astype(np.float64)
    return bool(np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other) + 1e-6)
