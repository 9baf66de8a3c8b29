"""TensorRT engines: loading plans, and running one at fixed shapes and addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flowsep_runtime.arrays import Array
from flowsep_runtime.backends.samples import SEED, sample
from flowsep_runtime.backends.tensorrt.cuda_device import Buffer, Captured, Device, DeviceArray, faithful
from flowsep_runtime.errors import BackendError, shown

if TYPE_CHECKING:
    import tensorrt

Values: TypeAlias = "Array | DeviceArray"


def quiet_logger() -> Any:
    """A logger of TensorRT that prints nothing and keeps the errors, in `errors`."""
    import tensorrt

    class Quiet(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity <= tensorrt.ILogger.Severity.ERROR:
                self.errors.append(" ".join(msg.split()))

        def last(self) -> str:
            """The last error, for a sentence."""
            return self.errors[-1] if self.errors else "no reason given"

    return Quiet()


class Loader:
    """TensorRT's runtime; it must live as long as its engines."""

    def __init__(self) -> None:
        import tensorrt

        self.tensorrt = tensorrt
        self.logger = quiet_logger()
        self._runtime = tensorrt.Runtime(self.logger)

    def load(self, plan: Path) -> Any:
        """An engine. The device that it shall run on must be current.

        Raises:
            BackendError: If the plan cannot be read, or is of another TensorRT or GPU.
        """
        try:
            content = plan.read_bytes()
        except OSError as error:
            raise BackendError(f"{shown(plan)} cannot be read: {error.strerror}.") from None
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise BackendError(f"TensorRT cannot load {shown(plan)}: {self.logger.last()}")
        return engine


class Bound:
    """An engine at fixed shapes: its context, a buffer for every input and output, its CUDA graph.

    Args:
        device: Where it runs; must be current.
        loader: What loaded the engine.
        engine: The engine of one graph.
        name: The graph's name.
        scratch: Device memory for activations. Engines that never run at once may share it; a captured
            graph has its address in it, so it must live as long as this.
        shapes: Of every input.
        shared: Buffers to use for some inputs and outputs, by name.

    Raises:
        BackendError: If the engine was not built for these shapes, or fails.
    """

    def __init__(
        self,
        device: Device,
        loader: Loader,
        engine: tensorrt.ICudaEngine,
        name: str,
        scratch: Buffer,
        shapes: Mapping[str, tuple[int, ...]],
        shared: Mapping[str, Buffer] | None = None,
    ) -> None:
        trt = loader.tensorrt
        self.name = name
        self._device = device
        self._loader = loader
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = engine.create_execution_context(strategy)
        if self._context is None:
            raise BackendError(f"TensorRT cannot prepare graph {name}: {loader.logger.last()}")
        if engine.device_memory_size_v2 > scratch.nbytes:
            raise BackendError(
                f"The engine of graph {name} needs {engine.device_memory_size_v2} bytes of memory and its "
                "engines.json says less: run flowsep-export --tensorrt again."
            )
        self._context.set_device_memory(scratch.pointer, scratch.nbytes)
        for tensor, shape in shapes.items():
            if not self._context.set_input_shape(tensor, shape):
                raise BackendError(_outside(engine, name, tensor, shape))
        unknown = self._context.infer_shapes()
        if unknown:
            raise BackendError(f"The engine of graph {name} leaves the shape of {unknown[0]} open.")
        self.arrays: dict[str, DeviceArray] = {}
        self.outputs: dict[str, DeviceArray] = {}
        self._own: list[Buffer] = []
        for index in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(index)
            array = self._array(engine, tensor, (shared or {}).get(tensor))
            if not self._context.set_tensor_address(tensor, array.buffer.pointer):
                raise BackendError(f"TensorRT refuses the address of {tensor} of graph {name}.")
            self.arrays[tensor] = array
            if engine.get_tensor_mode(tensor) == trt.TensorIOMode.OUTPUT:
                self.outputs[tensor] = array
        # A capture is held against the same work on what lies in the inputs: zeros would prove little, and
        # a log-mel of zeros is louder than any recording.
        random = np.random.default_rng(SEED)
        for tensor in shapes:
            if tensor not in (shared or {}):
                self.put(tensor, sample(tensor, self.arrays[tensor].shape, self.arrays[tensor].dtype, random))
        # what TensorRT initialises late it does now, where it cannot get into a captured graph
        self.enqueue()
        device.synchronize()
        self._graph: Captured | None = None

    def _array(self, engine: tensorrt.ICudaEngine, tensor: str, shared: Buffer | None) -> DeviceArray:
        shape = tuple(self._context.get_tensor_shape(tensor))
        dtype: np.dtype[Any] = np.dtype(self._loader.tensorrt.nptype(engine.get_tensor_dtype(tensor)))
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if shared is not None and shared.nbytes < nbytes:
            raise BackendError(f"{tensor} of graph {self.name} needs {nbytes} bytes, not {shared.nbytes}.")
        if shared is None:
            self._own.append(self._device.allocate(nbytes))
        return DeviceArray(shared or self._own[-1], shape, dtype)

    def enqueue(self) -> None:
        """Enqueues the engine's work, kernel by kernel."""
        if not self._context.execute_async_v3(int(self._device.stream)):
            raise BackendError(f"TensorRT failed in graph {self.name}: {self._loader.logger.last()}")

    def capture(self) -> bool:
        """Makes `launch` one call for the driver. False if that cannot be done."""
        self._graph = captured(self._device, self.enqueue, list(self.outputs.values()))
        return self._graph is not None

    @property
    def nodes(self) -> int:
        """Kernels and copies of one run of the captured graph; 0 if it was not captured."""
        return 0 if self._graph is None else self._graph.nodes

    def launch(self) -> None:
        """Enqueues the engine's work, as one graph if it was captured."""
        if self._graph is None:
            self.enqueue()
        else:
            self._graph.launch()

    def run(self, inputs: Mapping[str, Values]) -> dict[str, DeviceArray]:
        """Enqueues copies into inputs and the work; gives the outputs, valid until the next run."""
        for tensor, values in inputs.items():
            self.put(tensor, values)
        self.launch()
        return self.outputs

    def release(self) -> None:
        """Frees its buffers and its captured graph; it cannot be used again."""
        if self._graph is not None:
            self._device.discard(self._graph)
            self._graph = None
        self._context = None
        for buffer in self._own:
            self._device.free(buffer)
        self._own.clear()

    def put(self, tensor: str, values: Values, rows: Sequence[int] | None = None) -> None:
        """Enqueues a copy into an input's buffer, like `put`."""
        put(self._device, self.arrays[tensor], values, rows)


