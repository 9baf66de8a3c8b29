"""Operators of one graph on OpenVINO, by the time they take, with their operations per second.

    python -m benchmarks.latency.operators velocity --precision fast --threads 2

Shows what limits a graph on a processor: the products and convolutions near its peak, or what stands
between them. OpenVINO counts the time itself, which makes short operators a little longer. The other graphs
do not run.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.common import machine, tables
from benchmarks.common.models import with_bundle
from benchmarks.common.options import Outputs, model_options, output_options, threads_option
from flowsep_runtime.app.console import SETTINGS, run
from flowsep_runtime.backends.samples import clip_shapes, sample_inputs
from flowsep_runtime.bundle.manifest import GRAPHS, Manifest
from flowsep_runtime.errors import OptionError

if TYPE_CHECKING:
    from benchmarks.common.models import Model
    from flowsep_runtime.backends.openvino.backend import OpenVino

PROGRAM = "benchmarks.latency.operators"


@dataclass(frozen=True)
class Operators:
    """All operators of one kind, kernel and shape.

    Attributes:
        kind: OpenVINO's name.
        kernel: What it runs as, such as `brgemm_avx512_bf16`.
        shapes: The first two inputs, and the result.
        count: How many there are.
        seconds: Of all together, in one run of the graph.
        operations: Floating-point operations of all; 0 where they are not counted.
    """

    kind: str
    kernel: str
    shapes: str
    count: int
    seconds: float
    operations: float


def operations(kind: str, inputs: Sequence[Sequence[int]], result: Sequence[int]) -> float:
    """Floating-point operations of a product or a convolution; 0 for another operator, such as a fused
    attention."""
    if kind in ("FullyConnected", "MatMul"):
        return 2.0 * prod(result) * inputs[0][-1]
    if kind == "Convolution":  # weights [K, C, taps]
        return 2.0 * prod(result) * prod(inputs[1][1:])
    if kind == "ConvolutionBackpropData":  # weights [C, K, taps], or with K first
        return 2.0 * prod(inputs[0]) * prod(inputs[1][1:])
    return 0.0


def profile(
    backend: OpenVino, graph: str, inputs: dict[str, Any], runs: int
) -> tuple[list[Operators], float]:
    """Time the operators of a graph.

    Args:
        backend: Opened with `counts`.
        graph: Its name.
        inputs: By name, of batch 1.
        runs: Runs after a first one.

    Returns:
        The operators, the longest first, each the median over the runs; and the median seconds of a run.
    """
    backend.run(graph, inputs)
    (request,) = backend.requests(graph)
    seconds: dict[str, list[float]] = defaultdict(list)
    what: dict[str, tuple[str, str]] = {}
    whole = []
    for _ in range(runs):
        start = time.perf_counter()
        backend.run(graph, inputs)
        whole.append(time.perf_counter() - start)
        for entry in request.get_profiling_info():
            if entry.real_time:
                seconds[entry.node_name].append(entry.real_time.total_seconds())
                what[entry.node_name] = entry.node_type, entry.exec_type
    nodes = {
        node.get_friendly_name(): node for node in request.get_compiled_model().get_runtime_model().get_ops()
    }
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for name, times in seconds.items():
        kind, kernel = what[name]
        node = nodes.get(name)
        shapes = [] if node is None else [list(entry.get_shape()) for entry in node.inputs()]
        result = [] if node is None else list(node.outputs()[0].get_shape())
        key = kind, kernel, f"{', '.join(map(_shape, shapes[:2]))} → {_shape(result)}"
        groups[key].append((statistics.median(times), operations(kind, shapes, result)))
    found = [
        Operators(*key, len(each), sum(pair[0] for pair in each), sum(pair[1] for pair in each))
        for key, each in groups.items()
    ]
    return sorted(found, key=lambda entry: -entry.seconds), statistics.median(whole)


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def markdown(found: Sequence[Operators], shown: int) -> str:
    """Two tables: by kind and kernel, and the longest by shape."""
    total = sum(entry.seconds for entry in found)
    kinds: dict[tuple[str, str], list[Operators]] = defaultdict(list)
    for entry in found:
        kinds[entry.kind, entry.kernel].append(entry)
    sums = [
        Operators(kind, kernel, "", *(sum(getattr(entry, name) for entry in each) for name in NUMBERS))
        for (kind, kernel), each in kinds.items()
    ]
    by_kind = [_cells(entry, total) for entry in sorted(sums, key=lambda entry: -entry.seconds)]
    by_shape = [[entry.shapes, *_cells(entry, total)] for entry in found[:shown]]
    head = ["operator", "kernel", "number", "ms", "share", "GFLOP/s"]
    return f"{tables.table(head, by_kind)}\n\n{tables.table(['shapes', *head], by_shape)}"


NUMBERS = ("count", "seconds", "operations")


def _cells(entry: Operators, total: float) -> list[str]:
    rate = f"{entry.operations / entry.seconds / 1e9:.0f}" if entry.operations else ""
    share = tables.percent(entry.seconds / total if total else None)
    return [entry.kind, f"`{entry.kernel}`", str(entry.count), f"{1e3 * entry.seconds:.2f}", share, rate]


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.argument("graph", type=click.Choice(list(GRAPHS)))
@model_options
@click.option("--precision", type=click.Choice(["exact", "fast"]), default="exact", help="float32 or bf16.")
@threads_option(1)
@click.option("--runs", type=click.IntRange(1), default=9, help="Runs after one to warm up.")
@click.option("--rows", type=click.IntRange(1), default=20, help="Shapes with a row of their own.")
@output_options()
def command(
    graph: str,
    work: Path,
    make_model: Callable[[], Model],
    precision: str,
    threads: int,
    runs: int,
    rows: int,
    outputs: Outputs,
) -> None:
    """List the operators of GRAPH on OpenVINO by the time they take, for a clip of the model's length."""
    from flowsep_runtime.backends.openvino.backend import OpenVino, arithmetic, why_not

    reason = why_not()
    if reason is not None:
        raise OptionError(f"There is nothing to measure: {reason}.")
    folder = with_bundle(make_model(), work).bundle
    assert folder is not None
    manifest = Manifest.read(folder)
    fast = precision == "fast" and arithmetic("fast") != arithmetic("exact")
    backend = OpenVino(folder, manifest, fast, threads, cache=False, counts=True)
    entry = manifest.graph(graph, backend.name)
    inputs = sample_inputs(entry, clip_shapes(entry, manifest.model))
    found, seconds = profile(backend, graph, inputs, runs)
    facts = machine.machine()
    text = f"{graph}: {1e3 * seconds:.1f} ms; {backend.description}; {machine.sentence(facts)}"
    outputs.write(
        f"{text}\n\n{markdown(found, rows)}",
        {"graph": graph, "seconds": seconds, "machine": facts, "operators": [asdict(each) for each in found]},
    )


def main() -> None:
    """Entry point of `python -m benchmarks.latency.operators`."""
    run(command, PROGRAM, "There is not enough memory for this model.")


if __name__ == "__main__":
    main()
