"""Who takes part: the baselines that a user would pick, and every engine and precision of the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from flowsep_runtime.backends import BACKENDS, why_not
from flowsep_runtime.errors import OptionError

Kind = Literal["torch", "plain", "bundle"]

REFERENCE = "eager"
"""What all others are compared with; it always takes part."""


@dataclass(frozen=True)
class Contestant:
    """One way to run the model.

    Attributes:
        name: What `--backends` and the tables call it.
        kind: PyTorch on the checkpoint, plain ONNX graphs on an engine, or this project's bundle.
        words: What it is, for the tables.
        engine: Of plain graphs and bundles.
        precision: Of the arithmetic: bf16 for PyTorch and plain graphs; exact or fast for a bundle.
        is_compiled: With torch.compile.
        by_default: Whether it takes part unless others are named.
    """

    name: str
    kind: Kind
    words: str
    engine: str = ""
    precision: str = ""
    is_compiled: bool = False
    by_default: bool = True


BASELINES = (
    Contestant(REFERENCE, "torch", "PyTorch eager, float32"),
    Contestant("eager-bf16", "torch", "PyTorch eager, bf16 autocast", precision="bf16"),
    Contestant("compile", "torch", "torch.compile, float32", is_compiled=True),
    Contestant(
        "compile-bf16",
        "torch",
        "torch.compile, freezing, bf16 autocast",
        precision="bf16",
        is_compiled=True,
        by_default=False,  # minutes of compilation
    ),
    Contestant("plain-onnxruntime", "plain", "ONNX Runtime, plain export", "onnxruntime"),
    Contestant("plain-openvino", "plain", "OpenVINO, plain export, float32", "openvino"),
    Contestant("plain-openvino-bf16", "plain", "OpenVINO, plain export, bf16", "openvino", "bf16"),
)


def of_this_project() -> list[Contestant]:
    """Every backend of the runtime, exact (named as the backend) and fast."""
    return [
        Contestant(
            name if precision == "exact" else f"{name}-{precision}",
            "bundle",
            f"this project, {name}, {precision}",
            name,
            precision,
        )
        for name in BACKENDS
        for precision in ("exact", "fast")
    ]


def why_absent(contestant: Contestant) -> str | None:
    """Why it cannot take part on this machine; None if it can."""
    if contestant.kind == "bundle":
        return why_not(contestant.engine)
    if contestant.kind == "plain" and find_spec(contestant.engine) is None:
        return f"{contestant.engine} is not installed"
    return None


def chosen(names: str | None) -> tuple[list[Contestant], list[str]]:
    """The contestants of a comma-separated list; without one, all that can take part here.

    Returns:
        The contestants, the reference first, and a sentence for each that is left out.

    Raises:
        OptionError: If a name is unknown, or one that was asked for cannot take part.
    """
    known = {contestant.name: contestant for contestant in (*BASELINES, *of_this_project())}
    if names is None:
        reasons = {name: why_absent(contestant) for name, contestant in known.items()}
        left_out = [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
        return [c for name, c in known.items() if c.by_default and reasons[name] is None], left_out
    wanted = dict.fromkeys([REFERENCE, *(name.strip() for name in names.split(","))])
    for name in wanted:
        if name not in known:
            raise OptionError(f"There is no contestant {name!r}: choose from {', '.join(known)}.")
        reason = why_absent(known[name])
        if reason is not None:
            raise OptionError(f"{name} cannot take part: {reason}.")
    return [known[name] for name in wanted], []
