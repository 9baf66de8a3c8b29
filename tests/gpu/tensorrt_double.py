"""A strict double of TensorRT's Python bindings that really computes, with ONNX Runtime on the CPU.

A plan is the network's ONNX behind a header. What the double offers is held to `bindings/tensorrt-*.json` by
`test_double.py`: every name, parameter and property. It refuses what the real library punishes by a crash or by
silence: an address that is not aligned or not in live memory, an output's address before the shapes, a capture
before the first run, an input and an output in one place, results that nobody looks at.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Sequence
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from .cuda_double import ALIGNMENT, CudaDouble, DoubleError

MAGIC = b"double of a plan\0"
SCRATCH = 1000  # bytes of activations for every node


class Truth:
    """A bool that knows whether somebody looked at it."""

    def __init__(self, value: bool, call: str, log: list[Truth]) -> None:
        self.value, self.call, self.is_checked = value, call, False
        log.append(self)

    def __bool__(self) -> bool:
        self.is_checked = True
        return self.value


class Strict:
    """Has the attributes that its class defines and takes no others."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        super().__setattr__(name, value)


class TensorRtDouble:
    """One version of TensorRT beside one GPU; `module` is what the code under test imports."""

    def __init__(self, description: dict[str, Any], cuda: CudaDouble) -> None:
        self.version: str = description["version"]
        self.major = int(self.version.split(".")[0])
        self.cuda = cuda
        self.truths: list[Truth] = []
        self.builds = 0
        self.unsupported: set[str] = set()  # ONNX operators that the parser shall refuse
        self.loses_captures = False  # what is enqueued while capturing is lost, without an error
        self.loses_capture = 0  # only the so-many-th run of a graph, of those in its capture
        self.refuses_captures = False
        self.enums = {name: IntEnum(name, values) for name, values in description["enums"].items()}
        self.severity = IntEnum("Severity", description["severities"])
        self.classes = _classes(self)

    def module(self) -> ModuleType:
        module = ModuleType("tensorrt")
        module.__dict__.update(self.enums | self.classes | {"__version__": self.version})
        module.__dict__["nptype"] = nptype(self.enums["DataType"])
        return module

    def truth(self, value: bool, call: str) -> Truth:
        return Truth(value, call, self.truths)

    def faults(self) -> list[str]:
        """Results that nobody looked at."""
        return [f"{truth.call} unchecked" for truth in self.truths if not truth.is_checked]


def nptype(types: Any) -> Any:
    """The function of that name."""
    known = {types.FLOAT: np.float32, types.HALF: np.float16, types.INT64: np.int64, types.INT32: np.int32}

    def convert(trt_type: Any) -> Any:
        return known[trt_type]

    return convert


def _data_type(types: Any, onnx_type: int) -> Any:
    names = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF", onnx.TensorProto.INT64: "INT64"}
    return types[names[onnx_type]]


def dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """The shape of an input or output, -1 where it is open."""
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


def _inside(shape: Sequence[int], least: Sequence[int], most: Sequence[int]) -> bool:
    return len(shape) == len(least) and all(a <= s <= b for a, s, b in zip(least, shape, most, strict=True))