def put(device: Device, target: DeviceArray, values: Values, rows: Sequence[int] | None = None) -> None:
    """Enqueues a copy into an array.

    Args:
        device: Where it is.
        target: [N, ...].
        values: [M, ...].
        rows: Those of `values` that go there, N of them; None: all, or the only one to every row.
    """
    if values.dtype != target.dtype or values.shape[1:] != target.shape[1:]:
        raise ValueError(f"{values.dtype} {values.shape} does not go into {target.dtype} {target.shape}")
    count, given = target.shape[0], values.shape[0]
    if rows is None:
        rows = range(count) if given == count else [0] * count
        if given not in (1, count):
            raise ValueError(f"batch {given} does not go into {count}")
    if not isinstance(values, DeviceArray):
        target.buffer.upload(values[list(rows)])
    elif list(rows) == list(range(given)):
        device.copy(target.buffer.pointer, values.buffer.pointer, values.nbytes)
    else:
        width = values.nbytes // given
        for place, row in enumerate(rows):
            device.copy(target.buffer.pointer + place * width, values.buffer.pointer + row * width, width)


def captured(device: Device, run: Callable[[], None], outputs: list[DeviceArray]) -> Captured | None:
    """The work of `run` as a graph that was tested to give the same results; None if there is none."""
    graph = device.capture(run)
    if graph is None or faithful(graph, run, outputs):
        return graph
    device.discard(graph)
    return None


def _outside(engine: tensorrt.ICudaEngine, name: str, tensor: str, shape: tuple[int, ...]) -> str:
    least, _, most = (tuple(dims) for dims in engine.get_tensor_profile_shape(tensor, 0))
    return (
        f"The engine of graph {name} takes {tensor} of {least} to {most} and not {shape}: "
        "build it with other --batch or --frames."
    )
