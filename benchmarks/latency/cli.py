"""Time of a clip, stage by stage, of this project's backends and of baselines.

    python -m benchmarks.latency --sizes published --rounds 3
    python -m benchmarks.latency --device cuda --batch 4

Everyone works from the same weights on the same inputs, in a process of its own, in turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.common import contestants
from benchmarks.common.contestants import Contestant
from benchmarks.common.gpu import device_for
from benchmarks.common.inputs import SEED, config_of, frames_of, make_inputs, tokens_of, write_inputs
from benchmarks.common.machine import machine
from benchmarks.common.models import (
    Model,
    Sizes,
    build_engines,
    choose,
    default_work,
    with_bundle,
    with_half_bundle,
    with_plain_graphs,
)
from benchmarks.common.output import check_destinations, model_options, output_options, write_findings
from benchmarks.common.peak import Peak
from benchmarks.common.processes import running, task_of
from benchmarks.common.progress import say
from benchmarks.latency import pictures
from benchmarks.latency.comparison import ComparisonSettings, compare
from benchmarks.latency.limits import limits
from benchmarks.latency.report import ORDER, Findings, as_json, report
from flowsep_runtime.app.console import run
from flowsep_runtime.errors import BackendError
from flowsep_runtime.solvers import solver_named

PROGRAM = "benchmarks.latency"


@click.command(name=PROGRAM, context_settings={"help_option_names": ["-h", "--help"]})
@model_options
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device of all contestants; auto is a GPU if PyTorch finds one.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=20, show_default=True, help="Solver steps of a clip."
)
@click.option("--solver", default="euler", show_default=True, help="Solver of all contestants.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 60),
    default=10.24,
    show_default=True,
    help="Length of a clip.",
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Batch size.")
@click.option(
    "--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of each contestant."
)
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Interleaved rounds.")
@click.option(
    "--backends",
    metavar="NAME,…",
    help=f"Contestants; {contestants.REFERENCE} is always among them.  [default: all that can run here]",
)
@output_options("Draw the clip's time as stacked bars")
def command(
    sizes: Sizes,
    checkpoint: Path | None,
    config: Path | None,
    bundle: Path | None,
    work: Path | None,
    device: str,
    steps: int,
    solver: str,
    seconds: float,
    batch: int,
    threads: int,
    rounds: int,
    backends: str | None,
    json_file: Path | None,
    markdown: Path | None,
    picture: Path | None,
) -> None:
    """Time every stage and a whole clip on this project's backends and on the baselines."""
    solver_named(solver)
    check_destinations(json_file, markdown, picture)
    work = (work or default_work()).resolve()
    place = device_for(device)
    taking_part, left_out = contestants.chosen(backends, place)
    model = choose(sizes, work, checkpoint, config, bundle)
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
    write_findings(report(findings), as_json(findings), json_file, markdown)
    if picture is not None:
        pictures.stacked_bars(results, settings, ORDER, picture)


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
    taking_part: Sequence[Contestant],
    model: Model,
    work: Path,
    batch: int,
    frames: int,
    left_out: list[str],
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
