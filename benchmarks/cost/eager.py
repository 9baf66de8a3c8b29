"""Kernels, operations and bytes of a separation in PyTorch eager, counted without a GPU: what `graphs.py`
counts in this project's graphs, for the model as it is.

    python -m benchmarks.cost.eager --sizes published --precision fp16

The model runs on PyTorch's `meta` device, which has shapes and no numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.contestants import BASELINES, REFERENCE
from benchmarks.common.inputs import SEED, STAGE_INPUTS, config_of, frames_of, make_inputs
from benchmarks.common.options import Outputs, clip_options, model_options, output_options
from benchmarks.common.processes import task_of
from benchmarks.common.runners import VELOCITY, TorchRunner
from flowsep_runtime.app.console import SETTINGS, run

if TYPE_CHECKING:
    from benchmarks.common.models import Model

PROGRAM = "benchmarks.cost.eager"

#: Give the same bytes under another shape, though their schema does not say so.
VIEWS = ("aten::_unsafe_view",)

#: Consist of other operators here, but are one kernel on a GPU.
FUSED = ("aten::scaled_dot_product_attention",)


@dataclass(frozen=True)
class EagerCost:
    """Cost of one run of a stage."""

    runs: int  # in a clip
    launches: int  # operators that compute or copy, one kernel each
    flops: float  # of products and convolutions, a multiplication and an addition are two
    bytes: float  # read and written by one kernel an operator


class Launches(TorchDispatchMode):
    """Counts the operators that give new tensors, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = 0
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        schema, kwargs = func._schema, kwargs or {}
        if schema.name not in FUSED:
            with self:  # what consists of other operators is counted by them
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        is_view = schema.name in VIEWS or any(
            value.alias_info is not None and not value.alias_info.is_write for value in schema.returns
        )
        if not is_view:
            self.launches += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def eager_costs(model: Model, precision: str, batch: int, seconds: float, steps: int) -> dict[str, EagerCost]:
    """Every stage of a clip in PyTorch eager.

    Args:
        model: Its weights are read for their shapes.
        precision: "fp16", or empty for float32.
        batch, seconds: Clips at a time and their length.
        steps: Evaluations of the velocity.
    """
    config = config_of(model)
    arrays = make_inputs(config, frames_of(config, seconds), batch, SEED)
    eager = next(contestant for contestant in BASELINES["cuda"] if contestant.name == REFERENCE)
    task = replace(task_of(eager, model, 1, Path()), device="meta", precision=precision)
    runner = TorchRunner(task)
    costs: dict[str, EagerCost] = {}
    for stage, names in STAGE_INPUTS.items():
        given = [runner.put(arrays[name]) for name in names]
        with FlopCounterMode(display=False) as flops, Launches() as counted:
            runner.run(stage, given)
        runs = steps if stage == VELOCITY else 1
        costs[stage] = EagerCost(runs, counted.launches, float(flops.get_total_flops()), float(counted.bytes))
    return costs


def markdown(costs: Mapping[str, EagerCost]) -> str:
    """The table, with a row for the whole clip."""
    lines = ["| stage | runs | launches | GFLOP | GB moved |", "| --- | --- | --- | --- | --- |"]
    whole = {
        field: sum(cost.runs * getattr(cost, field) for cost in costs.values())
        for field in ("launches", "flops", "bytes")
    }
    rows = [(name, str(cost.runs), cost) for name, cost in costs.items()]
    for name, runs, cost in [*rows, ("clip", "", EagerCost(runs=1, **whole))]:
        lines.append(
            f"| {name} | {runs} | {cost.launches} | {cost.flops / 1e9:.2f} | {cost.bytes / 1e9:.3f} |"
        )
    return "\n".join(lines)


@click.command(name=PROGRAM, context_settings=SETTINGS)
@model_options
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp16", help="Arithmetic.")
@clip_options
@output_options()
def command(
    work: Path,
    make_model: Callable[[], Model],
    precision: str,
    batch: int,
    seconds: float,
    steps: int,
    outputs: Outputs,
) -> None:
    """Count what a separation in PyTorch eager asks of a GPU; --bundle is not looked at."""
    costs = eager_costs(make_model(), "" if precision == "fp32" else precision, batch, seconds, steps)
    found = {name: asdict(cost) for name, cost in costs.items()}
    outputs.write(markdown(costs), {"stages": found})


def main() -> None:
    """Entry point of `python -m benchmarks.cost.eager`."""
    run(command, PROGRAM, "There is not enough memory for this model's weights.")


if __name__ == "__main__":
    main()
