"""ONNX Runtime on an NVIDIA GPU, arrays in device memory from the waveform to the result.

A session is made for every shape that is asked for: with all sizes known ONNX Runtime folds what computes
shapes, so that nothing is left for the CPU and every run is one CUDA graph. Falling back to the CPU is
forbidden.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.backends import Arithmetic, Schedule, offline, refuse_half
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.device_graphs import guide_inputs
from flowsep_runtime.backends.loop_parts import CONSTANTS, STEP, parts_of
from flowsep_runtime.backends.nvidia_driver import free_bytes, why_no_driver, why_too_full
from flowsep_runtime.backends.onnxruntime.bound import Bound, OrtArray, failure
from flowsep_runtime.backends.onnxruntime.cuda_libraries import (
    keeps_captures,
    missing_library,
    why_old_driver,
)
from flowsep_runtime.backends.onnxruntime.shapes import GraphShapes
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.errors import BackendError, OptionError, shown
from flowsep_runtime.solvers import solver_named

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FATAL = 4  # of ONNX Runtime's severities
PROVIDER, DEVICE = "CUDAExecutionProvider", "cuda"
OPTIONS_VARIABLE = "FLOWSEP_CUDA_OPTIONS"  # provider options to measure with: "prefer_nhwc=1,use_tf32=0"
BATCHES = Range(1, 1, 64)


def why_not() -> str | None:
    """None if ONNX Runtime's CUDA provider and a GPU are here, else what is missing."""
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed, run: pip install 'flowsep-engine[gpu]'"
    onnxruntime = offline.onnxruntime()

    if PROVIDER not in onnxruntime.get_available_providers():
        return "this onnxruntime is for CPUs: replace it by pip install 'flowsep-engine[gpu]'"
    return why_no_driver() or why_old_driver() or missing_library(onnxruntime)


def arithmetic(precision: Arithmetic) -> str:
    """The arithmetic of a precision, in words."""
    return "float32" if precision == "exact" else "float16 where the bundle is in half precision"


def open(
    folder: Path, manifest: Manifest, precision: Arithmetic, threads: int | None, cache: bool
) -> OnnxRuntimeCuda:
    """Opens a bundle; nothing is kept in the cache folder.

    Raises:
        OptionError: If it computes in half precision and `precision` is "exact", or the GPU cannot run the
            bundle's first stage: what a library, a driver or a full GPU stands in the way of fails there.
    """
    refuse_half("cuda", manifest, precision)
    backend = OnnxRuntimeCuda(folder, manifest)
    try:
        backend.try_out()
    except BackendError as error:
        raise OptionError(f"The cuda backend cannot be used here: {str(error).rstrip('.')}.") from error
    return backend


class _OfSchedule(NamedTuple):
    """Data of a solver's evaluations: the time features, on the host and one row each on the device, and the
    weights."""

    features: Array
    rows: list[OrtArray]
    weights: list[OrtArray]


