"""The double's building half: logger, network, parser, builder."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import onnx

from tests.gpu.cuda_double import DoubleError
from tests.gpu.tensorrt_parts import MAGIC, SCRATCH, Strict, Truth, data_type, dims, error

if TYPE_CHECKING:
    from tests.gpu.tensorrt_double import TensorRtDouble


def build_classes(double: TensorRtDouble) -> list[type]:
    """The classes that make a plan."""
    types, flags = double.enums["DataType"], double.enums["BuilderFlag"]

    class ILogger(Strict):
        Severity = double.severity

        def __init__(self) -> None:
            self._is_initialised = True

        def log(self, severity: Any, msg: str) -> None:
            raise DoubleError("ILogger.log must be overridden")

        def __setattr__(self, name: str, value: Any) -> None:  # a Python subclass takes what it likes
            object.__setattr__(self, name, value)

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
            return data_type(types, self._value.type.tensor_type.elem_type)

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
            self._level, self._verbosity, self._aux_streams = 3, None, -1
            self._cache: ITimingCache | None = None
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
                raise DoubleError(
                    f"flags {flags} make no strongly typed network in TensorRT {double.version}"
                )
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
                    error(double, self._logger, f"{value.name} is dynamic and no profile has it")
                    return None
                if not all(a in (-1, b) for a, b in zip(shape, shapes[value.name][1], strict=True)):
                    error(double, self._logger, f"the profile of {value.name} contradicts the network")
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

    return [
        ILogger,
        IHostMemory,
        ITensor,
        INetworkDefinition,
        ITimingCache,
        IOptimizationProfile,
        IBuilderConfig,
        Builder,
        ParserError,
        OnnxParser,
    ]
