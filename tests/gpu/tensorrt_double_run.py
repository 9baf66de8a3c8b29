"""The double's running half: engines that compute with ONNX Runtime on the CPU."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

from tests.gpu.cuda_double import ALIGNMENT, DoubleError
from tests.gpu.tensorrt_parts import MAGIC, Strict, Truth, data_type, error, inside, nptype

if TYPE_CHECKING:
    from tests.gpu.tensorrt_double import TensorRtDouble


def run_classes(double: TensorRtDouble) -> list[type]:
    """The classes that run a plan."""
    types = double.enums["DataType"]

    class IExecutionContext(Strict):
        _scratch: tuple[int, int] | None = None
        _is_warm: bool

        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._is_warm = False

        def set_device_memory(self, memory: int, size: int) -> None:
            if memory % ALIGNMENT or size < self._engine.device_memory_size_v2:
                raise DoubleError("activation memory must be aligned and large enough")
            double.cuda.block(memory, size, "d")
            self._scratch = (memory, size)

        def set_input_shape(self, name: str, shape: Any) -> Truth:
            least, _, most = self._engine._shapes[name]
            is_inside = inside(shape, least, most)
            if is_inside:
                self._shapes[name] = tuple(shape)
                self._is_warm = False
                for output in self._engine._outputs:
                    self._addresses.pop(output.name, None)
            return double.truth(is_inside, "set_input_shape")

        def infer_shapes(self) -> list[str]:
            return [name for name in self._engine._shapes if name not in self._shapes]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self._engine._shapes:
                return self._shapes.get(name, (-1,))
            if self.infer_shapes():
                return (-1,)
            return self._engine._output_shapes(self._shapes)[name]

        def set_tensor_address(self, name: str, memory: int) -> Truth:
            if self.infer_shapes():
                raise DoubleError(f"the address of {name} before all shapes")
            if memory % ALIGNMENT:
                raise DoubleError(f"the address of {name} is not a multiple of {ALIGNMENT}")
            double.cuda.block(memory, self._nbytes(name), "d")
            self._addresses[name] = memory
            return double.truth(True, "set_tensor_address")

        def execute_async_v3(self, stream_handle: int) -> Truth:
            engine, cuda = self._engine, double.cuda
            stream = cuda.stream(stream_handle)
            tensors = {value.name for value in (*engine._inputs, *engine._outputs)}
            if self._scratch is None or set(self._addresses) != tensors:
                return double.truth(False, "execute_async_v3")
            cuda.block(*self._scratch, "d")
            self._no_overlap()
            if stream.capture is not None:
                runs = sum(getattr(work, "engine", None) is engine for work in stream.capture)
                if double.loses_captures or runs + 1 == double.loses_capture:
                    double.loses_capture = 0
                    return double.truth(True, "execute_async_v3")
                if not self._is_warm or double.refuses_captures:
                    stream.is_broken = True
                    return double.truth(False, "execute_async_v3")
            addresses, shapes = dict(self._addresses), dict(self._shapes)

            def work() -> None:
                for name, address in addresses.items():
                    cuda.block(address, self._nbytes(name), "d")
                engine._compute(addresses, shapes)
                self._is_warm = True

            work.engine = engine  # type: ignore[attr-defined]
            cuda.enqueue(stream, work)
            return double.truth(True, "execute_async_v3")

        def _nbytes(self, name: str) -> int:
            return engine_bytes(self._engine, name, self.get_tensor_shape(name))

        def _no_overlap(self) -> None:
            spans = sorted((address, self._nbytes(name)) for name, address in self._addresses.items())
            for (one, size), (other, _) in pairwise(spans):
                if one + size > other:
                    raise DoubleError("two tensors in one place")

    class ICudaEngine(Strict):
        def __init__(self, header: dict[str, Any], model: onnx.ModelProto) -> None:
            self._header = header
            self._shapes = {name: tuple(map(tuple, shapes)) for name, shapes in header["shapes"].items()}
            self._inputs, self._outputs = list(model.graph.input), list(model.graph.output)
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = 1
            settings.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
            self._known: dict[Any, dict[str, tuple[int, ...]]] = {}

        @property
        def num_io_tensors(self) -> int:
            return len(self._inputs) + len(self._outputs)

        @property
        def device_memory_size_v2(self) -> int:
            return int(self._header["scratch"])

        def get_tensor_name(self, index: int) -> str:
            return str([*self._inputs, *self._outputs][index].name)

        def get_tensor_mode(self, name: str) -> Any:
            modes = double.enums["TensorIOMode"]
            return modes.INPUT if name in self._shapes else modes.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            (value,) = (v for v in (*self._inputs, *self._outputs) if v.name == name)
            return data_type(types, value.type.tensor_type.elem_type)

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            return list(self._shapes[name])

        def create_execution_context(self, strategy: Any = None) -> IExecutionContext:
            double.cuda._require_device()
            if strategy != double.enums["ExecutionContextAllocationStrategy"].USER_MANAGED:
                raise DoubleError("every context would allocate its own activations")
            return IExecutionContext(self)

        def _output_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
            key = tuple(sorted(shapes.items()))
            if key not in self._known:
                feeds = {v.name: np.zeros(shapes[v.name], self._numpy(v.name)) for v in self._inputs}
                found = self._session.run(None, feeds)
                self._known[key] = {v.name: f.shape for v, f in zip(self._outputs, found, strict=True)}
            return self._known[key]

        def _numpy(self, name: str) -> Any:
            return nptype(types)(self.get_tensor_dtype(name))

        def _compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
            feeds = {
                v.name: self._array(addresses[v.name], v.name, shapes[v.name]).copy() for v in self._inputs
            }
            for value, result in zip(self._outputs, self._session.run(None, feeds), strict=True):
                self._array(addresses[value.name], value.name, result.shape)[...] = result

        def _array(self, address: int, name: str, shape: tuple[int, ...]) -> Any:
            nbytes = engine_bytes(self, name, shape)
            raw = np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(address))
            return raw.view(self._numpy(name)).reshape(shape)

    def engine_bytes(engine: ICudaEngine, name: str, shape: Sequence[int]) -> int:
        return int(np.prod(shape)) * int(np.dtype(engine._numpy(name)).itemsize)

    class Runtime(Strict):
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            double.cuda._require_device()
            content = bytes(serialized_engine)
            if not content.startswith(MAGIC):
                error(double, self._logger, "Magic tag does not match")
                return None
            header, _, model = content[len(MAGIC) :].partition(b"\0")
            known = json.loads(header)
            if (known["version"], known["gpu"]) != (double.version, double.cuda.name.decode()):
                error(double, self._logger, "the plan is of another version or GPU")
                return None
            return ICudaEngine(known, onnx.load_from_string(model))

    return [IExecutionContext, ICudaEngine, Runtime]
