"""The model's stages on each kind of engine, for a worker: numpy arrays in and out.

Nothing heavy is imported before a contestant needs it: a cold start is to count its own imports only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks.inputs import QUERY, SEED
from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.backends import offline
from flowsep_runtime.solvers import solver_named

if TYPE_CHECKING:
    from benchmarks.worker import Task

VELOCITY, FEATURES = "velocity", "features"
"""A step of the solver's loop, and what an engine computes once before it."""

Outputs = tuple[Floats, ...]


class Engine(Protocol):
    """One contestant's model; a stage is loaded when it is first called."""

    def call(self, stage: str, arguments: Sequence[Array]) -> Outputs:
        """Runs a stage."""

    def timed(self, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
        """Runs a stage; seconds, of the velocity for a step of the loop."""

    def solve(self, noise: Floats, condition: Sequence[Array], steps: int, solver: str) -> Floats:
        """The whole loop; `condition` is mixture latent, text and mask."""


def open_engine(task: Task) -> Engine:
    """A contestant's engine."""
    match task.kind:
        case "torch":
            return TorchEngine(task)
        case "plain":
            return PlainEngine(task)
        case "bundle":
            return BundleEngine(task)
    raise ValueError(f"there is no kind {task.kind!r}")


def whole_clip(engine: Engine, inputs: Mapping[str, Array], steps: int, solver: str) -> Floats:
    """Mixture and query to waveform `[B, 160·T + 32]`, as everyone does it."""
    (log_mel,) = engine.call("log_mel", [inputs["waveform"]])
    (text,) = engine.call("encode_text", [inputs["input_ids"], inputs["attention_mask"]])
    mean, std = engine.call("encode_mixture", [log_mel])
    condition = [mean + std * inputs["posterior_noise"], text, inputs["attention_mask"]]
    latent = engine.solve(inputs["noise"], condition, steps, solver)
    (log_mel,) = engine.call("decode_latent", [latent])
    (waveform,) = engine.call("vocode", [log_mel])
    return waveform


def stepped(engine: Engine, noise: Floats, condition: Sequence[Array], steps: int, solver: str) -> Floats:
    """The loop of an engine that has none of its own: the runtime's solvers over `velocity`."""
    method = solver_named(solver)
    times = method.times(steps)

    def velocity(x: Floats, k: int) -> Floats:
        return engine.call(VELOCITY, [x, np.full(len(x), times[k], np.float32), *condition])[0]

    x = noise
    for state in method.integrate(velocity, noise, steps):
        x = state
    return x


class TorchEngine:
    """The reference, eager or compiled, in float32 or under bf16 autocast."""

    def __init__(self, task: Task) -> None:
        import torch

        from flowsep_ref import FlowSep

        torch.set_num_threads(task.threads)
        self._torch = torch
        self._task = task
        self._model = FlowSep.from_checkpoint(task.weights, task.config)
        self._compiled: dict[str, Callable[..., Any]] = {}

    def call(self, stage: str, arguments: Sequence[Array]) -> Outputs:
        torch = self._torch
        is_half = self._task.precision == "bf16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext():
            result = self._method(stage)(*(torch.as_tensor(argument) for argument in arguments))
        tensors = result if isinstance(result, tuple) else (result,)
        return tuple(tensor.float().numpy() for tensor in tensors)

    def timed(self, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
        return _seconds(self, stage, arguments)

    def solve(self, noise: Floats, condition: Sequence[Array], steps: int, solver: str) -> Floats:
        return stepped(self, noise, condition, steps, solver)

    def _method(self, stage: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._model, stage)
        if not self._task.is_compiled:
            return method
        if stage not in self._compiled:
            options: dict[str, Any] | None = {"freezing": True} if self._task.precision == "bf16" else None
            self._compiled[stage] = self._torch.compile(method, dynamic=False, options=options)
        return self._compiled[stage]


class PlainEngine:
    """Plain graphs on ONNX Runtime or OpenVINO, with the engine's defaults but for threads and precision."""

    def __init__(self, task: Task) -> None:
        assert task.plain is not None
        self._task = task
        self._folder = Path(task.plain)
        self._runs: dict[str, Callable[[Sequence[Array]], Outputs]] = {}

    def call(self, stage: str, arguments: Sequence[Array]) -> Outputs:
        if stage not in self._runs:
            path = self._folder / f"{stage}.onnx"
            opener = _onnxruntime if self._task.engine == "onnxruntime" else _openvino
            self._runs[stage] = opener(path, self._task.threads, self._task.precision)
        return self._runs[stage](arguments)

    def timed(self, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
        return _seconds(self, stage, arguments)

    def solve(self, noise: Floats, condition: Sequence[Array], steps: int, solver: str) -> Floats:
        return stepped(self, noise, condition, steps, solver)


def _onnxruntime(path: Path, threads: int, precision: str) -> Callable[[Sequence[Array]], Outputs]:
    onnxruntime = offline.onnxruntime()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(arguments: Sequence[Array]) -> Outputs:
        return tuple(session.run(None, dict(zip(names, arguments, strict=True))))

    return run


def _openvino(path: Path, threads: int, precision: str) -> Callable[[Sequence[Array]], Outputs]:
    openvino = offline.openvino()

    # OpenVINO's own default is bf16 where the processor has it, so that either is asked for by name
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision or "f32"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(str(path)), "CPU", options).create_infer_request()

    def run(arguments: Sequence[Array]) -> Outputs:
        results = request.infer(list(arguments))
        return tuple(np.array(array, np.float32) for array in results.values())

    return run


class BundleEngine:
    """This project's runtime."""

    def __init__(self, task: Task) -> None:
        from flowsep_runtime import Pipeline

        assert task.bundle is not None
        precision: Any = task.precision
        options: dict[str, Any] = {"low_memory": True} if task.is_low_memory else {}
        self.pipeline = Pipeline.load(task.bundle, task.engine, precision, task.threads, **options)

    def call(self, stage: str, arguments: Sequence[Array]) -> Outputs:
        result = getattr(self.pipeline, stage)(*arguments)
        return result if isinstance(result, tuple) else (result,)

    def timed(self, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
        """The velocity is timed in the loop, where what stays the same has been computed once: from the end
        of the first step to the end of the second. What comes before the first is `features`."""
        from flowsep_runtime.backends import SolverLoop

        if stage != VELOCITY:
            return _seconds(self, stage, arguments)
        x, _, mixture_latent, text, mask = arguments
        stamps = [time.perf_counter()]

        def stamp(done: int, steps: int) -> None:
            stamps.append(time.perf_counter())

        self.pipeline.solve(x, mixture_latent, text, mask, steps=2, progress=stamp)
        if isinstance(self.pipeline.backend, SolverLoop):
            # such a loop may report all steps at its end, so that only the whole of it can be timed
            return {VELOCITY: (time.perf_counter() - stamps[0]) / 2, FEATURES: 0.0}
        start, first, second = stamps
        return {VELOCITY: second - first, FEATURES: max(0.0, first - start - (second - first))}

    def is_whole_clip(self, inputs: Mapping[str, Array]) -> bool:
        """Whether the waveform is one clip of the model's own length, which `Separator` does not fill up."""
        return inputs["waveform"].shape == (1, self.pipeline.manifest.model.clip_samples)

    def separate(self, inputs: Mapping[str, Array], steps: int, solver: str) -> Floats:
        """The same as `whole_clip`, through what people call."""
        from flowsep_runtime import Separator

        rate = self.pipeline.manifest.model.sample_rate
        found = Separator(self.pipeline).separate(inputs["waveform"][0], rate, QUERY, steps, solver, SEED)
        return found.target[None]

    def solve(self, noise: Floats, condition: Sequence[Array], steps: int, solver: str) -> Floats:
        mixture_latent, text, mask = condition
        return self.pipeline.solve(noise, mixture_latent, text, mask, steps, solver)


def _seconds(engine: Engine, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
    start = time.perf_counter()
    engine.call(stage, arguments)
    return {stage: time.perf_counter() - start}
