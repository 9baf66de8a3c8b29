"""Proof that no half-precision tensor overflows.

ONNX Runtime computes half graphs on a CPU in float32, so that an overflow which a GPU would turn into
infinity goes unseen.  Here the very graph that is exported, as torch.export traced it, runs in
float32, and the largest value of every tensor that is half in it is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

from flowsep_export.errors import RangeError
from flowsep_export.graphs import Graph
from flowsep_export.stage_inputs import StageInputs
from flowsep_ref import FlowSep
from flowsep_runtime.bundle.manifest import RangeEntry

LIMIT = 3e4  # half precision ends at 65504; this leaves room for recordings louder than the calibration's


class _Float32Run(fx.Interpreter):
    """Run a half-precision graph in float32 and record the largest magnitude of its half tensors."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program.module(check_guards=False))
        self.largest, self.tensor = 0.0, ""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        expected = n.meta.get("val")
        pairs = (
            zip(result, expected, strict=True) if isinstance(expected, list | tuple) else [(result, expected)]
        )
        for value, traced in pairs:
            if _is_half(traced) and n.users and value.numel():
                largest = value.abs().max().item()
                # written so that NaN counts as larger
                if not largest <= self.largest:
                    self.largest, self.tensor = largest, _tensor_name(n)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(target, tree_map(_widened, args), tree_map(_widened, kwargs))


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float16


def _widened(value: Any) -> Any:
    if value is torch.float16:
        return torch.float32
    if _is_half(value):
        return value.float()
    return value


def _tensor_name(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return f"{path.removeprefix('L__self___')}.{node.name}" if path else node.name


@torch.inference_mode()
def largest_activation(
    graph: str, program: ExportedProgram, inputs: Sequence[tuple[Tensor, ...]], limit: float = LIMIT
) -> RangeEntry | None:
    """The largest magnitude among a traced graph's half-precision tensors over all inputs.

    Returns:
        None if nothing in the graph is half precision.

    Raises:
        RangeError: it exceeds the limit or is not a number.
    """
    if not any(_is_half(node.meta.get("val")) and node.users for node in program.graph.nodes):
        return None
    entry = RangeEntry(0.0, "", limit)
    for tensors in inputs:
        run = _Float32Run(program)
        run.run(*tensors)
        if not run.largest <= limit:
            raise RangeError(
                f"Half precision cannot hold graph {graph}: {run.tensor} reaches {run.largest:.3g} on "
                f"calibration input (limit {limit:.3g}): export without --fp16."
            )
        if run.largest > entry.largest:
            entry = RangeEntry(run.largest, run.tensor, limit)
    return entry


@torch.inference_mode()
def graph_inputs(
    graph: str, table: Mapping[str, Graph], model: FlowSep, cases: Sequence[StageInputs]
) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of a graph in the float32 model's separation of each case.

    Args:
        graph: name of the graph.
        table: the float32 graphs.
        model: the float32 model they were made of.
        cases: inputs of all stages.
    """
    for case in cases:
        mask = case.attention_mask.float()
        match graph:
            case "velocity_text":
                yield case.text, mask
            case "velocity_time":
                yield (case.t,)
            case "velocity":
                mixture = table["velocity_mixture"].module(case.mixture_latent)
                context, bias = table["velocity_text"].module(case.text, mask)
                ends = ((case.noise, 0.0), (case.x, float(case.t[0])), (case.latent, 1.0))
                for x, t in ends:
                    shifts = table["velocity_time"].module(torch.full((1,), t))
                    parts = (mixture, shifts, context, bias)
                    yield (x, *(part.expand(len(x), *part.shape[1:]) for part in parts))
            case "vocode":
                yield (case.target_log_mel,)
                yield (case.log_mel,)
            case _:
                values = case.tensors()
                yield tuple(values[spec.name] for spec in table[graph].inputs)
