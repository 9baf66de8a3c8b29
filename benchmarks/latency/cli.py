"""Time of a clip, stage by stage, of this project's backends and of baselines.

    python -m benchmarks.latency --sizes published --rounds 3
    python -m benchmarks.latency --device cuda --batch 4

Everyone works from the same weights on the same inputs, in a process of its own, in turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from benchmarks.common import contestants
from benchmarks.common.contestants import Contestant
from benchmarks.common.gpu import device_for
from benchmarks.common.inputs import SEED, config_of, frames_of, make_inputs, tokens_of, write_inputs
from benchmarks.common.machine import machine
from benchmarks.common.models import Model, build_engines, with_bundle, with_half_bundle, with_plain_graphs
from benchmarks.common.options import Outputs, clip_options, model_options, output_options, threads_option
from benchmarks.common.peak import Peak
from benchmarks.common.processes import running, task_of
from benchmarks.common.progress import say
from benchmarks.latency import pictures
from benchmarks.latency.comparison import ComparisonSettings, compare
from benchmarks.latency.limits import limits
from benchmarks.latency.report import ORDER, Findings, as_json, report
from flowsep_runtime.app.console import SETTINGS, run
from flowsep_runtime.errors import BackendError
from flowsep_runtime.solvers import solver_named

PROGRAM = "benchmarks.latency"


@click.command(name=PROGRAM, context_settings=SETTINGS)
@model_options
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Device of all contestants; auto is a GPU if PyTorch finds one.",
)
@clip_options
@click.option("--solver", default="euler", help="Solver of all contestants.")
@threads_option(2)
@click.option("--rounds", type=click.IntRange(2), default=5, help="Interleaved rounds.")
@click.option(
    "--backends",
    metavar="NAME,…",
    help=f"Contestants; {contestants.REFERENCE} is always among them.  [default: all that can run here]",
)
@output_options("Draw the clip's time as stacked bars")
def command(
    work: Path,
    make_model: Callable[[], Model],
    device: str,
    steps: int,
    solver: str,
    seconds: float,
    batch: int,
    threads: int,
    rounds: int,
    backends: str | None,
    outputs: Outputs,
) -> None:
    """Time every stage and a whole clip on this project's backends and on the baselines."""
    solver_named(solver)
    place = device_for(device)
    taking_part, left_out = contestants.chosen(backends, place)
    model = make_model()
    architecture = config_of(model)
    frames = frames_of(architecture, seconds)
    model = _with_forms(model, taking_part, work, frames, batch)
    if place == "cuda":
        model = with_half_bundle(model, work)  # for the limits too
        taking_part = _with_engines(taking_part, model, work, batch, frames, left_out)
    audio = architecture.audio
    settings = ComparisonSettings(
        steps,
        solver,
        rounds,
        threads,
        seconds=frames * audio.hop_length / audio.sampling_rate,
        batch=batch,
        device=place,
    )
    say(f"{model.name}: {', '.join(contestant.name for contestant in taking_part)}; {threads} threads")
    facts = machine()
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="run-") as scratch:
        tokens = None if model.any_bundle is None else tokens_of(model.any_bundle)
        arrays = make_inputs(architecture, frames, batch, SEED, tokens)
        inputs = write_inputs(Path(scratch) / "inputs.npz", arrays)
        peak = None
        if place == "cuda":
            name, peak = _gpu(taking_part[0], model, threads, inputs, Path(scratch))
            facts["gpu"] = name
        results = compare(taking_part, model, inputs, settings, Path(scratch))
    least = limits(model.half_bundle, batch, frames, peak) if peak and model.half_bundle else {}
    findings = Findings(model.name, results, settings, facts, left_out, peak, least)
    outputs.write(report(findings), as_json(findings))
    if outputs.picture is not None:
        pictures.stacked_bars(results, settings, ORDER, outputs.picture)


def _with_forms(
    model: Model, taking_part: Sequence[Contestant], work: Path, frames: int, batch: int
) -> Model:
    """The model in every form but half precision that someone needs."""
    bundles = [contestant for contestant in taking_part if contestant.kind == "bundle"]
    if any(not contestant.needs_half_bundle for contestant in bundles):
        model = with_bundle(model, work)
    if any(contestant.kind == "plain" for contestant in taking_part):
        model = with_plain_graphs(model, work, frames, batch)
    return model


def _with_engines(
    taking_part: Sequence[Contestant], model: Model, work: Path, batch: int, frames: int, left_out: list[str]
) -> list[Contestant]:
    """Builds what TensorRT needs, in bundles that were exported here and in no others; who cannot have it is
    left out, and the reason is noted."""
    kept = []
    for contestant in taking_part:
        bundle = model.half_bundle if contestant.needs_half_bundle else model.bundle
        if contestant.backend == "tensorrt" and bundle is not None and bundle.is_relative_to(work):
            try:
                build_engines(bundle, batch, frames)
            except BackendError as error:
                left_out.append(f"{contestant.name}: {str(error).rstrip('.')}")
                continue
        kept.append(contestant)
    return kept


def _gpu(reference: Contestant, model: Model, threads: int, inputs: Path, scratch: Path) -> tuple[str, Peak]:
    """The GPU's name and peaks, measured in a process that has it alone."""
    say("measuring the GPU's peaks")
    with running("peak", task_of(reference, model, threads, inputs), scratch / "cache" / "peak") as process:
        answer = process.ask("peak")
    return answer["name"], Peak(**answer["peak"])


def main() -> None:
    """Entry point of `python -m benchmarks.latency`."""
    run(command, PROGRAM, "There is not enough memory to prepare this model.")


if __name__ == "__main__":
    main()
