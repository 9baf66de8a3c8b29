"""OpenVINO on the CPU: float32, or bfloat16 where the processor computes it.

The design of this module follows from three properties of OpenVINO:

- Its kernels are chosen when a graph is compiled, and the quicker ones need to know every shape. So a graph
  is compiled for one row of the shape that it is first given, and the rows of a batch go through one after
  another: on a CPU a batch gains nothing, it would take more memory, and a row's numbers do not depend on
  its neighbours.
- Its own cache of compiled graphs does not tell settings apart: what was compiled with fusion is given to
  someone who asked for none. So each setting of each graph has a folder of its own there. And it is read
  without OpenVINO's help (see `compiled_cache.py`).
- It has been wrong in bfloat16, so a graph is tried before it is used (see `accuracy.py`).

With fixed shapes, the graphs that take all the time can also be rewritten for it (see `channels_last.py`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flowsep_runtime.arrays import Array
from flowsep_runtime.backends import Arithmetic, give_memory_back, offline, threads_in_words
from flowsep_runtime.backends.expected import expected_outputs, thinned
from flowsep_runtime.backends.locks import GraphLocks
from flowsep_runtime.backends.openvino import channels_last
from flowsep_runtime.backends.openvino import compiled_cache as openvino_cache
from flowsep_runtime.backends.openvino.accuracy import (
    LEAST_EXACT_SNR,
    finite,
    least_snr,
    worst_snr_db,
)
from flowsep_runtime.backends.openvino.compiled_cache import Compiled
from flowsep_runtime.backends.openvino.mapped_files import give_back, mappings, repeated
from flowsep_runtime.backends.openvino.settings import EXACT, FAST, QUICK_GRAPHS, CompileSettings, choices
from flowsep_runtime.backends.openvino.weights import keep_half, narrow
from flowsep_runtime.backends.samples import Shapes, clip_shapes, sample_inputs
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.caches import cache_folder, keep_newest, recall, remember
from flowsep_runtime.errors import BackendError, FlowSepWarning, shown

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, InferRequest, Model
    from openvino.frontend import FrontEnd

#: Says what takes long at a first start, on level INFO.
_LOG = logging.getLogger(__name__)

SHAPES_KEPT = 2  # of a graph: the last two lengths that it was given
COMPILED_GRAPHS, COMPILED_BYTES = 64, 8 << 30  # in the cache folder
VERDICTS, REMEMBERED_VERDICTS = "openvino", 512


#: Held while a graph's files are mapped: what another thread maps meanwhile is not ours to give back.
_MAPPING = threading.Lock()

#: Cached in bf16 only: in float32 the copy would be as large as the bundle's largest file, and reading it no
#: quicker than compiling.
CACHED_IF_QUICK = ("encode_text",)


def why_not() -> str | None:
    """None if openvino is installed, else what to install."""
    if find_spec("openvino") is None:
        return "openvino is not installed, run: pip install 'flowsep-engine[openvino]'"
    return None


def arithmetic(precision: Arithmetic) -> str:
    """bfloat16 only if the processor has it: otherwise it would be emulated, which is slower."""
    return FAST[0].name if precision == "fast" and "BF16" in _capabilities() else EXACT[0].name


def open(
    folder: Path, manifest: Manifest, precision: Arithmetic, threads: int | None, cache: bool
) -> OpenVino:
    """Opens a bundle; graphs are compiled when they are first used."""
    return OpenVino(folder, manifest, arithmetic(precision) == FAST[0].name, threads, cache)


@cache
def _core() -> Core:
    core: Core = offline.openvino().Core()
    return core


def _front_end() -> FrontEnd:
    front_end: FrontEnd = offline.openvino().frontend.FrontEndManager().load_by_framework("onnx")
    return front_end


def _capabilities() -> list[str]:
    return list(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


class _Plan(NamedTuple):
    """Everything that a graph is compiled from."""

    files: list[Path]  # the graph, and those of its weights
    shapes: Shapes
    setting: CompileSettings
    properties: dict[str, Any]
    folder: Path | None  # of the cache


class _Model:
    """A compiled graph and its free requests; each call uses one of its own."""

    def __init__(self, graph: str, compiled: Compiled, setting: CompileSettings, outputs: list[str]) -> None:
        self.setting = setting
        self._graph = graph
        self._outputs = outputs
        self.idle: list[InferRequest] = []
        self._compiled = compiled.graph
        self._memory = compiled.memory  # what the graph lies in: CPython lets attributes go in this order

    def run(self, row: Mapping[str, Array]) -> dict[str, Array]:
        try:
            request = self.idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            results = request.infer(dict(row), share_inputs=True)
            outputs = {name: results[self._compiled.output(name)] for name in self._outputs}
        except Exception as error:  # OpenVINO's exceptions share no base class
            raise BackendError(f"OpenVINO failed in graph {self._graph}: {_last_line(error)}") from error
        self.idle.append(request)
        return outputs


class OpenVino:
    """Compiled graphs by name and shape of a row, each in the fastest setting that passed its test."""

    name = "openvino"

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        fast: bool,
        threads: int | None = None,
        cache: bool = True,
        counts: bool = False,
    ) -> None:
        """
        Args:
            folder, manifest: The bundle.
            fast: True for bf16 where it passes its test.
            threads: None leaves it to OpenVINO.
            cache: True to keep compiled graphs and the results of tests.
            counts: True to let OpenVINO count the time of every operator, for `requests`; without a cache.
        """
        self._counts = counts
        self._folder = folder
        self._manifest = manifest
        self._fast = fast
        self._threads = threads
        self._cache = cache
        self._models: dict[str, OrderedDict[str, _Model]] = {}
        self._settings: dict[str, str] = {}
        self._locks = GraphLocks()

    @property
    def description(self) -> str:
        usual = (FAST if self._fast else EXACT)[0].name
        others = [
            f"{graph} {setting}"
            for graph, setting in sorted(self._settings.copy().items())
            if setting != usual and self._is_quick(graph) == self._fast
        ]
        words = f"{usual} ({', '.join(others)})" if others else usual
        return f"openvino, {words}, {threads_in_words(self._threads)}"

    def load(self, graph: str) -> None:
        entry = self._manifest.graph(graph, self.name)
        self._model(graph, clip_shapes(entry, self._manifest.model))

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        shapes = {name: (1, *array.shape[1:]) for name, array in inputs.items()}
        batch = len(next(iter(inputs.values())))
        model = self._model(graph, shapes)
        rows = [model.run({name: array[k : k + 1] for name, array in inputs.items()}) for k in range(batch)]
        if batch == 1:
            return rows[0]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def free(self, graph: str) -> None:
        with self._locks(graph):
            models = self._models.get(graph)  # its name stays, for the count of those that are prepared
            if models:
                models.clear()
                give_memory_back()

    def requests(self, graph: str) -> list[InferRequest]:
        """OpenVINO's requests that have run a graph last, for a profile."""
        return [request for model in self._models.get(graph, {}).values() for request in model.idle]

    def _model(self, graph: str, shapes: Shapes) -> _Model:
        with self._locks(graph):
            models = self._models.setdefault(graph, OrderedDict())
            key = repr(sorted(shapes.items()))
            if key not in models:
                while len(models) >= SHAPES_KEPT:
                    models.popitem(last=False)
                models[key] = self._tried(graph, shapes)
                self._settings[graph] = models[key].setting.name
            models.move_to_end(key)
            return models[key]

    def _is_quick(self, graph: str) -> bool:
        """True for a graph that runs in bf16, if it passes its test."""
        if graph == "encode_text":
            # OpenVINO 2025.4 ended the process over a small text encoder in bf16.
            is_allowed = self._manifest.model.quick_text and offline.openvino().__version__ >= "2026"
            return self._fast and is_allowed
        return self._fast and graph in QUICK_GRAPHS

    def _tried(self, graph: str, shapes: Shapes) -> _Model:
        """The graph in the first setting that is right: finite, and close to float32 as exported."""
        settings = choices(graph, self._is_quick(graph))
        others, plain = settings[:-2], settings[-2:]
        least = least_snr(graph), LEAST_EXACT_SNR
        key = self._key(graph, shapes, str(least), *(setting.identity for setting in settings))
        verdict = recall(VERDICTS).get(key) if self._cache else None
        for setting in settings:
            if setting.name == verdict:
                return self._compiled(graph, shapes, setting)

        place = f"{[*self._models].index(graph) + 1} of {len(self._manifest.graphs)}"
        _LOG.info("preparing the model for this machine, once: %s (%s)", graph.replace("_", " "), place)
        inputs = sample_inputs(self._manifest.graph(graph, self.name), shapes)
        expected = expected_outputs(self._folder, self._manifest, graph, inputs) if others else None
        model = None if expected is None else self._first_right(graph, shapes, others, inputs, expected)
        if model is None:
            # A graph that is only compared with another setting is not kept on the disk.
            is_compared = bool(others) and expected is None
            model, reference = self._first_finite(graph, shapes, plain, inputs, keep=not is_compared)
            if is_compared:
                exact = model.setting
                del model  # so that two settings are never in memory together
                model = self._first_right(graph, shapes, others, inputs, reference)
                model = model or self._compiled(graph, shapes, exact)
        if model.setting != settings[0]:
            warnings.warn(
                f"Graph {graph} is not right in {settings[0].name} on this machine: "
                f"it runs in {model.setting.name}.",
                FlowSepWarning,
                stacklevel=2,
            )
        if self._cache:
            remember(VERDICTS, key, model.setting.name, REMEMBERED_VERDICTS)
        return model

    def _first_finite(
        self,
        graph: str,
        shapes: Shapes,
        settings: tuple[CompileSettings, ...],
        inputs: Mapping[str, Array],
        keep: bool,
    ) -> tuple[_Model, dict[str, Array]]:
        for setting in settings:
            model = self._compiled(graph, shapes, setting, keep)
            outputs = model.run(inputs)
            if finite(outputs):
                return model, thinned(outputs)
            del model  # so that two settings are never in memory together
        raise BackendError(f"OpenVINO gives numbers that are not finite in graph {graph}: try --backend cpu.")

    def _first_right(
        self,
        graph: str,
        shapes: Shapes,
        settings: tuple[CompileSettings, ...],
        inputs: Mapping[str, Array],
        reference: Mapping[str, Array],
    ) -> _Model | None:
        for setting in settings:
            least = least_snr(graph) if setting.quick else LEAST_EXACT_SNR
            try:
                model = self._compiled(graph, shapes, setting)
                outputs = model.run(inputs)
                if finite(outputs) and worst_snr_db(reference, thinned(outputs)) >= least:
                    return model
                del model  # so that two settings are never in memory together
            except BackendError:  # a refused setting counts as a failed one
                continue
        return None

    def _compiled(self, graph: str, shapes: Shapes, setting: CompileSettings, keep: bool = True) -> _Model:
        entry = self._manifest.graph(graph, self.name)
        files = [self._folder / file.name for file in entry.files]
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", **setting.properties}
        # Pinned, what several processes compute or several threads load would share the first processors.
        properties["ENABLE_CPU_PINNING"] = False
        if self._threads is not None:
            properties["INFERENCE_NUM_THREADS"] = self._threads
        if self._counts:
            properties["PERF_COUNT"] = True
        folder = self._cache_folder(graph, shapes, setting) if keep else None
        plan = _Plan(files, shapes, setting, properties, folder)
        compiled = None if folder is None else openvino_cache.read(_core(), folder, properties)
        if compiled is None:
            compiled = Compiled(_load(plan))
            if folder is not None and graph not in CACHED_IF_QUICK and openvino_cache.is_kept(folder):
                # What comes from the file takes less memory: it does without all that rewriting has left. Not
                # the text encoder, which is freed after its first query.
                del compiled
                give_memory_back()
                compiled = openvino_cache.read(_core(), folder, properties)
                compiled = compiled or Compiled(_load(plan._replace(folder=None)))
        return _Model(graph, compiled, setting, [output.name for output in entry.outputs])

    def _cache_folder(self, graph: str, shapes: Shapes, setting: CompileSettings) -> Path | None:
        """The cache folder of one compiled graph, after removal of old entries; None without a cache."""
        if not self._cache or (graph in CACHED_IF_QUICK and not setting.quick):
            return None
        try:
            root = cache_folder() / "openvino"
            folder = root / self._key(graph, shapes, setting.identity)[:32]
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
        except (OSError, RuntimeError):
            return None
        keep_newest(root, COMPILED_GRAPHS, COMPILED_BYTES)
        return folder if os.access(folder, os.W_OK) else None

    def _key(self, graph: str, shapes: Shapes, *how: str) -> str:
        """Key of a cache entry: the graph's files, OpenVINO, the processor, and the setting."""
        files = [file.sha256 for file in self._manifest.graph(graph, self.name).files]
        processor = _core().get_property("CPU", "FULL_DEVICE_NAME"), _capabilities()
        parts = files, offline.openvino().__version__, processor, sorted(shapes.items()), how
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _load(plan: _Plan) -> CompiledModel:
    path = plan.files[0]
    try:
        with _MAPPING:
            before = mappings(plan.files)
            # Not Core.read_model, which on a damaged file lets every front end print what it thinks of it.
            front_end = _front_end()
            model = front_end.convert(front_end.load(str(path)))
            ours = mappings(plan.files) - before
        # The weights' mappings live as long as this: the passes below may drop what they have folded.
        weights = model.clone()
        with repeated(lambda: give_back(ours)):
            keep_half(model)
            model.reshape({name: list(shape) for name, shape in plan.shapes.items()})
            if plan.setting.rewritten:
                channels_last.rewrite(model, plan.setting.quick)
            if plan.setting.quick:
                narrow(model)
            compiled = _compile(model, plan.properties, plan.folder)
        del weights
        return compiled
    except Exception as error:
        raise BackendError(f"OpenVINO cannot load {shown(path)}: {_last_line(error)}") from error


def _compile(model: Model, properties: dict[str, Any], folder: Path | None) -> CompiledModel:
    if folder is not None:
        # The failure may be only the cache's, such as a full disk.
        with suppress(Exception), openvino_cache.writing(folder) as scratch:
            return _core().compile_model(model, "CPU", properties | {"CACHE_DIR": str(scratch)})
    return _core().compile_model(model, "CPU", properties)


def _last_line(error: Exception) -> str:
    """OpenVINO's messages begin with the place in its source and end with what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
