"""Comparison of every exported stage, and of the chain of all stages, with the reference.

The stages run through `flowsep_runtime.Pipeline`, as in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from flowsep_export.errors import VerificationError
from flowsep_export.stage_inputs import CHAIN, STAGE_CALLS, StageInputs, chain
from flowsep_ref import FlowSep
from flowsep_runtime.backends import open_backend
from flowsep_runtime.bundle.manifest import GRAPHS, Manifest, StageEntry, StageError
from flowsep_runtime.bundle.manifest import STAGES as GRAPHS_OF
from flowsep_runtime.pipeline import Pipeline

Precision = Literal["float32", "float16"]

#: Relative error allowed to a stage.
TOLERANCE: Mapping[Precision, float] = {"float32": 5e-5, "float16": 2e-2}

#: Relative error allowed to the whole chain, in which the errors of five stages add up.
CHAIN_TOLERANCE: Mapping[Precision, float] = {"float32": 2.5e-4, "float16": 1e-1}

#: Root mean square (-40 dB of full scale) of the quietest waveform that an error is compared with. PyTorch
#: itself is 6e-5 from float64 on an output of -67 dB, by rounding alone.
QUIETEST = 1e-2

#: Checks whose outputs are waveforms in [-1, 1]; other outputs are of the order of one.
WAVEFORMS = ("vocode", CHAIN)

Check = Callable[[Any, Mapping[str, Any]], tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """Inputs and their source."""

    kind: Literal["random", "recording"]
    inputs: StageInputs


def relative_error(
    output: np.ndarray[Any, Any], reference: np.ndarray[Any, Any], quietest: float = 0.0
) -> float:
    """L2 norm of the difference over the reference's; infinite for another shape or non-finite numbers.

    Args:
        output: of the backend.
        reference: of the same shape.
        quietest: a reference of a lower root mean square counts as one of this.
    """
    if output.shape != reference.shape or not np.isfinite(output).all():
        return math.inf
    wanted = reference.astype(np.float64)
    norm = max(float(np.linalg.norm(wanted)), quietest * math.sqrt(wanted.size))
    difference = float(np.linalg.norm(output - wanted))
    return difference / norm if norm else (0.0 if difference == 0 else math.inf)


def decibels(relative: float) -> float:
    """The signal-to-noise ratio of a relative error in dB, at most 200."""
    return min(200.0, -20 * math.log10(relative)) if relative > 0 else 200.0


def checks() -> dict[str, Check]:
    """Everything that is verified: the seven stages and the chain."""
    return {**STAGE_CALLS, CHAIN: chain}


#: The expected outputs of a check.
Judge = Callable[[Check, StageInputs], Sequence[np.ndarray[Any, Any]]]


def reference_judge(model: FlowSep) -> Judge:
    """Judge by the PyTorch model."""

    def judge(check: Check, inputs: StageInputs) -> Sequence[np.ndarray[Any, Any]]:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in check(model, inputs.tensors())]

    return judge


def bundle_judge(pipeline: Pipeline) -> Judge:
    """Judge by a bundle on the CPU, which was compared with the PyTorch model at export."""
    return lambda check, inputs: check(pipeline, inputs.arrays())


def verify(
    model: FlowSep,
    folder: Path,
    manifest: Manifest,
    cases: Sequence[Case],
    progress: Callable[[str], None] = lambda stage: None,
) -> dict[str, StageEntry]:
    """Measure every stage of a bundle (its manifest need not be written yet) against the reference.

    Only one stage's graphs are in memory at a time, except for the chain.

    Returns:
        The manifest's entry of every stage, and of the chain.
    """

    def opened(stage: str) -> Iterator[Pipeline]:
        for variant in variants(manifest, stage):
            yield Pipeline(folder, variant, open_backend("cpu", folder, variant))

    return measure(reference_judge(model), opened, manifest.precision, cases, progress)


def measure(
    judge: Judge,
    opened: Callable[[str], Iterable[Pipeline]],
    precision: Precision,
    cases: Sequence[Case],
    progress: Callable[[str], None] = lambda stage: None,
) -> dict[str, StageEntry]:
    """The errors of every stage, and of the chain: the largest over all pipelines of `opened`."""
    entries = {}
    for name, check in checks().items():
        progress(name)
        quietest = QUIETEST if name in WAVEFORMS else 0.0
        worst: dict[str, float] = {}
        for pipeline in opened(name):
            for case in cases:
                reference = judge(check, case.inputs)
                output = check(pipeline, case.inputs.arrays())
                errors = [relative_error(o, r, quietest) for o, r in zip(output, reference, strict=True)]
                worst[case.kind] = max(worst.get(case.kind, 0.0), *errors)
        entries[name] = _entry(name, precision, worst)
    return entries


def variants(manifest: Manifest, stage: str) -> list[Manifest]:
    """The bundle, and copies of its manifest in which the stage's variants replace the graphs."""
    graphs = GRAPHS_OF.get(stage, ())  # the variants of the chain's stages are checked with the stages
    own = [
        replace(manifest, graphs={**manifest.graphs, **replaced}, variants={})
        for replaced in manifest.variants.values()
        if any(name in graphs for name in replaced)
    ]
    return [replace(manifest, variants={}), *own]


def unverified(precision: Precision) -> dict[str, StageEntry]:
    """The entries of a bundle whose stages were not measured."""
    return {name: _entry(name, precision, {}) for name in checks()}


def _entry(name: str, precision: Precision, worst: Mapping[str, float]) -> StageEntry:
    random, real = worst.get("random"), worst.get("recording")
    error = StageError(
        tolerance=(CHAIN_TOLERANCE if name == CHAIN else TOLERANCE)[precision],
        relative=random,
        snr_db=None if random is None else decibels(random),
        real_relative=real,
        real_snr_db=None if real is None else decibels(real),
    )
    return StageEntry(tuple(GRAPHS) if name == CHAIN else GRAPHS_OF[name], error)


def require_tolerance(entries: Mapping[str, StageEntry]) -> None:
    """Raise VerificationError if a measured error is beyond its tolerance."""
    for name, entry in entries.items():
        error = max(entry.error.relative or 0.0, entry.error.real_relative or 0.0)
        if not error <= entry.error.tolerance:
            raise VerificationError(
                f"The exported {name} differs from the reference by {error:.2e} (relative error), beyond the "
                f"tolerance of {entry.error.tolerance:.0e}: nothing was written."
            )