class OnnxRuntimeCuda:
    """Sessions by graph and sizes, bindings by session and addresses."""

    name = "cuda"
    batches = loop_batches = BATCHES
    guides = True

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._shapes = GraphShapes(manifest, self.name)
        self._lock = threading.RLock()
        self._sessions: dict[tuple[Any, ...], InferenceSession] = {}
        self._arrays: dict[tuple[Any, ...], OrtArray] = {}
        self._bindings: dict[tuple[Any, ...], Bound] = {}
        self._numbers = count(1)  # of captured runs
        self._schedules: dict[tuple[str, int], _OfSchedule] = {}
        # ONNX Runtime keeps its handles and what it has captured for each thread: all work is one thread's
        self._worker = ThreadPoolExecutor(1, "cuda")

    def try_out(self) -> None:
        """Runs the first stage on as little as it takes, and looks at how much memory is left for the rest.

        Raises:
            BackendError: If the GPU cannot do it.
        """
        model = self._manifest.model
        self.run("log_mel", {"waveform": np.zeros((1, model.frame_multiple * model.hop_length), np.float32)})
        self.free("log_mel")
        free = free_bytes()
        entries = [self._manifest.graph(name, self.name) for name in self._manifest.graphs]
        largest = max(sum(file.bytes for file in entry.files) for entry in entries)
        reason = None if free is None else why_too_full(free, largest)
        if reason is not None:
            raise BackendError(f"{reason}.")

    @property
    def description(self) -> str:
        """Backend and arithmetic, in words."""
        return f"cuda, {self._manifest.precision}"

    @contextmanager
    def session(self) -> Iterator[None]:
        """Alone with the device."""
        with self._lock:
            yield

    def load(self, graph: str) -> None:
        """Sessions are made for a shape, so that there is nothing to do before the first run."""

    def free(self, graph: str) -> None:
        """Gives back a graph's weights; they are loaded again when it is next wanted."""
        with self.session():
            for held in (self._bindings, self._sessions):
                for key in [key for key in held if key[0] in parts_of(graph)]:
                    del held[key]

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with self.session():
            return {name: array.numpy() for name, array in self.keep(graph, inputs).items()}

    def keep(self, graph: str, inputs: Mapping[str, Array | OrtArray]) -> dict[str, OrtArray]:
        """Run a graph like `run`, from and to arrays on the device."""
        batch = max(values.shape[0] for values in inputs.values())
        sizes = self._shapes.sizes(graph, {name: values.shape for name, values in inputs.items()}, batch)
        arrays = {name: self._put(graph, name, sizes, values) for name, values in inputs.items()}
        outputs = {
            name: self._array((graph, *sizes.items(), name), shape, self._shapes.dtype(graph, name))
            for name, shape in self._shapes.outputs(graph, sizes).items()
        }
        self._bind(graph, sizes, arrays, outputs).run()
        return outputs

    def synchronize(self) -> None:
        """Nothing to wait for: ONNX Runtime ends every run with its work done."""

    def solve(self, schedule: Schedule, progress: Callable[[int, int], None] | None) -> Floats:
        invariants: dict[str, Array | OrtArray] = {
            "mixture_features": schedule.mixture_features,
            "keys_values": schedule.keys_values,
            "mask_bias": schedule.mask_bias,
        }
        with self.session():
            return self.keep_solution(
                schedule.solver, schedule.steps, schedule.x, invariants, progress=progress
            ).numpy()

    def keep_solution(
        self,
        solver: str,
        steps: int,
        noise: Floats,
        invariants: Mapping[str, Array | OrtArray],
        mixtures: Sequence[int] | None = None,
        guidance: Floats | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> OrtArray:
        """The solver's loop on the device; see `DeviceBackend`.

        Where the bundle has the velocity graph in two parts, the loop repeats the second alone.

        The state goes to and fro between two arrays, and so does the velocity, because a captured run has its
        addresses in it: there are two captured runs of the velocity graph, one from each.
        """
        method = solver_named(solver)
        schedule = self._of_schedule(solver, steps)
        graph = "velocity"
        heard = invariants["mixture_features"]
        if mixtures is not None and list(mixtures) != list(range(heard.shape[0])):
            invariants = {**invariants, "mixture_features": self._picked(heard, mixtures)}
        if STEP in self._manifest.variants.get(self.name, {}):
            graph, invariants = STEP, self.keep(CONSTANTS, invariants)
        row = schedule.rows[0].shape
        shapes: dict[str, tuple[int, ...]] = {"x": noise.shape}
        shapes |= {name: values.shape for name, values in invariants.items()}
        shapes["time_features"] = (noise.shape[0], row[1])
        sizes = self._shapes.sizes(graph, shapes, noise.shape[0])
        fixed = {name: self._put(graph, name, sizes, values) for name, values in invariants.items()}
        scope = ("loop", *sizes.items())
        floats = np.dtype(np.float32)
        first = self._put(graph, "x", sizes, method.start(noise))
        states = first, self._array((*scope, "other x"), noise.shape, floats)
        velocities = [
            self._array((*scope, name), noise.shape, floats) for name in ("velocity", "other velocity")
        ]
        guide: dict[str, OrtArray] = {}
        guided: list[OrtArray] = []
        if guidance is not None:
            given = guide_inputs(guidance)
            pairs = {"rows": noise.shape} | {name: array.shape for name, array in given.items()}
            guide_sizes = self._shapes.sizes("guide", pairs, noise.shape[0])
            guide = {name: self._put("guide", name, guide_sizes, array) for name, array in given.items()}
            guided = [self._array((*scope, name), noise.shape, floats) for name in ("guided", "other guided")]
        before = self._array((*scope, "zeros"), noise.shape, floats)  # nothing writes there
        times = self._array((*scope, "times"), shapes["time_features"], floats)
        times.value.update_inplace(np.repeat(schedule.features[:1], noise.shape[0], axis=0))
        advance_shapes = dict.fromkeys(("x", "velocity", "before"), noise.shape) | {
            "weights": (2,),
            "row": row,
        }
        advance_sizes = self._shapes.sizes("advance", advance_shapes, noise.shape[0])
        evaluations = len(schedule.rows)
        for k in range(evaluations):
            x, next_x = states if k % 2 == 0 else states[::-1]
            velocity = velocities[k % 2]
            self._bind(graph, sizes, {"x": x, "time_features": times, **fixed}, {"velocity": velocity}).run()
            if guide:
                asked, velocity = {"rows": velocity, **guide}, guided[k % 2]
                self._bind("guide", guide_sizes, asked, {"guided": velocity}).run()
            advance = {"x": x, "velocity": velocity, "before": before, "weights": schedule.weights[k]}
            advance["row"] = schedule.rows[min(k + 1, evaluations - 1)]
            self._bind("advance", advance_sizes, advance, {"next_x": next_x, "time_features": times}).run()
            before = velocity
            done, rest = divmod((k + 1) * steps, evaluations)
            if progress is not None and not rest:
                progress(done, steps)
        solution = states[evaluations % 2]
        return solution if guidance is None else self._picked(solution, range(len(guidance)))

    def _picked(self, values: Array | OrtArray, rows: Sequence[int]) -> OrtArray:
        return self.keep("pick", {"values": values, "index": np.asarray(rows, np.int64)})["picked"]

    def _of_schedule(self, solver: str, steps: int) -> _OfSchedule:
        key = (solver, steps)
        if key not in self._schedules:
            method = solver_named(solver)
            features = self.keep("velocity_time", {"t": method.times(steps)})["time_features"].numpy()
            rows = [OrtArray(self._from_numpy(row[None])) for row in features]
            weights = [OrtArray(self._from_numpy(pair)) for pair in method.weights(steps)]
            self._schedules[key] = _OfSchedule(features, rows, weights)
        return self._schedules[key]

    def _put(self, graph: str, name: str, sizes: Mapping[str, int], values: Array | OrtArray) -> OrtArray:
        if isinstance(values, OrtArray):
            return values
        shape = self._shapes.inputs(graph, sizes)[name]
        array = self._array((graph, *sizes.items(), name), shape, values.dtype)
        array.value.update_inplace(np.ascontiguousarray(np.broadcast_to(values, shape)))
        return array

    def _array(self, key: tuple[Any, ...], shape: tuple[int, ...], dtype: np.dtype[Any]) -> OrtArray:
        if key not in self._arrays:
            self._arrays[key] = OrtArray(self._from_numpy(np.zeros(shape, dtype)))
        return self._arrays[key]

    def _from_numpy(self, values: Array) -> Any:
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), DEVICE, 0)

    def _bind(
        self,
        graph: str,
        sizes: Mapping[str, int],
        inputs: Mapping[str, OrtArray],
        outputs: Mapping[str, OrtArray],
    ) -> Bound:
        arrays = {**inputs, **outputs}
        key = (graph, *sizes.items(), *((name, id(array)) for name, array in sorted(arrays.items())))
        if key not in self._bindings:
            session = self._session(graph, sizes)
            number = next(self._numbers)
            self._bindings[key] = Bound(graph, session, self._worker, inputs, outputs, number)
        return self._bindings[key]

    def _session(self, graph: str, sizes: Mapping[str, int]) -> InferenceSession:
        key = (graph, *sizes.items())
        if key not in self._sessions:
            path = self._shapes.path(self._folder, graph)
            options = provider_options(self._manifest)
            self._sessions[key] = self._worker.submit(open_session, path, sizes, options).result()
        return self._sessions[key]


