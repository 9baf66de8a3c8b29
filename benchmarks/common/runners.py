"""The model's stages on each kind of backend, for a worker: numpy arrays in and out.

Heavy libraries are imported only when a contestant needs them, so that a cold start counts its own imports
only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks.common.inputs import QUERY, SEED
from benchmarks.common.peak import wait
from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.backends import offline
from flowsep_runtime.solvers import solver_named

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.common.task import Task
    from flowsep_runtime.backends import DeviceBackend

#: A step of the solver's loop, and what a backend computes once before it.
VELOCITY, FEATURES = "velocity", "features"

#: The whole clip, measured in one piece.
CLIP = "clip"

#: The modes of torch.compile that launch a compiled function as one CUDA graph.
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")

Outputs = tuple[Floats, ...]

#: Number of steps of a loop that a GPU runs in one piece; a step's time is its share of the whole.
LOOP_STEPS = 20


class Runner(Protocol):
    """One contestant's model; a stage is loaded when it is first called."""

    def call(self, stage: str, arguments: Sequence[Array]) -> Outputs:
        """Runs a stage."""

    def timed(self, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
        """Run a stage; return seconds, for the velocity of one step of the loop."""

    def clip(self, inputs: Mapping[str, Array], steps: int, solver: str) -> Floats:
        """Mixture and query to waveform `[B, 160·T + 32]`."""


class Stages(Protocol):
    """A backend whose stages `whole_clip` calls in order; its arrays may have a type of their own."""

    def put(self, array: Array) -> Any:
        """Convert an array of the host for the backend."""

    def run(self, stage: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """Runs a stage on its own arrays."""

    def get(self, array: Any) -> Floats:
        """Convert an array of the backend for the host."""


def open_runner(task: Task) -> Runner:
    """A contestant's backend."""
    match task.kind:
        case "torch":
            return TorchRunner(task)
        case "plain":
            return PlainRunner(task)
        case "bundle":
            return BundleRunner(task)
    raise ValueError(f"there is no kind {task.kind!r}")


def whole_clip(stages: Stages, inputs: Mapping[str, Array], steps: int, solver: str) -> Floats:
    """A clip on a baseline: one upload, and one download."""
    given = {name: stages.put(array) for name, array in inputs.items()}
    (log_mel,) = stages.run("log_mel", [given["waveform"]])
    (text,) = stages.run("encode_text", [given["input_ids"], given["attention_mask"]])
    mean, std = stages.run("encode_mixture", [log_mel])
    condition = [mean + std * given["posterior_noise"], text, given["attention_mask"]]
    latent = stepped(stages, given["noise"], condition, steps, solver)
    (log_mel,) = stages.run("decode_latent", [latent])
    (waveform,) = stages.run("vocode", [log_mel])
    return stages.get(waveform)


def stepped(stages: Stages, noise: Any, condition: Sequence[Any], steps: int, solver: str) -> Any:
    """The solver's loop for a backend without one: the runtime's solvers over `velocity`, on arrays of the
    backend; `condition` is mixture latent, text and mask."""
    method = solver_named(solver)
    # before the loop: an upload in it would wait for the work of the steps before
    times = [stages.put(np.full(len(noise), t, np.float32)) for t in method.times(steps)]

    def velocity(x: Any, k: int) -> Any:
        return stages.run(VELOCITY, [x, times[k], *condition])[0]

    x = noise
    for state in method.integrate(velocity, noise, steps):
        x = state
    return x


class TorchRunner:
    """The reference, eager or compiled: in float32, with half-precision weights, or under bf16 autocast."""

    def __init__(self, task: Task) -> None:
        import torch

        from flowsep_ref import FlowSep

        torch.set_num_threads(task.threads)
        if task.device == "cuda":
            settle_gpu(is_exact=not task.precision)
        self._torch = torch
        self._task = task
        model = FlowSep.from_checkpoint(task.weights, task.config)
        if task.precision == "fp16":
            from flowsep_export.precision import halve

            model = halve(model)
        self._model = model.to(task.device)
        self._compiled: dict[str, Callable[..., Any]] = {}

    def call(self, stage: str, arguments: Sequence[Array]) -> Outputs:
        return tuple(map(self.get, self.run(stage, [self.put(argument) for argument in arguments])))

    def timed(self, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
        given = [self.put(argument) for argument in arguments]
        wait(self._task.device)
        start = time.perf_counter()
        self.run(stage, given)
        wait(self._task.device)
        return {stage: time.perf_counter() - start}

    def clip(self, inputs: Mapping[str, Array], steps: int, solver: str) -> Floats:
        return whole_clip(self, inputs, steps, solver)

    def put(self, array: Array) -> Tensor:
        return self._torch.as_tensor(array, device=self._task.device)

    def run(self, stage: str, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        torch = self._torch
        is_cast = self._task.precision == "bf16"
        if self._task.precision == "fp16" and stage in TAKE_WEIGHTS_TYPE:
            arguments = [argument.half() for argument in arguments]
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16) if is_cast else nullcontext():
            result = self._method(stage)(*arguments)
            tensors = [tensor.float() for tensor in (result if isinstance(result, tuple) else (result,))]
            if self._task.compilation in CUDA_GRAPHS:
                # the next run of any compiled function may write where this one's results lie
                tensors = [tensor.clone() for tensor in tensors]
        return tuple(tensors)

    def get(self, array: Tensor) -> Floats:
        result: Floats = array.cpu().numpy()
        return result

    def _method(self, stage: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._model, stage)
        if not self._task.compilation:
            return method
        if stage not in self._compiled:
            self._compiled[stage] = self._torch.compile(
                method, dynamic=False, **COMPILE_OPTIONS[self._task.compilation]
            )
        return self._compiled[stage]


#: Stages of the reference that begin with a layer, which takes its weights' type only.
TAKE_WEIGHTS_TYPE = ("encode_mixture", "decode_latent", "vocode")

#: Arguments of torch.compile, by a contestant's compilation.
COMPILE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "freezing": {"options": {"freezing": True}},
    **{mode: {"mode": mode} for mode in CUDA_GRAPHS},
}


def settle_gpu(is_exact: bool) -> None:
    """Set PyTorch's arithmetic on a GPU: true float32, unless half precision is requested.

    Convolutions are searched for at the first run, as in this project's backends: shapes stay the same.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = not is_exact
    torch.backends.cudnn.allow_tf32 = not is_exact
    torch.backends.cudnn.benchmark = True


class PlainRunner:
    """Plain graphs on ONNX Runtime or OpenVINO, with their defaults except for threads and precision."""

    def __init__(self, task: Task) -> None:
        assert task.plain is not None
        self._task = task
        self._folder = Path(task.plain)
        self._runs: dict[str, Callable[[Sequence[Array]], Outputs]] = {}

    def call(self, stage: str, arguments: Sequence[Array]) -> Outputs:
        if stage not in self._runs:
            path = self._folder / f"{stage}.onnx"
            opener = _onnxruntime if self._task.backend == "onnxruntime" else _openvino
            self._runs[stage] = opener(path, self._task.threads, self._task.precision)
        return self._runs[stage](arguments)

    def timed(self, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
        return _seconds(self, stage, arguments)

    def clip(self, inputs: Mapping[str, Array], steps: int, solver: str) -> Floats:
        return whole_clip(self, inputs, steps, solver)

    def put(self, array: Array) -> Array:
        return array

    def run(self, stage: str, arguments: Sequence[Array]) -> Outputs:
        return self.call(stage, arguments)

    def get(self, array: Floats) -> Floats:
        return array


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


class BundleRunner:
    """This project's runtime."""

    def __init__(self, task: Task) -> None:
        from flowsep_runtime import Pipeline

        assert task.bundle is not None
        precision: Any = task.precision
        options: dict[str, Any] = {"low_memory": True} if task.is_low_memory else {}
        self.pipeline = Pipeline.load(task.bundle, task.backend, precision, task.threads, **options)

    def call(self, stage: str, arguments: Sequence[Array]) -> Outputs:
        result = getattr(self.pipeline, stage)(*arguments)
        return result if isinstance(result, tuple) else (result,)

    def timed(self, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
        """The velocity is timed in the loop, after its constants have been computed: from the end of the
        first step to the end of the second. The time before the first step is `features`."""
        from flowsep_runtime.backends import DeviceBackend, SolverLoop

        backend = self.pipeline.backend
        if isinstance(backend, DeviceBackend) and not self.pipeline.low_memory:
            return self._timed_on(backend, stage, arguments)
        if stage != VELOCITY:
            return _seconds(self, stage, arguments)
        x, _, mixture_latent, text, mask = arguments
        stamps = [time.perf_counter()]

        def stamp(done: int, steps: int) -> None:
            stamps.append(time.perf_counter())

        self.pipeline.solve(x, mixture_latent, text, mask, steps=2, progress=stamp)
        if isinstance(backend, SolverLoop):
            # such a loop may report all steps at its end, so that only the whole of it can be timed
            return {VELOCITY: (time.perf_counter() - stamps[0]) / 2, FEATURES: 0.0}
        start, first, second = stamps
        return {VELOCITY: second - first, FEATURES: max(0.0, first - start - (second - first))}

    def _timed_on(self, backend: DeviceBackend, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
        """Results stay on the device, as between stages; the time includes the upload of the arguments."""
        with backend.session():
            if stage != VELOCITY:
                names = [tensor.name for tensor in self.pipeline.manifest.graphs[stage].inputs]
                given = dict(zip(names, arguments, strict=True))
                start = time.perf_counter()
                backend.keep(stage, given)
                backend.synchronize()
                return {stage: time.perf_counter() - start}
            x, _, mixture_latent, text, mask = arguments
            start = time.perf_counter()
            features = backend.keep("velocity_mixture", {"mixture_latent": mixture_latent})
            context = backend.keep("velocity_text", {"text": text, "mask": np.asarray(mask, np.float32)})
            backend.synchronize()
            begin = time.perf_counter()
            backend.keep_solution("euler", LOOP_STEPS, x, {**features, **context})
            backend.synchronize()
            return {VELOCITY: (time.perf_counter() - begin) / LOOP_STEPS, FEATURES: begin - start}

    def clip(self, inputs: Mapping[str, Array], steps: int, solver: str) -> Floats:
        from flowsep_runtime.device_pipeline import Clip

        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        clip = Clip(
            inputs["waveform"],
            inputs["posterior_noise"],
            inputs["noise"],
            self.pipeline.encode_text(ids, mask),
            np.asarray(mask, np.float32),
        )
        return self.pipeline.generate(clip, steps, solver)

    def is_whole_clip(self, inputs: Mapping[str, Array]) -> bool:
        """True if the waveform is one clip of the model's length, which `Separator` does not pad."""
        return inputs["waveform"].shape == (1, self.pipeline.manifest.model.clip_samples)

    def separate(self, inputs: Mapping[str, Array], steps: int, solver: str) -> Floats:
        """The same as `clip`, through the public API."""
        from flowsep_runtime import Separator

        rate = self.pipeline.manifest.model.sample_rate
        found = Separator(self.pipeline).separate(
            inputs["waveform"][0],
            rate,
            QUERY,
            steps=steps,
            solver=solver,
            seed=SEED,
            kind="generated",
        )
        return found.target[None]


def _seconds(runner: Runner, stage: str, arguments: Sequence[Array]) -> dict[str, float]:
    start = time.perf_counter()
    runner.call(stage, arguments)
    return {stage: time.perf_counter() - start}
