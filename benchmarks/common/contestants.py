"""Contestants: the baselines that a user would choose, and every backend and precision of the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from inspect import signature
from typing import Literal

from flowsep_runtime import Pipeline
from flowsep_runtime.backends import BACKENDS, why_not
from flowsep_runtime.errors import OptionError

ContestantKind = Literal["torch", "plain", "bundle"]
Device = Literal["cpu", "cuda"]
Compilation = Literal["", "default", "freezing", "reduce-overhead", "max-autotune"]

#: The contestant that all others are compared with; it is always measured.
REFERENCE = "eager"

#: The runtime's backends that compute on a GPU; all others compute on the CPU.
GPU_BACKENDS = ("tensorrt", "cuda")


@dataclass(frozen=True)
class Contestant:
    """One way to run the model.

    Attributes:
        name: Its name in `--backends` and in tables.
        kind: PyTorch on the checkpoint, plain ONNX graphs on a backend, or this project's bundle.
        words: Description for the tables.
        backend: Backend of plain graphs and bundles.
        precision: Arithmetic: bf16 or fp16 for PyTorch, bf16 for plain graphs; exact or fast for a bundle.
        compilation: The mode of torch.compile, or "freezing" for frozen weights; empty for eager.
        is_low_memory: With the graphs of one stage in memory at a time.
        by_default: Whether it takes part unless others are named.
        device: Where it computes.
    """

    name: str
    kind: ContestantKind
    words: str
    backend: str = ""
    precision: str = ""
    compilation: Compilation = ""
    is_low_memory: bool = False
    by_default: bool = True
    device: Device = "cpu"

    @property
    def needs_half_bundle(self) -> bool:
        """True if it runs the half-precision bundle: on a GPU the graphs determine the precision."""
        return self.kind == "bundle" and self.device == "cuda" and self.precision == "fast"


BASELINES: Mapping[Device, tuple[Contestant, ...]] = {
    "cpu": (
        Contestant(REFERENCE, "torch", "PyTorch eager, float32"),
        Contestant("eager-bf16", "torch", "PyTorch eager, bf16 autocast", precision="bf16"),
        Contestant("compile", "torch", "torch.compile, float32", compilation="default"),
        Contestant(
            "compile-bf16",
            "torch",
            "torch.compile, freezing, bf16 autocast",
            precision="bf16",
            compilation="freezing",
            by_default=False,  # minutes of compilation
        ),
        Contestant("plain-onnxruntime", "plain", "ONNX Runtime, plain export", "onnxruntime"),
        Contestant("plain-openvino", "plain", "OpenVINO, plain export, float32", "openvino"),
        Contestant("plain-openvino-bf16", "plain", "OpenVINO, plain export, bf16", "openvino", "bf16"),
    ),
    "cuda": tuple(
        replace(contestant, device="cuda")
        for contestant in (
            Contestant(REFERENCE, "torch", "PyTorch eager, float32"),
            Contestant("eager-fp16", "torch", "PyTorch eager, float16", precision="fp16"),
            Contestant(
                "compile-fp16",
                "torch",
                "torch.compile, CUDA graphs, float16",
                precision="fp16",
                compilation="reduce-overhead",
            ),
            Contestant(
                "compile-autotune-fp16",
                "torch",
                "torch.compile, CUDA graphs, autotuned, float16",
                precision="fp16",
                compilation="max-autotune",
                by_default=False,  # minutes of compilation for every stage
            ),
        )
    ),
}


def of_this_project(device: Device | None = None) -> list[Contestant]:
    """Every backend of the runtime that computes on a device (None: on any), exact (named as the backend)
    and fast; with low memory if asked for."""
    return [
        Contestant(
            name + ("" if precision == "exact" else f"-{precision}") + ("-low-memory" if is_low else ""),
            "bundle",
            f"this project, {name}, {precision}" + (", low memory" if is_low else ""),
            name,
            precision,
            is_low_memory=is_low,
            # with low memory: the same speed while a stage is in memory; exact on a GPU: a bundle more
            by_default=not is_low and not (precision == "exact" and name in GPU_BACKENDS),
            device=own,
        )
        for is_low in (False, True)
        for name in BACKENDS
        for own in (_device(name),)
        if device in (None, own)
        for precision in ("exact", "fast")
    ]


def _device(backend: str) -> Device:
    return "cuda" if backend in GPU_BACKENDS else "cpu"


def device_of(name: str) -> Device:
    """The device of a contestant of this project, or of a baseline on the CPU, by its name."""
    return _device(name.partition("-")[0])


def why_absent(contestant: Contestant) -> str | None:
    """The reason why it cannot run on this machine; None if it can."""
    if contestant.kind == "bundle":
        if contestant.is_low_memory and "low_memory" not in signature(Pipeline.load).parameters:
            return "this runtime has no low-memory mode"
        return why_not(contestant.backend)
    if contestant.kind == "plain" and find_spec(contestant.backend) is None:
        return f"{contestant.backend} is not installed"
    if contestant.compilation and contestant.device == "cuda" and find_spec("triton") is None:
        return "triton is not installed, which torch.compile needs on a GPU"
    return None


def chosen(names: str | None, device: Device = "cpu") -> tuple[list[Contestant], list[str]]:
    """The contestants of a comma-separated list; without one, all that can run here.

    Returns:
        The contestants, the reference first, and a sentence for each that is left out.

    Raises:
        OptionError: If a name is unknown, or a requested contestant cannot run.
    """
    known = {contestant.name: contestant for contestant in (*BASELINES[device], *of_this_project(device))}
    if names is None:
        expected = [contestant for contestant in known.values() if contestant.by_default]
        reasons = {contestant.name: why_absent(contestant) for contestant in expected}
        left_out = [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
        return [contestant for contestant in expected if reasons[contestant.name] is None], left_out
    wanted = dict.fromkeys([REFERENCE, *(name.strip() for name in names.split(","))])
    for name in wanted:
        if name not in known:
            where = "on a GPU" if device == "cuda" else "on a CPU"
            raise OptionError(f"There is no contestant {name!r} {where}: choose from {', '.join(known)}.")
        reason = why_absent(known[name])
        if reason is not None:
            raise OptionError(f"{name} cannot take part: {reason}.")
    return [known[name] for name in wanted], []
