"""How long every stage takes, in PyTorch eager and from an exported bundle, on the same inputs.

    python -m benchmarks.latency --bundle bundles/full --checkpoint full.ckpt --threads 2

Rounds are interleaved: machines drift, and only ratios of runs side by side mean anything.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

from flowsep_ref import FlowSep
from flowsep_runtime import Pipeline

Floats = npt.NDArray[np.float32]
Call = Callable[[], Floats]


@dataclass(frozen=True)
class Row:
    """One stage: median seconds of either side, the spread of their ratio, and the difference."""

    stage: str
    eager: float
    bundle: float
    ratio: float
    ratio_low: float
    ratio_high: float
    snr_db: float


def calls(model: FlowSep, pipeline: Pipeline, seconds: float, seed: int) -> dict[str, tuple[Call, Call]]:
    """For every stage, the reference's call and the bundle's, on one random input."""
    rng = np.random.default_rng(seed)
    sizes = pipeline.manifest.model
    multiple = sizes.frame_multiple
    frames = round(seconds * sizes.sample_rate / sizes.hop_length / multiple) * multiple
    latent_shape = (1, sizes.latent_channels, frames // sizes.latent_stride, sizes.latent_frequencies)

    def normal(*shape: int) -> Floats:
        return rng.standard_normal(shape, dtype=np.float32)

    waveform = 0.1 * normal(1, frames * sizes.hop_length)
    ids = rng.integers(2, 100, size=(1, sizes.text_length))
    mask = (np.arange(sizes.text_length) < 6).astype(np.int64)[None]
    x, latent = normal(*latent_shape), normal(*latent_shape)
    with torch.inference_mode():
        log_mel = model.log_mel(torch.from_numpy(waveform)).numpy()
        text = model.encode_text(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()

    inputs: dict[str, tuple[Any, ...]] = {
        "log_mel": (waveform,),
        "encode_text": (ids, mask),
        "encode_mixture": (log_mel,),
        "velocity": (x, np.float32(0.35), latent, text, mask),
        "decode_latent": (latent,),
        "vocode": (log_mel,),
    }

    def pair(stage: str, arguments: tuple[Any, ...]) -> tuple[Call, Call]:
        tensors = [torch.as_tensor(argument) for argument in arguments]

        def eager() -> Floats:
            with torch.inference_mode():
                result = getattr(model, stage)(*tensors)
            first: Floats = (result[0] if isinstance(result, tuple) else result).numpy()
            return first

        def bundle() -> Floats:
            result = getattr(pipeline, stage)(*arguments)
            first: Floats = result[0] if isinstance(result, tuple) else result
            return first

        return eager, bundle

    return {stage: pair(stage, arguments) for stage, arguments in inputs.items()}


def measure(stage: str, eager: Call, bundle: Call, rounds: int) -> Row:
    """Interleaved rounds after a warm-up of either side."""
    wanted, actual = eager(), bundle()
    noise = np.linalg.norm((actual - wanted).astype(np.float64))
    snr = float("inf") if noise == 0 else 20 * np.log10(np.linalg.norm(wanted.astype(np.float64)) / noise)
    seconds: dict[str, list[float]] = {"eager": [], "bundle": []}
    for _ in range(rounds):
        for name, call in (("eager", eager), ("bundle", bundle)):
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    ratios = sorted(a / b for a, b in zip(seconds["eager"], seconds["bundle"], strict=True))
    medians = [statistics.median(values) for values in (seconds["eager"], seconds["bundle"])]
    ratio = statistics.median(ratios)
    return Row(stage, medians[0], medians[1], ratio, ratios[0], ratios[-1], float(snr))


def clip(rows: list[Row], steps: int) -> tuple[float, float]:
    """Seconds of a whole separation at a number of steps: the stages' medians, added up."""
    times = {row.stage: (steps if row.stage == "velocity" else 1) for row in rows}
    eager = sum(times[row.stage] * row.eager for row in rows)
    return eager, sum(times[row.stage] * row.bundle for row in rows)


def markdown(rows: list[Row], steps: int) -> str:
    """The table that a README shows."""
    lines = [
        "| stage | PyTorch eager, s | bundle, s | ratio (range) | SNR, dB |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.stage} | {row.eager:.3f} | {row.bundle:.3f} | "
        f"{row.ratio:.2f} ({row.ratio_low:.2f}-{row.ratio_high:.2f}) | {row.snr_db:.0f} |"
        for row in rows
    ]
    eager, bundle = clip(rows, steps)
    lines.append(f"| clip, {steps} steps | {eager:.2f} | {bundle:.2f} | {eager / bundle:.2f} | |")
    return "\n".join(lines)


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="What flowsep-export wrote.")
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="What it was made from.")
@click.option("--config", type=click.Path(path_type=Path), help="The checkpoint's sizes (YAML).")
@click.option("--seconds", default=10.24, show_default=True, help="Length of the clip.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Steps of a separation.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def main(
    bundle: Path,
    checkpoint: Path,
    config: Path | None,
    seconds: float,
    steps: int,
    rounds: int,
    threads: int,
    seed: int,
    as_json: bool,
) -> None:
    """Time every stage of BUNDLE against PyTorch eager."""
    torch.set_num_threads(threads)
    model = FlowSep.from_checkpoint(checkpoint, config)
    pipeline = Pipeline.load(bundle, threads=threads)
    rows = []
    for stage, (eager, exported) in calls(model, pipeline, seconds, seed).items():
        click.echo(f"{stage} …", err=True)
        rows.append(measure(stage, eager, exported, rounds))
    if as_json:
        click.echo(json.dumps([vars(row) for row in rows]))
    else:
        click.echo(f"{seconds} s, batch 1, {threads} threads, {rounds} interleaved rounds, medians\n")
        click.echo(markdown(rows, steps))


if __name__ == "__main__":
    main()
