"""TensorRT engines that `flowsep-export --tensorrt` built on this GPU model, through cuda-python.

Arrays stay on the device from the waveform's upload to the result's download. All engines share one buffer
for activations and run on one stream; every graph is captured as a CUDA graph at its first shape, and the
solver's loop as one graph of all its steps.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.backends import Arithmetic, Schedule, refuse_half
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.device_graphs import guide_inputs
from flowsep_runtime.backends.loop_parts import CONSTANTS, INVARIANTS, STEP, engines_of
from flowsep_runtime.backends.nvidia_driver import why_too_full
from flowsep_runtime.backends.tensorrt.cuda_device import Buffer, Device, DeviceArray, why_no_device
from flowsep_runtime.backends.tensorrt.engines import (
    BETWEEN_STAGES,
    GUIDE,
    EngineSet,
    Machine,
    find_engines,
)
from flowsep_runtime.backends.tensorrt.loop import Loop
from flowsep_runtime.backends.tensorrt.plans import Bound, Loader, Values
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.errors import BackendError, FlowSepWarning, OptionError
from flowsep_runtime.solvers import solver_named

if TYPE_CHECKING:
    import tensorrt

#: Captured loops that are kept: each has a node for every kernel of every step in it.
LOOPS = 4


def why_not() -> str | None:
    """None if TensorRT, cuda-python and a GPU are here, else what is missing."""
    if find_spec("tensorrt") is None:
        return "tensorrt is not installed, run: pip install 'flowsep-engine[tensorrt]'"
    reason = why_no_device()
    if reason is not None:
        return reason
    try:
        import tensorrt  # noqa: F401
    except Exception as error:  # a library of its own that is missing is an ImportError, or an OSError
        return f"tensorrt cannot be loaded ({' '.join(str(error).split())})"
    return None


def arithmetic(precision: Arithmetic) -> str:
    """The arithmetic of a precision, in words."""
    return "float32" if precision == "exact" else "float16 where the bundle is in half precision"


def open(
    folder: Path, manifest: Manifest, precision: Arithmetic, threads: int | None, cache: bool
) -> TensorRt:
    """Opens the engines that the bundle has for this GPU; nothing is kept in the cache folder.

    Raises:
        OptionError: If it has none, they compute in half precision and `precision` is "exact", or the GPU
            has no room for the largest of them.
        BackendError: If they are damaged.
    """
    refuse_half("tensorrt", manifest, precision)
    try:
        device = Device()
    except BackendError as error:
        raise OptionError(f"The tensorrt backend cannot be used here: {str(error).rstrip('.')}.") from error
    try:
        engine_folder, engines = find_engines(folder, manifest, this_machine(device))
        free, _ = device.call("cudaMemGetInfo")
        largest = max(entry.plan.bytes for entry in engines.engines.values())
        reason = why_too_full(int(free), largest + engines.activation_bytes)
        if reason is not None:
            raise OptionError(f"The tensorrt backend cannot be used here: {reason}.")
        return TensorRt(engine_folder, engines, device)
    except BaseException:
        device.close()
        raise


def this_machine(device: Device) -> Machine:
    """The GPU and the libraries that plans would have to fit."""
    import tensorrt

    properties = device.call("cudaGetDeviceProperties", device.index)
    name = properties.name
    return Machine(
        gpu=name.decode() if isinstance(name, bytes) else str(name),
        compute_capability=f"{properties.major}.{properties.minor}",
        tensorrt=tensorrt.__version__,
        driver=int(device.call("cudaDriverGetVersion")),
    )


class TensorRt:
    """The engines of one bundle. Whatever runs has the device for itself: calls wait for each other."""

    name = "tensorrt"

    def __init__(self, folder: Path, engines: EngineSet, device: Device) -> None:
        self._folder = folder
        self._set = engines
        self._device = device
        self._lock = threading.RLock()
        self._loader = Loader()
        self._engines: dict[str, tensorrt.ICudaEngine] = {}
        self._scratch: Buffer | None = None  # as long as anything is bound to it
        self._bound: dict[tuple[Any, ...], Bound] = {}
        self._loops: dict[tuple[Any, ...], Loop] = {}
        self._said: set[str] = set()
        # contexts go before engines and engines before the memory they use
        self._release = weakref.finalize(self, _release, (self._loops, self._bound, self._engines), device)
        self._release.atexit = False  # the driver frees what a process leaves

    @property
    def description(self) -> str:
        """Engine, arithmetic and GPU, in words."""
        return f"tensorrt {self._set.machine.tensorrt}, {self._set.precision}, {self._set.machine.gpu}"

    def close(self) -> None:
        """Frees the device's memory; the backend cannot be used again."""
        self._release()

    @property
    def batches(self) -> Range:
        """The batches that the engines were built for."""
        return self._set.batch

    @property
    def loop_batches(self) -> Range:
        """The same for those of the loop."""
        return self._set.loop_batch or self._set.batch

    @property
    def guides(self) -> bool:
        """False for engines that were built before there was guidance in the loop."""
        return GUIDE in self._set.engines

    @contextmanager
    def session(self) -> Iterator[None]:
        """Alone with the device: what `keep` gives is valid to its end."""
        with self._lock:
            self._device.select()
            yield

    def load(self, graph: str) -> None:
        with self.session():
            for part in engines_of(graph):
                self._engine(part)

    def free(self, graph: str) -> None:
        """Gives back a graph's engine, with its arrays and captures; what `keep` gave of it is gone."""
        with self.session():
            if graph == "velocity":  # the loop has its addresses
                for loop in self._loops.values():
                    loop.release()
                self._loops.clear()
            for part in reversed(engines_of(graph)):
                self._unbind(part)
                self._engines.pop(part, None)
            if all(key[0] in BETWEEN_STAGES for key in self._bound):
                for name in BETWEEN_STAGES:
                    self._unbind(name)
                if self._scratch is not None:
                    self._device.free(self._scratch)
                    self._scratch = None

    def _unbind(self, graph: str) -> None:
        for key in [key for key in self._bound if key[0] == graph]:
            self._bound.pop(key).release()

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with self.session():
            return {name: output.numpy() for name, output in self.keep(graph, inputs).items()}

    def keep(self, graph: str, inputs: Mapping[str, Values]) -> dict[str, DeviceArray]:
        """Run a graph like `run`, from and to arrays in device memory; inside a `session`.

        Its outputs are valid until the graph runs again.
        """
        batch = max(values.shape[0] for values in inputs.values())
        shapes = {name: (batch, *values.shape[1:]) for name, values in inputs.items()}
        if graph != "velocity":
            return self._bind(graph, shapes).run(inputs)
        constants = self._constants(shapes)
        constants.run({name: inputs[name] for name in INVARIANTS})
        given = {name: values for name, values in inputs.items() if name not in INVARIANTS}
        return {"velocity": self._step(shapes, constants).run(given)["velocity"]}

    def synchronize(self) -> None:
        """Waits until all that was enqueued is done."""
        self._device.synchronize()

    def solve(self, schedule: Schedule, progress: Callable[[int, int], None] | None) -> Floats:
        invariants: dict[str, Values] = {
            "mixture_features": schedule.mixture_features,
            "keys_values": schedule.keys_values,
            "mask_bias": schedule.mask_bias,
        }
        with self.session():
            solution = self.keep_solution(schedule.solver, schedule.steps, schedule.x, invariants)
            answer: Floats = solution.numpy()
        if progress is not None:
            for done in range(1, schedule.steps + 1):
                progress(done, schedule.steps)
        return answer

    def keep_solution(
        self,
        solver: str,
        steps: int,
        noise: Floats,
        invariants: Mapping[str, Values],
        mixtures: Sequence[int] | None = None,
        guidance: Floats | None = None,
    ) -> DeviceArray:
        """The solver's loop in device memory, inside a `session`; see `DeviceBackend`.

        What is given is valid until the next loop or run of the velocity graph.
        """
        method = solver_named(solver)
        batch = noise.shape[0]
        shapes = {
            "x": noise.shape,
            **{name: (batch, *values.shape[1:]) for name, values in invariants.items()},
        }
        guide: Bound | None = None
        if guidance is not None:
            pairs = guide_inputs(guidance)
            guide = self._bind(GUIDE, {"rows": noise.shape} | {name: a.shape for name, a in pairs.items()})
            for name, array in pairs.items():
                guide.put(name, array)
        key = (solver, steps, guide is not None, *_key(shapes))
        is_new = key not in self._loops
        if is_new:
            rows = self.keep("velocity_time", {"t": method.times(steps)})["time_features"]
            shapes["time_features"] = (batch, rows.shape[1])
            constants = self._constants(shapes)
            sides = self._step(shapes, constants), self._step(shapes, constants, is_second=True)
            while len(self._loops) >= LOOPS:
                self._loops.pop(next(iter(self._loops))).release()
            self._loops[key] = Loop(self._device, constants, sides, rows, method.weights(steps), guide)
        loop = self._loops[key] = self._loops.pop(key)  # the last used comes last
        solution = loop.run(method.start(noise), invariants, mixtures)
        if is_new and not (loop.is_captured or loop.is_long):
            self._warn("the solver's loop")
        if guidance is not None:
            return replace(solution, shape=(len(guidance), *solution.shape[1:]))
        return solution

    def _constants(self, shapes: Mapping[str, tuple[int, ...]]) -> Bound:
        """The part that stays the same in a loop."""
        return self._bind(CONSTANTS, {name: shapes[name] for name in INVARIANTS})

    def _step(
        self, shapes: Mapping[str, tuple[int, ...]], constants: Bound, is_second: bool = False
    ) -> Bound:
        """A step, which reads the results of `constants` in place; the second reads what the first writes,
        and writes what the first reads."""
        of_step = {name: shapes[name] for name in ("x", "time_features")}
        of_step |= {"before": shapes["x"], "weights": (2,)}
        of_step |= {name: array.shape for name, array in constants.outputs.items()}
        shared = {name: array.buffer for name, array in constants.outputs.items()}
        if is_second:
            first = self._step(shapes, constants).arrays
            shared |= {name: first[name].buffer for name in ("time_features", "weights")}
            for one, other in (("x", "next_x"), ("before", "velocity")):
                shared |= {one: first[other].buffer, other: first[one].buffer}
        return self._bind(STEP, of_step, shared, is_second)

    def _bind(
        self,
        graph: str,
        shapes: Mapping[str, tuple[int, ...]],
        shared: Mapping[str, Buffer] | None = None,
        is_second: bool = False,
    ) -> Bound:
        key = (graph, is_second, *_key(shapes))
        if key not in self._bound:
            engine = self._engine(graph)
            if self._scratch is None:
                self._scratch = self._device.allocate(self._set.activation_bytes)
            bound = Bound(self._device, self._loader, engine, graph, self._scratch, shapes, shared)
            if not bound.capture():
                self._warn(f"graph {graph}")
            self._bound[key] = bound
        return self._bound[key]

    def _engine(self, graph: str) -> tensorrt.ICudaEngine:
        if graph not in self._engines:
            self._engines[graph] = self._loader.load(self._folder / self._set.engines[graph].plan.name)
        return self._engines[graph]

    def _warn(self, what: str) -> None:
        if what in self._said:  # it was freed, and is loaded again
            return
        self._said.add(what)
        warnings.warn(
            f"TensorRT runs {what} without a CUDA graph, which is slower: it could not be captured.",
            FlowSepWarning,
            stacklevel=3,
        )


def _key(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Any, ...]:
    return tuple(sorted(shapes.items()))


def _release(holders: tuple[dict[Any, Any], ...], device: Device) -> None:
    # a GPU that has failed refuses this too, and the process's end frees what it held
    with suppress(BackendError):
        device.select()  # whichever thread the last reference went in
        device.synchronize()
        for holder in holders:
            holder.clear()
        device.close()