def provider_options(manifest: Manifest) -> dict[str, str]:
    """Options of the CUDA provider. None of them was chosen by measurement yet."""
    options = {
        "device_id": "0",
        "enable_cuda_graph": "1" if keeps_captures(offline.onnxruntime().__version__) else "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",  # shapes are fixed: it searches once
        "do_copy_in_default_stream": "1",
        "prefer_nhwc": "0",
        # the float32 islands of a half-precision bundle are far more exact than its tolerance
        "use_tf32": "1" if manifest.precision == "float16" else "0",
    }
    for pair in filter(None, os.environ.get(OPTIONS_VARIABLE, "").split(",")):
        name, separator, value = pair.partition("=")
        if not separator:
            raise OptionError(f"{OPTIONS_VARIABLE} must be NAME=VALUE,NAME=VALUE and not {pair!r}.")
        options[name.strip()] = value.strip()
    return options


def open_session(path: Path, sizes: Mapping[str, int], options: Mapping[str, str]) -> InferenceSession:
    """A session for fixed sizes, all of it on the GPU.

    Raises:
        BackendError: If ONNX Runtime refuses the graph, or would run some of it on the CPU.
    """
    onnxruntime = offline.onnxruntime()

    # from 1.31 on it warns of every session in a log of its own, and an error is in the exception anyway
    onnxruntime.set_default_logger_severity(FATAL)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = FATAL
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for axis, size in sizes.items():
        settings.add_free_dimension_override_by_name(axis, size)
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            settings,
            providers=[(PROVIDER, dict(options))],
            # it makes uneven splits of slices: a capture would copy their sizes from the host at every replay
            disabled_optimizers=["GatherSliceToSplitFusion"],
            enable_fallback=0,  # or its Python would try again on the CPU, and hide what went wrong
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise failure(f"ONNX Runtime cannot load {shown(path)}", error) from error
    if PROVIDER not in session.get_providers():
        raise BackendError(
            f"ONNX Runtime would run {shown(path)} on the CPU: its CUDA provider did not load."
        )
    return session
