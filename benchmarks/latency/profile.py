"""Kernels of a warm clip, by the time they take.

    python -m benchmarks.latency.profile tensorrt-fast

PyTorch's profiler asks CUDA for every kernel of the process, whoever launched it, those of CUDA graphs too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.common import contestants, tables
from benchmarks.common.gpu import device_for
from benchmarks.common.inputs import SEED, config_of, frames_of, make_inputs, tokens_of
from benchmarks.common.models import with_bundle, with_half_bundle
from benchmarks.common.options import Outputs, model_options, output_options, steps_option
from benchmarks.common.processes import task_of
from benchmarks.common.runners import open_runner
from flowsep_runtime.app.console import SETTINGS, run
from flowsep_runtime.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.common.contestants import Device
    from benchmarks.common.models import Model
    from benchmarks.common.runners import Runner
    from flowsep_runtime.arrays import Array

PROGRAM = "benchmarks.latency.profile"
SHOWN = 40
NAME_LENGTH = 90


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel in a clip; on the CPU, all calls of one operator."""

    name: str
    launches: int
    seconds: float


def kernels(
    runner: Runner, inputs: Mapping[str, Array], steps: int, solver: str, device: Device
) -> list[Kernel]:
    """Kernels that a clip launches after another one, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    runner.clip(inputs, steps, solver)
    is_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as seen:
        runner.clip(inputs, steps, solver)
    found = [
        Kernel(
            event.key,
            event.count,
            (event.self_device_time_total if is_gpu else event.self_cpu_time_total) / 1e6,
        )
        for event in seen.key_averages()
    ]
    return sorted((kernel for kernel in found if kernel.seconds), key=lambda kernel: -kernel.seconds)


def markdown(found: Sequence[Kernel], shown: int) -> str:
    """The table, with a row for all that have no row of their own and one for the clip."""
    total = sum(kernel.seconds for kernel in found)
    rest = found[shown:]
    rows = list(found[:shown])
    if rest:
        rows.append(Kernel(f"{len(rest)} others", *_sums(rest)))
    rows.append(Kernel("clip", *_sums(found)))
    cells = [
        [
            f"`{kernel.name[:NAME_LENGTH]}`",
            str(kernel.launches),
            f"{1e3 * kernel.seconds:.3f}",
            tables.percent(kernel.seconds / total if total else None),
        ]
        for kernel in rows
    ]
    return tables.table(["kernel", "launches", "ms", "share"], cells)


def _sums(found: Sequence[Kernel]) -> tuple[int, float]:
    return sum(kernel.launches for kernel in found), sum(kernel.seconds for kernel in found)


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.argument("contestant")
@model_options
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cuda", help="Where it computes.")
@steps_option
@click.option("--rows", type=click.IntRange(1), default=SHOWN, help="Kernels with a row of their own.")
@output_options()
def command(
    contestant: str,
    work: Path,
    make_model: Callable[[], Model],
    device: str,
    steps: int,
    rows: int,
    outputs: Outputs,
) -> None:
    """List the kernels of a warm clip on CONTESTANT, a name of the latency benchmark."""
    place = device_for(device)
    taking_part, left_out = contestants.chosen(contestant, place)
    chosen = next((each for each in taking_part if each.name == contestant), None)
    if chosen is None or chosen.kind == "plain":
        why = left_out[0] if left_out else "it has no runner of its own"
        raise OptionError(f"{contestant} cannot be profiled: {why}.")
    model = make_model()
    if chosen.kind == "bundle":
        model = with_half_bundle(model, work) if chosen.needs_half_bundle else with_bundle(model, work)
    architecture = config_of(model)
    frames = frames_of(architecture, 10.24)
    tokens = None if model.any_bundle is None else tokens_of(model.any_bundle)
    inputs = make_inputs(architecture, frames, 1, SEED, tokens)
    runner = open_runner(task_of(chosen, model, 1, Path()))
    found = kernels(runner, inputs, steps, "euler", place)
    outputs.write(markdown(found, rows), {"kernels": [asdict(kernel) for kernel in found]})


def main() -> None:
    """Entry point of `python -m benchmarks.latency.profile`."""
    run(command, PROGRAM, "There is not enough memory for this model.")


if __name__ == "__main__":
    main()
