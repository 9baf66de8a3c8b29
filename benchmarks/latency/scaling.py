"""Growth of time and memory with the clip's length, the batch, the solver's steps and the threads.

    python -m benchmarks.latency.scaling --sizes bundled --json scaling.json --picture scaling.png

One quantity varies at a time; the first number of each list is where it stands while another varies. Every
point is a process of its own, so that its peak of memory is its own too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.common import contestants, tables
from benchmarks.common.contestants import Contestant
from benchmarks.common.inputs import SEED, config_of, frames_of, make_inputs, write_inputs
from benchmarks.common.machine import machine, sentence
from benchmarks.common.models import Model, with_bundle, with_half_bundle
from benchmarks.common.options import Outputs, model_options, numbers, output_options
from benchmarks.common.processes import running, task_of
from benchmarks.common.progress import say
from benchmarks.common.spread import DISTURBED_ABOVE, Summary
from benchmarks.latency.growth import Growth, best
from benchmarks.latency.pictures import Curve, growth_panels
from flowsep_runtime.app.console import SETTINGS, run
from flowsep_runtime.errors import OptionError
from flowsep_runtime.solvers import solver_named

PROGRAM = "benchmarks.latency.scaling"
UNITS = {"seconds": "seconds of audio", "batch": "batch", "steps": "solver steps", "threads": "threads"}


@dataclass(frozen=True)
class Place:
    """The place of one measurement."""

    seconds: float
    batch: int
    steps: int
    threads: int


@dataclass(frozen=True)
class Measured:
    """Seconds of a clip, one value a round, and the peak of memory in bytes."""

    seconds: Summary
    peak_bytes: int


@dataclass(frozen=True)
class Sweep:
    """One quantity varied, the others as in the first place; the laws leave disturbed points out."""

    quantity: str
    points: tuple[tuple[float, Measured], ...]

    @property
    def time(self) -> Growth | None:
        """Law of the seconds; None if fewer than three points are left."""
        kept = [(x, found.seconds.median) for x, found in self.points if not found.seconds.is_disturbed]
        return best([x for x, _ in kept], [y for _, y in kept])

    @property
    def memory(self) -> Growth | None:
        """Law of the peak memory, in MB."""
        return best([x for x, _ in self.points], [found.peak_bytes / 1e6 for _, found in self.points])


@click.command(name=PROGRAM, context_settings=SETTINGS)
@model_options
@click.option(
    "--backend", help="Contestant: a backend of this project, or eager.  [default: the first backend]"
)
@click.option("--solver", default="euler", help="Solver of the flow.")
@click.option("--seconds", default="5.12,2.56,10.24,20.48", help="Lengths of a clip.")
@click.option("--batch", default="1,2,4", help="Batch sizes.")
@click.option("--steps", default="4,1,8,16", help="Numbers of solver steps.")
@click.option("--threads", default="2,1", help="Numbers of threads.")
@click.option("--rounds", type=click.IntRange(2), default=3, help="Clips for each point.")
@output_options("Draw points and fitted laws")
def command(
    work: Path,
    make_model: Callable[[], Model],
    backend: str | None,
    solver: str,
    seconds: str,
    batch: str,
    steps: str,
    threads: str,
    rounds: int,
    outputs: Outputs,
) -> None:
    """Measure time and peak memory of one backend against length, batch, steps and threads."""
    solver_named(solver)
    contestant = _contestant(backend)
    varied: dict[str, list[float]] = {
        "seconds": numbers(seconds, "--seconds", float),
        "batch": numbers(batch, "--batch", int),
        "steps": numbers(steps, "--steps", int),
        "threads": numbers(threads, "--threads", int),
    }
    model = make_model()
    if contestant.kind == "bundle":
        model = (with_half_bundle if contestant.needs_half_bundle else with_bundle)(model, work)
    work.mkdir(parents=True, exist_ok=True)
    facts = machine()
    with tempfile.TemporaryDirectory(dir=work, prefix="run-") as scratch:
        sweeps = measure_all(varied, contestant, model, solver, rounds, Path(scratch))
    base = {quantity: values[0] for quantity, values in varied.items()}
    text = report(model.name, contestant, solver, base, rounds, sweeps, facts)
    settings = {"solver": solver, "rounds": rounds, "base": base}
    content = as_json(model.name, contestant, settings, sweeps, facts)
    outputs.write(text, content)
    if outputs.picture is not None:
        growth_panels([_curves(sweep) for sweep in sweeps], ["seconds", "peak memory, MB"], outputs.picture)


def measure_all(
    varied: Mapping[str, list[float]],
    contestant: Contestant,
    model: Model,
    solver: str,
    rounds: int,
    scratch: Path,
) -> list[Sweep]:
    """Every sweep; a place that is in several is measured once.

    Raises:
        BackendError: If a process fails.
    """
    architecture = config_of(model)
    frame_seconds = architecture.audio.hop_length / architecture.audio.sampling_rate
    first = {quantity: values[0] for quantity, values in varied.items()}
    base = Place(first["seconds"], int(first["batch"]), int(first["steps"]), int(first["threads"]))
    found: dict[Place, Measured] = {}
    sweeps = []
    for quantity, values in varied.items():
        points: dict[float, Measured] = {}
        for value in sorted(values):
            changed: dict[str, Any] = {quantity: value if quantity == "seconds" else int(value)}
            place = replace(base, **changed)
            # what is measured, which two lengths may come to
            frames = frames_of(architecture, place.seconds)
            place = replace(place, seconds=frames * frame_seconds)
            if place not in found:
                say(f"{contestant.name}: {place}")
                found[place] = _measured(place, frames, contestant, model, solver, rounds, scratch)
            points[getattr(place, quantity)] = found[place]
        sweeps.append(Sweep(quantity, tuple(points.items())))
    return sweeps


def _measured(
    place: Place, frames: int, contestant: Contestant, model: Model, solver: str, rounds: int, scratch: Path
) -> Measured:
    inputs = write_inputs(scratch / "inputs.npz", make_inputs(config_of(model), frames, place.batch, SEED))
    task = task_of(contestant, model, place.threads, inputs)
    with running(contestant.name, task, scratch / "cache") as process:
        clip = partial(process.ask, "clip", steps=place.steps, solver=solver)
        clip()  # loads the model, and warms it up
        answers = [clip() for _ in range(rounds)]
    return Measured(Summary(tuple(answer["seconds"] for answer in answers)), answers[-1]["peak_bytes"])


def _contestant(name: str | None) -> Contestant:
    if name is None:
        backends = [found for found in contestants.of_this_project() if contestants.why_absent(found) is None]
        if not backends:
            raise OptionError("No backend of this project can run here: install one (pip install '.[cpu]').")
        return backends[0]
    found = contestants.chosen(name, contestants.device_of(name))[0][-1]
    if found.kind == "plain":
        raise OptionError(f"{name} is a graph of one shape: choose a backend of this project, or eager.")
    return found


def report(
    name: str,
    contestant: Contestant,
    solver: str,
    base: Mapping[str, float],
    rounds: int,
    sweeps: list[Sweep],
    facts: Mapping[str, object],
) -> str:
    """The report in Markdown."""
    standing = ", ".join(f"{value:g} {UNITS[quantity]}" for quantity, value in base.items())
    lines = [
        f"{contestant.words}, the {name} model, {solver}, {rounds} clips per point. While one varies, the "
        f"others stand at {standing}."
    ]
    for sweep in sweeps:
        rows = [
            [f"{x:g}", tables.seconds(found.seconds), tables.size(found.peak_bytes)]
            for x, found in sweep.points
        ]
        head = [UNITS[sweep.quantity], "seconds, median / 95th percentile", "peak memory"]
        lines.append(tables.table(head, rows))
        laws = [
            f"{what}: {law}" for what, law in (("s", sweep.time), ("MB", sweep.memory)) if law is not None
        ]
        lines.append("; ".join(laws) + "." if laws else "Too few points for a law.")
    lines.append(
        f"x is what varies; the law is the better one of a·x + b and a·x^b. *disturbed*: clips of a point "
        f"lay more than a factor of {DISTURBED_ABOVE:g} from their median. {sentence(facts)}."
    )
    return "\n\n".join(lines)


def as_json(
    name: str,
    contestant: Contestant,
    settings: Mapping[str, object],
    sweeps: list[Sweep],
    facts: Mapping[str, object],
) -> dict[str, object]:
    """Everything that was measured."""
    return {
        "format": 1,
        "benchmark": "scaling",
        "model": name,
        "contestant": contestant.name,
        "settings": dict(settings),
        "disturbed_above": DISTURBED_ABOVE,
        "machine": dict(facts),
        "sweeps": {
            sweep.quantity: {
                "points": [
                    {"x": x, "seconds": found.seconds.plain(), "peak_bytes": found.peak_bytes}
                    for x, found in sweep.points
                ],
                "seconds": None if sweep.time is None else vars(sweep.time),
                "peak_mb": None if sweep.memory is None else vars(sweep.memory),
            }
            for sweep in sweeps
        },
    }


def _curves(sweep: Sweep) -> list[Curve]:
    x = [value for value, _ in sweep.points]
    title = UNITS[sweep.quantity]
    memory = [Summary((found.peak_bytes / 1e6,)) for _, found in sweep.points]
    return [
        Curve(title, x, [found.seconds for _, found in sweep.points], sweep.time),
        Curve(title, x, memory, sweep.memory),
    ]


def main() -> None:
    """Entry point of `python -m benchmarks.latency.scaling`."""
    run(command, PROGRAM, "There is not enough memory to prepare this model.")


if __name__ == "__main__":
    main()
