"""Errors where the windows of a long recording meet, and the cost of each way to join them.

    python -m benchmarks.quality.seams --manifest runs/sets/held-out/manifest.jsonl

Long mixtures are made of a test set's recordings. The error is the distance of log-mel spectrograms to the
target, near the seams and away from them; the jump is how much more the spectrogram changes from one side of
a place to the other than that of the target does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import tables
from benchmarks.common.machine import machine, sentence
from benchmarks.common.options import Outputs, output_options, seed_option, threads_option
from benchmarks.common.progress import say
from benchmarks.quality.long_mixtures import RATE, LongMixture, long_mixtures
from flowsep_eval import read_manifest
from flowsep_eval.bootstrap import Resamples
from flowsep_eval.mel import mel_magnitudes
from flowsep_eval.metrics import floor_below
from flowsep_runtime import Separator
from flowsep_runtime.app.console import FILE, SETTINGS, backend_option, bundle_option, run
from flowsep_runtime.arrays import Floats
from flowsep_runtime.bundle.manifest import ModelEntry
from flowsep_runtime.options import JOININGS, Joining
from flowsep_runtime.separation.run import OVERLAPS
from flowsep_runtime.separation.windows import window_starts

PROGRAM = "benchmarks.quality.seams"
SIDE = 25  # frames of 10 ms on either side of a place that are compared for the jump
DECIBELS = 20 / np.log(10)


@dataclass(frozen=True)
class Scores:
    """Scores of one mixture in dB: error near seams and away from them, jump at seams and halfway between."""

    error: float
    error_at_seams: float
    error_elsewhere: float
    jump_at_seams: float
    jump_elsewhere: float


def seams(samples: int, model: ModelEntry, joining: Joining) -> list[tuple[int, int]]:
    """Seams between windows: first and last mel frame of each, which may be the same."""
    per_frame = model.hop_length * model.latent_stride
    window = model.clip_samples // per_frame
    overlap = int(window * OVERLAPS[joining])
    starts = window_starts(-(-samples // per_frame), window, overlap)
    ends = [start + window for start in starts[:-1]]
    return [((end - overlap) * model.latent_stride, end * model.latent_stride) for end in ends]


def scores(output: Floats, mixture: LongMixture, places: Sequence[tuple[int, int]]) -> Scores:
    """Scores of one output [samples]."""
    floor = floor_below(mel_magnitudes(mixture.mixture))
    found, wanted = (
        DECIBELS * np.log(np.maximum(mel_magnitudes(each), floor)) for each in (output, mixture.target)
    )
    error = np.abs(found - wanted).mean(axis=1)
    near = np.zeros(len(error), bool)
    for first, last in places:
        near[max(0, first - SIDE) : last + SIDE] = True
    middles = [(first + last) // 2 for first, last in places]
    between = [(a + b) // 2 for a, b in zip([0, *middles], [*middles, len(error)], strict=True)]
    return Scores(
        float(error.mean()),
        float(error[near].mean()),
        float(error[~near].mean()),
        *(
            float(np.mean([_jump(found, place) - _jump(wanted, place) for place in where]))
            for where in (middles, between)
        ),
    )


def _jump(spectrogram: NDArray[np.float32], place: int) -> float:
    before, after = spectrogram[place - SIDE : place], spectrogram[place : place + SIDE]
    return float(np.abs(after.mean(axis=0) - before.mean(axis=0)).mean())


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.option("--manifest", type=FILE, required=True, help="Test set of flowsep-eval.")
@bundle_option
@backend_option
@click.option("--seconds", type=click.FloatRange(5), default=57.0, help="Length of a mixture.")
@click.option("--mixtures", "count", type=click.IntRange(1), default=12, help="Number of mixtures.")
@click.option("--steps", type=click.IntRange(1), help="Solver steps.  [default: the bundle's]")
@click.option("--solver", default="euler", help="Solver of the flow.")
@threads_option(1)
@seed_option
@output_options()
def command(
    manifest: Path,
    bundle: str | None,
    backend: str,
    seconds: float,
    count: int,
    steps: int | None,
    solver: str,
    threads: int,
    seed: int,
    outputs: Outputs,
) -> None:
    """Compare the ways to join the windows of long recordings."""
    mixtures = long_mixtures(read_manifest(manifest), seconds, count, seed)
    separator = Separator.load(bundle, backend, threads=threads)
    measured: dict[Joining, list[Scores]] = {joining: [] for joining in JOININGS}
    work = dict.fromkeys(JOININGS, 0.0)
    for number, mixture in enumerate(mixtures):
        for joining in JOININGS:
            say(f"mixture {number + 1} of {len(mixtures)}: {mixture.query}, {joining}")
            result = separator.separate(
                mixture.mixture,
                RATE,
                mixture.query,
                steps=steps,
                solver=solver,
                seed=seed + number,
                windows=joining,
                kind="generated",
            )
            places = seams(len(mixture.mixture), separator.pipeline.manifest.model, joining)
            measured[joining].append(scores(result.target, mixture, places))
            work[joining] += sum(result.timings.values()) - result.timings.get("load", 0.0)
    factors = {joining: spent / (seconds * len(mixtures)) for joining, spent in work.items()}
    facts = machine()
    text = report(measured, factors, f"{len(mixtures)} mixtures of {seconds:g} s. {sentence(facts)}.")
    content = {
        "format": 1,
        "benchmark": "seams",
        "mixtures": [mixture.query for mixture in mixtures],
        "seconds": seconds,
        "steps": steps,
        "solver": solver,
        "seed": seed,
        "machine": facts,
        "real_time_factor": factors,
        "scores": {joining: [asdict(each) for each in found] for joining, found in measured.items()},
    }
    outputs.write(text, content)


def report(measured: dict[Joining, list[Scores]], factors: dict[Joining, float], about: str) -> str:
    """A table, a row a way to join."""
    head = ["windows", "error, dB", "at seams", "elsewhere", "at seams − elsewhere"]
    head += ["jump at seams, dB", "elsewhere", "real-time factor"]
    rows = []
    for joining, found in measured.items():
        columns = {name: np.array([getattr(each, name) for each in found]) for name in asdict(found[0])}
        mean = Resamples(len(found)).mean
        cells = [columns["error"], columns["error_at_seams"], columns["error_elsewhere"]]
        cells += [columns["error_at_seams"] - columns["error_elsewhere"]]
        cells += [columns["jump_at_seams"], columns["jump_elsewhere"]]
        rows.append(
            [
                joining,
                *(tables.interval(mean(values), 2) for values in cells),
                tables.digits(factors[joining]),
            ]
        )
    notes = (
        "Error: distance of the log-mel spectrograms of output and target. Jump: change of the output's "
        "spectrogram over a place (a quarter of a second on either side), less the target's. In brackets: "
        "95 % bootstrap intervals over mixtures."
    )
    return f"{tables.table(head, rows)}\n\n{notes} {about}"


def main() -> None:
    """Entry point of `python -m benchmarks.quality.seams`."""
    run(command, PROGRAM, "There is not enough memory for these mixtures: give shorter ones.")


if __name__ == "__main__":
    main()