def _classes(double: TensorRtDouble) -> dict[str, type]:
    types, flags = double.enums["DataType"], double.enums["BuilderFlag"]

    class ILogger(Strict):
        Severity = double.severity

        def __init__(self) -> None:
            self._is_initialised = True

        def log(self, severity: Any, msg: str) -> None:
            raise DoubleError("ILogger.log must be overridden")

        def __setattr__(self, name: str, value: Any) -> None:  # a Python subclass takes what it likes
            object.__setattr__(self, name, value)

    def error(logger: Any, message: str) -> None:
        if not getattr(logger, "_is_initialised", False):
            raise DoubleError("ILogger.__init__ was not called")
        logger.log(double.severity["ERROR"], message)

    class IHostMemory(bytes):
        @property
        def nbytes(self) -> int:
            return len(self)

    class ITensor(Strict):
        def __init__(self, value: onnx.ValueInfoProto) -> None:
            self._value = value

        @property
        def name(self) -> str:
            return self._value.name

        @property
        def shape(self) -> tuple[int, ...]:
            return dims(self._value)

        @property
        def dtype(self) -> Any:
            return _data_type(types, self._value.type.tensor_type.elem_type)

    class INetworkDefinition(Strict):
        _model: onnx.ModelProto | None = None

        @property
        def num_inputs(self) -> int:
            return len(self._model.graph.input) if self._model else 0

        def get_input(self, index: int) -> ITensor:
            assert self._model
            return ITensor(self._model.graph.input[index])

    class ITimingCache(Strict):
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> IHostMemory:
            return IHostMemory(self._content)

    class IOptimizationProfile(Strict):
        def __init__(self) -> None:
            self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
                raise ValueError("shapes of a profile must be in order")
            self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

    class IBuilderConfig(Strict):
        def __init__(self) -> None:
            self._flags = {flags.TF32}
            self._profiles: list[IOptimizationProfile] = []
            self._level, self._verbosity, self._cache, self._aux_streams = 3, None, None, -1
            self._limits: dict[Any, int] = {}

        @property
        def builder_optimization_level(self) -> int:
            return self._level

        @builder_optimization_level.setter
        def builder_optimization_level(self, level: int) -> None:
            if not 0 <= level <= 5:
                raise DoubleError("levels go from 0 to 5")
            self._level = level

        @property
        def profiling_verbosity(self) -> Any:
            return self._verbosity

        @profiling_verbosity.setter
        def profiling_verbosity(self, verbosity: Any) -> None:
            self._verbosity = double.enums["ProfilingVerbosity"](verbosity)

        @property
        def max_aux_streams(self) -> int:
            return self._aux_streams

        @max_aux_streams.setter
        def max_aux_streams(self, count: int) -> None:
            self._aux_streams = count

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flags(flag))

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flags(flag))

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self._limits[double.enums["MemoryPoolType"](pool)] = pool_size

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
            return ITimingCache(bytes(serialized_timing_cache) or double.version.encode())

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> Truth:
            is_mine = cache._content.startswith(double.version.encode())
            self._cache = cache if is_mine else None
            return double.truth(is_mine, "set_timing_cache")

        def get_timing_cache(self) -> ITimingCache | None:
            return self._cache

    class Builder(Strict):
        def __init__(self, logger: Any) -> None:
            double.cuda._require_device()
            self._logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            strongly_typed = 1 << double.enums["NetworkDefinitionCreationFlag"].STRONGLY_TYPED
            if flags != (0 if double.major >= 11 else strongly_typed):
                raise DoubleError(f"flags {flags} make no strongly typed network in TensorRT {double.version}")
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> IHostMemory | None:
            model = network._model
            if model is None:
                raise DoubleError("the network is empty")
            profiles = config._profiles[0]._shapes if config._profiles else {}
            shapes = {}
            for value in model.graph.input:
                shape = dims(value)
                shapes[value.name] = profiles.get(value.name, (shape,) * 3)
                if any(size < 0 for size in shapes[value.name][0]):
                    error(self._logger, f"{value.name} is dynamic and no profile has it")
                    return None
                if not all(a in (-1, b) for a, b in zip(shape, shapes[value.name][1], strict=True)):
                    error(self._logger, f"the profile of {value.name} contradicts the network")
                    return None
            double.builds += 1
            if config._cache is not None:
                config._cache._content += b" " + model.graph.name.encode()
            header = {
                "version": double.version,
                "gpu": double.cuda.name.decode(),
                "shapes": shapes,
                "scratch": SCRATCH * len(model.graph.node),
                "flags": sorted(flag.name for flag in config._flags),
            }
            return IHostMemory(MAGIC + json.dumps(header).encode() + b"\0" + model.SerializeToString())

    class ParserError(Strict):
        def __init__(self, node: onnx.NodeProto) -> None:
            self._node = node

        def desc(self) -> str:
            return f"no importer for {self._node.op_type}"

        def node_name(self) -> str:
            return self._node.name

        def node_operator(self) -> str:
            return self._node.op_type

    class OnnxParser(Strict):
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network = network
            self._errors: list[ParserError] = []

        def parse(self, model: bytes, path: str | None = None) -> Truth:
            proto = onnx.load_from_string(bytes(model))
            if any(tensor.external_data for tensor in proto.graph.initializer):
                if path is None:
                    raise DoubleError("external weights need the path")
                onnx.load_external_data_for_model(proto, os.path.dirname(path))
            self._errors = [ParserError(n) for n in proto.graph.node if n.op_type in double.unsupported]
            if not self._errors:
                self._network._model = proto
            return double.truth(not self._errors, "parse")

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

    class IExecutionContext(Strict):
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine
            self._scratch: tuple[int, int] | None = None
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
            is_inside = _inside(shape, least, most)
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
            for (one, size), (other, _) in zip(spans, spans[1:], strict=False):
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
            return [*self._inputs, *self._outputs][index].name

        def get_tensor_mode(self, name: str) -> Any:
            modes = double.enums["TensorIOMode"]
            return modes.INPUT if name in self._shapes else modes.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            (value,) = (v for v in (*self._inputs, *self._outputs) if v.name == name)
            return _data_type(types, value.type.tensor_type.elem_type)

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
            feeds = {v.name: self._array(addresses[v.name], v.name, shapes[v.name]).copy() for v in self._inputs}
            for value, result in zip(self._outputs, self._session.run(None, feeds), strict=True):
                self._array(addresses[value.name], value.name, result.shape)[...] = result

        def _array(self, address: int, name: str, shape: tuple[int, ...]) -> Any:
            nbytes = engine_bytes(self, name, shape)
            raw = (ctypes.c_ubyte * nbytes).from_address(address)
            return np.frombuffer(raw, self._numpy(name)).reshape(shape)

    def engine_bytes(engine: ICudaEngine, name: str, shape: Sequence[int]) -> int:
        return int(np.prod(shape)) * int(np.dtype(engine._numpy(name)).itemsize)

    class Runtime(Strict):
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            double.cuda._require_device()
            content = bytes(serialized_engine)
            if not content.startswith(MAGIC):
                error(self._logger, "Magic tag does not match")
                return None
            header, _, model = content[len(MAGIC) :].partition(b"\0")
            known = json.loads(header)
            if (known["version"], known["gpu"]) != (double.version, double.cuda.name.decode()):
                error(self._logger, "the plan is of another version or GPU")
                return None
            return ICudaEngine(known, onnx.load_from_string(model))

    local = SimpleNamespace(**locals())
    names = (
        "Builder IBuilderConfig ICudaEngine IExecutionContext IHostMemory ILogger INetworkDefinition "
        "IOptimizationProfile ITensor ITimingCache OnnxParser ParserError Runtime"
    )
    return {name: getattr(local, name) for name in names.split()}
