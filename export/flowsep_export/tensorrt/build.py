"""One graph to one TensorRT plan, for TensorRT 10.13 to 11: strongly typed, the graph says each precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from flowsep_export.errors import EngineError
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.tensorrt.plans import quiet_logger

#: Inputs of a graph; a text names an axis.
Axes = Mapping[str, tuple[int | str, ...]]

#: Makes a graph for the sizes of the axes that are fixed.
Spelling = Callable[[Mapping[str, int]], onnx.ModelProto]


@dataclass(frozen=True)
class BuilderSettings:
    """Options of TensorRT's builder, beside shapes."""

    level: int = 3  # of optimisation, 0 to 5
    workspace: int | None = None  # bytes of device memory while building; None is all of it
    tf32: bool = True  # in float32 products

    def words(self) -> dict[str, str]:
        """The options as `engines.json` stores them."""
        workspace = "all" if self.workspace is None else f"{self.workspace} bytes"
        return {"level": str(self.level), "workspace": workspace, "tf32": "on" if self.tf32 else "off"}


class PlanBuilder:
    """TensorRT's builder with its timing cache. The device that the plans are for must be current."""

    def __init__(self, settings: BuilderSettings, timing_cache: bytes = b"") -> None:
        import tensorrt

        self._trt: ModuleType = tensorrt
        self._settings = settings
        self._logger = quiet_logger()
        self._builder = tensorrt.Builder(self._logger)
        self.timing_cache = timing_cache

    def build(
        self, name: str, spell: Spelling, path: Path, inputs: Axes, ranges: Mapping[str, Range]
    ) -> bytes:
        """A plan.

        Args:
            name: The graph's name, for messages.
            spell: Gives it for the axes that are fixed, by name.
            path: The ONNX file that it comes from, external weights beside it.
            inputs: Its inputs' axes.
            ranges: Of every axis.

        Raises:
            EngineError: If TensorRT cannot read the graph, or cannot build it.
        """
        trt = self._trt
        network = self._builder.create_network(self._network_flags())
        parser = trt.OnnxParser(network, self._logger)
        fixed = {axis: r.best for axis, r in ranges.items() if r.least == r.most}
        if not parser.parse(spell(fixed).SerializeToString(), str(path)):
            raise EngineError(f"TensorRT cannot read graph {name}: {self._parser_errors(parser)}.")
        config = self._config()
        profile = self._profile(inputs, ranges)
        if profile is not None and config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT refuses the shapes of graph {name}: {self._logger.last()}.")
        # the cache must outlive the build, and a cache of another TensorRT or GPU is refused
        cache = config.create_timing_cache(self.timing_cache)
        if cache is None or not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            if cache is None or not config.set_timing_cache(cache, False):
                raise EngineError(f"TensorRT refuses a new timing cache: {self._logger.last()}.")
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"TensorRT cannot build graph {name}: {self._logger.last()}.")
        self.timing_cache = bytes(config.get_timing_cache().serialize())
        return bytes(plan)

    def _network_flags(self) -> int:
        if int(self._trt.__version__.split(".")[0]) >= 11:
            return 0  # from 11 on every network is strongly typed, and the bit means something else
        return 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def _config(self) -> Any:
        trt, settings = self._trt, self._settings
        config = self._builder.create_builder_config()
        config.builder_optimization_level = settings.level
        config.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        config.max_aux_streams = 0  # one stream: what is captured is what runs
        if settings.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
        if not settings.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        return config

    def _profile(self, inputs: Axes, ranges: Mapping[str, Range]) -> Any:
        """None if every size is fixed."""
        profile = None
        for tensor, axes in inputs.items():
            bounds = [Range(axis, axis, axis) if isinstance(axis, int) else ranges[axis] for axis in axes]
            if all(bound.least == bound.most for bound in bounds):
                continue
            profile = profile or self._builder.create_optimization_profile()
            profile.set_shape(
                tensor,
                tuple(bound.least for bound in bounds),
                tuple(bound.best for bound in bounds),
                tuple(bound.most for bound in bounds),
            )
        return profile

    @staticmethod
    def _parser_errors(parser: Any) -> str:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return "; ".join(f"{e.desc()} (node {e.node_name()}, {e.node_operator()})" for e in errors[:3])
