"""Memory, speed and latency of a stream, against its length.

    python -m benchmarks.latency.streaming --seconds 30,600

Every length is a process of its own. The input is the example's recording over and over, in stereo at 44.1
kHz, handed over second by second; parts are looked at and dropped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile

from benchmarks.common import tables
from benchmarks.common.inputs import EXAMPLE
from benchmarks.common.machine import machine, sentence
from benchmarks.common.options import Outputs, numbers, output_options, threads_option
from benchmarks.common.progress import say
from flowsep_runtime import BackendError, Separator
from flowsep_runtime.app.console import SETTINGS, backend_option, bundle_option, run
from flowsep_runtime.app.memory import peak_memory
from flowsep_runtime.arrays import Floats
from flowsep_runtime.audio.resampling import resampled
from flowsep_runtime.options import JOININGS, Joining

PROGRAM = "benchmarks.latency.streaming"
RATE = 44_100  # Hz
QUERY = "a dog barking"


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.option("--seconds", default="30,600", help="Lengths.")
@bundle_option
@backend_option
@click.option("--steps", type=click.IntRange(1), help="Solver steps.  [default: the bundle's]")
@click.option("--windows", type=click.Choice(JOININGS), default="joint", help="How windows are joined.")
@threads_option(1)
@click.option("--alone", is_flag=True, hidden=True, help="Measure the first length in this process.")
@output_options()
def command(
    seconds: str,
    bundle: str | None,
    backend: str,
    steps: int | None,
    windows: Joining,
    threads: int,
    alone: bool,
    outputs: Outputs,
) -> None:
    """Measure memory, speed and latency of a stream against its length."""
    lengths = numbers(seconds, "--seconds", float)
    if alone:
        separator = Separator.load(bundle, backend, threads=threads)
        click.echo(json.dumps(measure(separator, lengths[0], steps, windows)))
        return
    options = ["--backend", backend, "--windows", windows, "--threads", str(threads)]
    options += [] if bundle is None else ["--bundle", bundle]
    options += [] if steps is None else ["--steps", str(steps)]
    found = [_in_a_process(length, options) for length in lengths]
    facts = machine()
    text = report(found, sentence(facts))
    content = {"format": 1, "benchmark": "streaming", "machine": facts, "rows": found}
    outputs.write(text, content)


def _in_a_process(length: float, options: list[str]) -> dict[str, Any]:
    say(f"{length:g} s")
    words = [sys.executable, "-m", PROGRAM, "--alone", "--seconds", str(length), *options]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"A stream of {length:g} s failed: {done.stderr.strip() or done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure(separator: Separator, length: float, steps: int | None, windows: Joining) -> dict[str, Any]:
    """One stream: peak of memory in bytes, seconds of work and of input, and how far parts lag behind."""
    taken = 0.0

    def blocks() -> Iterator[Floats]:
        nonlocal taken
        recording = soundfile.read(EXAMPLE, dtype="float32", always_2d=True)
        mono = resampled(
            recording[0][:, :1], recording[1], RATE, round(len(recording[0]) * RATE / recording[1])
        )
        loop = np.concatenate([mono, mono[::-1]], axis=1)
        for second in range(round(length)):
            taken += 1
            yield np.take(loop, np.arange(second * RATE, (second + 1) * RATE), axis=0, mode="wrap")

    started = time.perf_counter()
    lags = []
    for part in separator.stream(blocks(), RATE, QUERY, steps=steps, windows=windows):
        lags.append(taken - part.start / RATE)
    return {
        "seconds": length,
        "windows": windows,
        "wall_seconds": time.perf_counter() - started,
        "peak_bytes": peak_memory(),
        "first_part_after_seconds": lags[0],
        "largest_lag_seconds": max(lags),
    }


def report(rows: list[dict[str, Any]], about: str) -> str:
    """A table, a row a length."""
    head = ["stream", "peak memory", "against the first", "time / length", "first part after", "largest lag"]
    body = [
        [
            f"{row['seconds']:g} s",
            tables.size(row["peak_bytes"]),
            f"{row['peak_bytes'] / rows[0]['peak_bytes']:.2f}",
            tables.digits(row["wall_seconds"] / row["seconds"]),
            f"{row['first_part_after_seconds']:.0f} s",
            f"{row['largest_lag_seconds']:.0f} s",
        ]
        for row in rows
    ]
    notes = (
        "First part and lag: seconds of input that had been taken when the first part came, and at most "
        "between a sample's coming in and its result; the work's own time comes on top. Time with loading. "
    )
    return f"{tables.table(head, body)}\n\n{notes}{about}."


def main() -> None:
    """Entry point of `python -m benchmarks.latency.streaming`."""
    run(command, PROGRAM, "There is not enough memory for this stream.")


if __name__ == "__main__":
    main()
