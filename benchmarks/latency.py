"""How long a clip takes, stage by stage: this project's engines beside those that anyone could set up.

    python -m benchmarks.latency --sizes published --rounds 3

Everyone works from the same weights on the same inputs, in a process of its own, in turns.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from benchmarks import contestants, pictures, tables
from benchmarks.comparison import Result, Settings, compare
from benchmarks.engines import FEATURES, VELOCITY
from benchmarks.inputs import SEED, STAGES, config_of, frames_of, make_inputs, tokens_of, write_inputs
from benchmarks.machine import machine, sentence
from benchmarks.models import Sizes, choose, default_work, with_bundle, with_plain_graphs
from benchmarks.output import check_destinations, model_options, write_text
from benchmarks.progress import say
from benchmarks.spread import DISTURBED_ABOVE, ratio
from flowsep_runtime.console import run
from flowsep_runtime.solvers import solver_named

PROGRAM = "benchmarks.latency"
FILE = click.Path(path_type=Path)
ORDER = [name for stage in STAGES for name in ((FEATURES, stage) if stage == VELOCITY else (stage,))]


@click.command(name=PROGRAM, context_settings={"help_option_names": ["-h", "--help"]})
@model_options
@click.option(
    "--steps", type=click.IntRange(1), default=20, show_default=True, help="Solver steps of a clip."
)
@click.option("--solver", default="euler", show_default=True, help="Solver of the flow, for everyone.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), default=10.24, show_default=True, help="Of a clip."
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="For everyone.")
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True, help="Interleaved rounds.")
@click.option(
    "--backends",
    metavar="NAME,…",
    help=f"Contestants; {contestants.REFERENCE} is always among them.  [default: all that can run here]",
)
@click.option("--json", "json_file", type=FILE, help="Write everything that was measured.")
@click.option("--markdown", type=FILE, help="Write the tables, which are also printed.")
@click.option("--picture", type=FILE, help="Draw the clip's time as stacked bars (PNG).")
def command(
    sizes: Sizes,
    checkpoint: Path | None,
    config: Path | None,
    bundle: Path | None,
    work: Path | None,
    steps: int,
    solver: str,
    seconds: float,
    threads: int,
    rounds: int,
    backends: str | None,
    json_file: Path | None,
    markdown: Path | None,
    picture: Path | None,
) -> None:
    """Time every stage and a whole clip on this project's engines and on the baselines."""
    solver_named(solver)
    check_destinations(json_file, markdown, picture)
    work = (work or default_work()).resolve()
    taking_part, left_out = contestants.chosen(backends)
    model = choose(sizes, work, checkpoint, config, bundle)
    architecture = config_of(model)
    frames = frames_of(architecture, seconds)
    kinds = {contestant.kind for contestant in taking_part}
    if "bundle" in kinds:
        model = with_bundle(model, work)
    if "plain" in kinds:
        model = with_plain_graphs(model, work, frames)
    audio = architecture.audio
    settings = Settings(
        steps, solver, rounds, threads, seconds=frames * audio.hop_length / audio.sampling_rate
    )
    say(f"{model.name}: {', '.join(contestant.name for contestant in taking_part)}; {threads} threads")
    facts = machine()
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="run-") as scratch:
        tokens = None if model.bundle is None else tokens_of(model)
        arrays = make_inputs(architecture, frames, 1, SEED, tokens)
        inputs = write_inputs(Path(scratch) / "inputs.npz", arrays)
        results = compare(taking_part, model, inputs, settings, Path(scratch))
    text = report(model.name, results, settings, facts, left_out)
    click.echo(text)
    if markdown is not None:
        write_text(markdown, text + "\n")
    if json_file is not None:
        content = as_json(model.name, results, settings, facts, left_out)
        write_text(json_file, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if picture is not None:
        pictures.stacked_bars(results, settings, ORDER, picture)


def report(
    name: str,
    results: list[Result],
    settings: Settings,
    facts: Mapping[str, object],
    left_out: list[str],
) -> str:
    """What a reader wants to know, in Markdown."""
    measured = [result for result in results if result.left_out is None]
    reference = measured[0]
    evaluations = settings.evaluations
    lines = [
        f"One clip of {settings.seconds:g} s, the {name} model, batch 1, {settings.threads} threads, "
        f"{settings.rounds} interleaved rounds, {settings.solver}, {settings.steps} steps "
        f"({evaluations} network evaluations).",
        _clip_table(measured, reference, evaluations, settings.seconds),
    ]
    blocks: dict[str, Callable[[Result, str], str]] = {
        "Seconds a call, median / 95th percentile; the velocity's for one step:": (
            lambda result, stage: tables.seconds(result.stages.get(stage))
        ),
        f"Times faster than {reference.contestant.name}, median (range over rounds):": (
            lambda result, stage: tables.spread(result.ratios(reference).get(stage))
        ),
        f"SNR against {reference.contestant.name} on the same inputs, dB:": (
            lambda result, stage: tables.decibels(result.snr[stage]) if stage in result.snr else ""
        ),
    }
    for title, cell in blocks.items():
        stages = [stage for stage in ORDER if any(cell(result, stage) for result in measured)]
        rows = [[r.contestant.name, *(cell(r, stage) for stage in stages)] for r in measured]
        lines += [title, tables.table(["", *stages], rows)]
    lines += [f"{r.contestant.name}: {remark}" for r in measured for remark in r.remarks]
    remarks = [*left_out, *(result.left_out for result in results if result.left_out is not None)]
    lines += [f"Left out: {remark}." for remark in remarks]
    lines.append(
        f"*disturbed*: the 95th percentile over rounds was more than {DISTURBED_ABOVE:g} times the median. "
        f"{sentence(facts)}."
    )
    return "\n\n".join(lines)


def _clip_table(measured: list[Result], reference: Result, evaluations: int, audio: float) -> str:
    head = [
        "",
        "clip, s (median / p95)",
        f"times faster than {reference.contestant.name}",
        "real-time factor",
    ]
    head += ["SNR, dB", "cold start, s: first / second", "peak memory", "on disk", "caches"]
    rows = []
    for result in measured:
        clip = result.clip(evaluations)
        cold = result.cold or (float("nan"), float("nan"))
        rows.append(
            [
                f"{result.contestant.name}: {result.contestant.words}",
                tables.seconds(clip),
                tables.spread(ratio(reference.clip(evaluations), clip)),
                tables.DISTURBED if clip.is_disturbed else tables.digits(clip.median / audio),
                tables.decibels(result.clip_snr),
                f"{tables.digits(cold[0])} / {tables.digits(cold[1])}",
                tables.size(result.peak_bytes),
                tables.size(result.disk_bytes),
                tables.size(result.cache_bytes),
            ]
        )
    return tables.table(head, rows)


def as_json(
    name: str,
    results: list[Result],
    settings: Settings,
    facts: Mapping[str, object],
    left_out: list[str],
) -> dict[str, object]:
    """Everything that was measured, with every round."""
    reference = results[0]
    return {
        "format": 1,
        "benchmark": "latency",
        "model": name,
        "settings": vars(settings) | {"evaluations": settings.evaluations, "batch": 1},
        "disturbed_above": DISTURBED_ABOVE,
        "machine": dict(facts),
        "left_out": left_out,
        "contestants": {
            result.contestant.name: _contestant(result, reference, settings) for result in results
        },
    }


def _contestant(result: Result, reference: Result, settings: Settings) -> dict[str, object]:
    found: dict[str, object] = {"words": result.contestant.words}
    if result.left_out is not None:
        return found | {"left_out": result.left_out}
    clip, ratios = result.clip(settings.evaluations), result.ratios(reference)
    assert result.cold is not None
    return found | {
        "stages": {
            stage: {
                "seconds": summary.plain(),
                "times_faster": ratios[stage].plain() if stage in ratios else None,
                "snr_db": tables.plain_decibels(result.snr[stage]) if stage in result.snr else None,
            }
            for stage, summary in result.stages.items()
        },
        "clip": {
            "seconds": clip.plain(),
            "times_faster": ratio(reference.clip(settings.evaluations), clip).plain(),
            "snr_db": tables.plain_decibels(result.clip_snr),
            "real_time_factor": None if clip.is_disturbed else clip.median / settings.seconds,
        },
        "remarks": result.remarks,
        "cold_start_seconds": {"first": result.cold[0], "second": result.cold[1]},
        "peak_bytes": result.peak_bytes,
        "disk_bytes": result.disk_bytes,
        "cache_bytes": result.cache_bytes,
    }


def main() -> None:
    """Entry point of `python -m benchmarks.latency`."""
    run(command, PROGRAM, "There is not enough memory to prepare this model.")


if __name__ == "__main__":
    main()
