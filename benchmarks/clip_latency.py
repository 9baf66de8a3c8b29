"""How long a warm clip takes on an engine, stage by stage: median, 95th percentile, real-time factor.

    python -m benchmarks.clip_latency --bundle bundles/v2_100k-fp16 --backend tensorrt --precision fast

Loading, memory and captures are done before the first clock starts (and are told apart); every clip has other
noise. What a GPU is asked for is waited for at the end of every stage.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from flowsep_runtime import Pipeline
from flowsep_runtime.backends import Precision
from flowsep_runtime.resident import Clip

CLIP, PREPARATION = "clip", "preparation"
Seconds = dict[str, list[float]]


def clip_of(pipeline: Pipeline, batch: int, seed: int) -> Clip:
    """Noise for a mixture, and numbers for a query: an engine's time does not depend on them."""
    model = pipeline.manifest.model
    rng = np.random.default_rng(seed)
    latent = (1, model.latent_channels, model.clip_frames // model.latent_stride, model.latent_frequencies)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    mask = (np.arange(model.text_length) < 6).astype(np.float32)[None]
    waveform = 0.1 * normal(batch, model.clip_samples)
    text = 0.3 * normal(1, model.text_length, model.text_width)
    return Clip(waveform, normal(*latent), normal(*latent), text, mask)


def measure(pipeline: Pipeline, batch: int, steps: int, rounds: int) -> Seconds:
    """Seconds of every stage and of the whole clip in every round; `preparation` is the first clip's."""
    seconds: Seconds = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds.setdefault(stage, []).append(time.perf_counter() - start)

    with timed(PREPARATION):
        pipeline.generate(clip_of(pipeline, batch, 0), steps)
    for seed in range(1, rounds + 1):
        clip = clip_of(pipeline, batch, seed)
        with timed(CLIP):
            pipeline.generate(clip, steps, stage=timed)
    return seconds


def summary(pipeline: Pipeline, seconds: Seconds, batch: int) -> dict[str, dict[str, float]]:
    """Milliseconds by stage (`p50`, `p95`), and the clip's real-time factor."""
    model = pipeline.manifest.model
    audio = batch * model.clip_samples / model.sample_rate
    result = {
        stage: {"p50": 1e3 * float(np.median(times)), "p95": 1e3 * float(np.percentile(times, 95))}
        for stage, times in seconds.items()
    }
    result[CLIP]["real_time_factor"] = result[CLIP]["p50"] / 1e3 / audio
    return result


def gpu_memory_in_use() -> int | None:
    """Bytes in use on the GPU by everyone, or None where cuda-python finds none."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return None
    from cuda.bindings import runtime

    error, *sizes = runtime.cudaMemGetInfo()
    if error != runtime.cudaError_t.cudaSuccess:
        return None
    free, total = sizes
    return int(total) - int(free)


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="What flowsep-export wrote.")
@click.option("--backend", default="auto", show_default=True, help="Engine.")
@click.option(
    "--precision",
    type=click.Choice(["exact", "fast", "auto"]),
    default="exact",
    show_default=True,
    help="Arithmetic.",
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Clips that go together.")
@click.option("--steps", type=click.IntRange(1), help="Solver steps.  [default: the bundle's]")
@click.option("--rounds", type=click.IntRange(2), default=50, show_default=True, help="Clips to time.")
@click.option("--json", "as_json", is_flag=True, help="Print every round as JSON.")
def main(
    bundle: Path,
    backend: str,
    precision: Precision,
    batch: int,
    steps: int | None,
    rounds: int,
    as_json: bool,
) -> None:
    """Time warm clips of BUNDLE on an engine."""
    before = gpu_memory_in_use()
    pipeline = Pipeline.load(bundle, backend, precision)
    # Euler's: the loop that a GPU runs in one piece
    steps = steps or pipeline.manifest.model.default_steps
    seconds = measure(pipeline, batch, steps, rounds)
    after = gpu_memory_in_use()
    memory = None if before is None or after is None else after - before
    rows = summary(pipeline, seconds, batch)
    if as_json:
        about = {
            "backend": pipeline.backend.name,
            "description": pipeline.backend.description,
            "batch": batch,
            "steps": steps,
            "gpu_bytes": memory,
        }
        click.echo(json.dumps(about | {"milliseconds": rows, "seconds": seconds}))
        return
    click.echo(f"{pipeline.backend.description}, batch {batch}, {steps} steps, {rounds} clips\n")
    click.echo("| stage | median, ms | 95 %, ms |\n| --- | --- | --- |")
    for stage, row in rows.items():
        click.echo(f"| {stage} | {row['p50']:.3f} | {row['p95']:.3f} |")
    click.echo(f"\nreal-time factor {rows[CLIP]['real_time_factor']:.5f}")
    if memory is not None:
        click.echo(f"GPU memory {memory / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
