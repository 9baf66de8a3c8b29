"""Kernels, operations and bytes of a separation, counted from a bundle's graphs: no GPU is needed.

    python -m benchmarks.cost.graphs --bundle bundles/v2_100k-fp16 --backend tensorrt

What is an estimate says so; see `operators.py` for what is counted and how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click
import onnx

from benchmarks.common.options import batch_option
from benchmarks.cost.operators import Cost, count
from flowsep_export.tensorrt.passes import prepared, prepared_loop
from flowsep_runtime.app.console import FILE, SETTINGS
from flowsep_runtime.backends.device_graphs import device_graph_path
from flowsep_runtime.backends.loop_parts import CONSTANTS, STEP
from flowsep_runtime.bundle.manifest import Manifest

ONCE, A_STEP = "once", "a step"


@dataclass(frozen=True)
class Row:
    """One graph of the separation of a clip."""

    graph: str
    runs: int
    cost: Cost


def rows(bundle: Path, backend: str, batch: int, frames: int, steps: int, queries: int = 1) -> list[Row]:
    """Every graph of a clip's separation, in the order of use.

    Args:
        bundle: The bundle.
        backend: "cpu", "cuda" or "tensorrt": whose variants of the graphs are counted.
        batch: Channels that go together.
        frames: Mel frames.
        steps: Of the solver.
        queries: Encoded at once; one serves all channels of a recording.
    """
    manifest = Manifest.read(bundle)
    model = manifest.model
    sizes = {
        "batch": batch,
        "frames": frames,
        "samples": frames * model.hop_length,
        "t": frames // model.latent_stride,
        "steps": steps,
        "channels": model.latent_channels,
        "frequencies": model.latent_frequencies,
    }
    (shifts,) = (tensor.shape[1] for tensor in manifest.graphs["velocity_time"].outputs)
    sizes["shifts"] = int(shifts)
    result = []
    for name in manifest.graphs:
        own = sizes | ({"batch": queries} if name == "encode_text" else {})
        for part, model in _variants(bundle, manifest, name, backend, own).items():
            result.append(Row(part, steps if part in ("velocity", STEP) else 1, count(model, own)))
    if backend == "cuda":  # the host does it in numpy, and TensorRT in the step
        cost = count(_load(device_graph_path("advance"), backend, sizes), sizes)
        result.append(Row("advance", steps, cost))
    return result


def _variants(
    bundle: Path, manifest: Manifest, name: str, backend: str, sizes: Mapping[str, int]
) -> dict[str, onnx.ModelProto]:
    """A graph as a backend runs it in a clip: the velocity's in two parts, where it has them."""
    if name == "velocity" and backend == "tensorrt":
        return prepared_loop(bundle / manifest.graph(name, backend).files[0].name, sizes)
    own = manifest.variants.get(backend, {})
    parts = (CONSTANTS, STEP) if name == "velocity" and STEP in own else (name,)
    files = {part: bundle / (own.get(part) or manifest.graphs[part]).files[0].name for part in parts}
    return {part: _load(path, backend, sizes) for part, path in files.items()}


def _load(path: Path, backend: str, sizes: Mapping[str, int]) -> onnx.ModelProto:
    if backend == "tensorrt":
        return prepared(path, sizes)
    return onnx.load(path, load_external_data=False)


def clip(rows: list[Row]) -> Cost:
    """The whole separation; weights once."""
    total: dict[str, float] = {}
    for field in fields(Cost):
        once = field.name in ("nodes", "weight_bytes")
        total[field.name] = sum((1 if once else row.runs) * getattr(row.cost, field.name) for row in rows)
    return Cost(**total)  # type: ignore[arg-type]


def markdown(rows: list[Row]) -> str:
    """The table."""
    lines = [
        "| graph | runs | nodes | launches | kernels, estimate | GFLOP | GB moved | GB moved, estimate "
        "| weights, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    cells = [(row.graph, str(row.runs), row.cost) for row in rows]
    for name, runs, cost in [*cells, ("clip", "", clip(rows))]:
        lines.append(
            f"| {name} | {runs} | {cost.nodes} | {cost.launches} | {cost.kernels} | {cost.flops / 1e9:.2f} | "
            f"{cost.bytes / 1e9:.3f} | {cost.fused_bytes / 1e9:.3f} | {cost.weight_bytes / 1e6:.1f} |"
        )
    return "\n".join(lines)


@click.command(context_settings=SETTINGS)
@click.option("--bundle", type=FILE, required=True, help="Bundle of flowsep-export.")
@click.option(
    "--backend",
    type=click.Choice(["cpu", "cuda", "tensorrt"]),
    default="tensorrt",
    help="Count this backend's variants of the graphs.",
)
@batch_option
@click.option("--frames", type=click.IntRange(1), help="Mel frames.  [default: a clip's]")
@click.option("--steps", type=click.IntRange(1), help="Solver steps.  [default: the bundle's]")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def main(
    bundle: Path, backend: str, batch: int, frames: int | None, steps: int | None, as_json: bool
) -> None:
    """Count what a separation with BUNDLE asks of a GPU."""
    model = Manifest.read(bundle).model
    frames = frames or model.clip_frames
    if frames % model.frame_multiple:
        raise click.BadParameter(f"must be a multiple of {model.frame_multiple}", param_hint="--frames")
    counted = rows(bundle, backend, batch, frames, steps or model.default_steps)
    if as_json:
        answer = {"rows": [asdict(row) for row in counted], "clip": asdict(clip(counted))}
        click.echo(json.dumps(answer))
    else:
        click.echo(markdown(counted))


if __name__ == "__main__":
    main()
