"""Separation scores against their cost: steps, solver, backend and precision.

    python -m benchmarks.quality --manifest runs/test/manifest.jsonl --picture quality.png

Cost is counted in network evaluations, which no machine changes. Every setting sees the same items with the
same noise, so that settings are compared item by item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.common import contestants, tables
from benchmarks.common.contestants import Contestant
from benchmarks.common.machine import machine, sentence
from benchmarks.common.options import Outputs, numbers, output_options, seed_option, threads_option
from benchmarks.quality import pictures
from benchmarks.quality.operating_points import OperatingPoint, Row, measure
from flowsep_eval import read_manifest
from flowsep_eval.bootstrap import Estimate
from flowsep_eval.evaluation import check_audio
from flowsep_eval.report import COLUMNS
from flowsep_eval.scores import RATIO, together
from flowsep_eval.writing import set_names
from flowsep_runtime.app.console import FILE, SETTINGS, bundle_option, run
from flowsep_runtime.errors import OptionError
from flowsep_runtime.solvers import SOLVERS, solver_named

PROGRAM = "benchmarks.quality"
ERROR = "error to the converged trajectory"
PANELS = ("query_accuracy", RATIO, "mel_si_sdr_improvement", "silenced")


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.option(
    "--manifest", "manifests", type=FILE, multiple=True, required=True, help="Test set; may be repeated."
)
@bundle_option
@click.option("--steps", default="1,2,4,8,20", help="Solver steps.")
@click.option("--solvers", metavar="NAME,…", help="Solvers.  [default: all that the runtime has]")
@click.option("--backends", metavar="NAME,…", help="Backends to score.  [default: the first that runs]")
@click.option("--reference", default="euler:20", help="Setting that all are compared with.")
@click.option("--limit", type=click.IntRange(1), help="Score only the first queries of each manifest.")
@click.option(
    "--converged-steps", type=click.IntRange(1), default=200, help="Euler steps of the converged trajectory."
)
@click.option("--converged-items", type=click.IntRange(0), default=4, help="Queries to measure the error on.")
@threads_option(2)
@seed_option
@output_options("Draw quality against network evaluations")
def command(
    manifests: tuple[Path, ...],
    bundle: str | None,
    steps: str,
    solvers: str | None,
    backends: str | None,
    reference: str,
    limit: int | None,
    converged_steps: int,
    converged_items: int,
    threads: int,
    seed: int,
    outputs: Outputs,
) -> None:
    """Score separations against solver, steps, backend and precision."""
    names = list(SOLVERS) if solvers is None else [name.strip() for name in solvers.split(",")]
    for name in names:
        solver_named(name)
    counts = [int(count) for count in numbers(steps, "--steps", int)]
    chosen = _contestants(backends)
    compared_with = _reference(reference, chosen[0])
    settings = list(
        dict.fromkeys(
            [compared_with]
            + [
                OperatingPoint(contestant.name, name, count)
                for contestant in chosen
                for name in names
                for count in counts
                if SOLVERS[name].only_steps in (None, count)
            ]
        )
    )
    paths = dict(zip(set_names(manifests), manifests, strict=True))
    sets = {name: read_manifest(path, limit) for name, path in paths.items()}
    for items in sets.values():
        check_audio(items)
    rows = measure(settings, chosen, bundle, sets, threads, seed, converged_steps, converged_items)
    facts = machine()
    about = {
        "manifests": {name: str(path) for name, path in paths.items()},
        "queries": {name: len(items) for name, items in sets.items()},
        "bundle": bundle or "bundled",
        "reference": str(compared_with),
        "converged_steps": converged_steps,
        "converged_items": converged_items,
        "threads": threads,
        "seed": seed,
    }
    outputs.write(report(rows, about, facts), as_json(rows, about, facts))
    if outputs.picture is not None:
        draw(rows, outputs.picture)


def _contestants(names: str | None) -> list[Contestant]:
    ours = {found.name: found for found in contestants.of_this_project()}
    if names is None:
        able = [found for found in ours.values() if contestants.why_absent(found) is None]
        if not able:
            raise OptionError("No backend of this project can run here: install one (pip install '.[cpu]').")
        return able[:1]
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in wanted:
        if name not in ours:
            raise OptionError(f"There is no backend {name!r}: choose from {', '.join(ours)}.")
        reason = contestants.why_absent(ours[name])
        if reason is not None:
            raise OptionError(f"{name} cannot run: {reason}.")
    return [ours[name] for name in wanted]


def _reference(text: str, contestant: Contestant) -> OperatingPoint:
    name, _, steps = text.partition(":")
    if not steps.isdecimal() or int(steps) < 1:
        raise OptionError(f"--reference is a solver and its steps, as in euler:20, and not {text!r}.")
    solver_named(name)
    return OperatingPoint(contestant.name, name, int(steps))


def report(rows: Sequence[Row], about: Mapping[str, object], facts: Mapping[str, object]) -> str:
    """The report in Markdown, with one table per test set."""
    lines = []
    for name in rows[0].sets:
        summaries = [row.sets[name].overall() for row in rows]
        columns = [column for column in COLUMNS if any(column.metric in summary for summary in summaries)]
        head = ["", "evaluations", *(column.heading for column in columns)]
        body = [
            [str(row.setting), str(row.setting.evaluations), *(column.cell(summary) for column in columns)]
            for row, summary in zip(rows, summaries, strict=True)
        ]
        lines += [f"{name}, {len(rows[0].sets[name].scored)} queries:", tables.table(head, body)]
    head = ["", "evaluations", f"distance against {about['reference']}, dB", ERROR]
    body = [
        [
            str(row.setting),
            str(row.setting.evaluations),
            tables.interval(row.difference, 2),
            tables.interval(row.error, 4),
        ]
        for row in rows
    ]
    lines += ["All sets, item by item:", tables.table(head, body)]
    lines.append(
        "In brackets: 95 % bootstrap intervals. Distance: the log-mel distance of the sounds that are there; "
        "below 0 is better, and an interval with 0 in it shows no difference. "
        f"Error: of the latent, relative, to Euler's {about['converged_steps']} steps, "
        f"{about['converged_items']} queries. {sentence(facts)}."
    )
    return "\n\n".join(lines)


def as_json(
    rows: Sequence[Row], about: Mapping[str, object], facts: Mapping[str, object]
) -> dict[str, object]:
    """Everything that was measured."""

    def plain(estimate: Estimate | None) -> dict[str, object] | None:
        return None if estimate is None else asdict(estimate)

    return {
        "format": 1,
        "benchmark": "quality",
        **about,
        "machine": dict(facts),
        "rows": [
            {
                **asdict(row.setting),
                "evaluations": row.setting.evaluations,
                "sets": {
                    name: {metric: asdict(found) for metric, found in scores.overall().items()}
                    for name, scores in row.sets.items()
                },
                "failed": sum(scores.failed for scores in row.sets.values()),
                "distance_to_reference": plain(row.difference),
                "error_to_converged": plain(row.error),
            }
            for row in rows
        ],
    }


def draw(rows: Sequence[Row], path: Path) -> None:
    """Metrics of all sets together and the error, a line a solver."""
    one_backend = len({row.setting.contestant for row in rows}) == 1
    headings = {column.metric: (column.heading, column.factor) for column in COLUMNS}
    panels: dict[str, dict[str, list[pictures.Point]]] = {}
    for row in rows:
        setting = row.setting
        line = setting.solver if one_backend else f"{setting.contestant}, {setting.solver}"
        overall = together(row.sets.values()).overall()
        found = {headings[metric]: overall[metric] for metric in PANELS if metric in overall}
        if row.error is not None:
            found[(ERROR, 1.0)] = row.error
        for (title, factor), estimate in found.items():
            ends = [None if end is None else factor * end for end in (estimate.low, estimate.high)]
            point = pictures.Point(setting.evaluations, factor * estimate.mean, *ends)
            panels.setdefault(title, {}).setdefault(line, []).append(point)
    pictures.quality_panels(panels, {ERROR: True}, path)


def main() -> None:
    """Entry point of `python -m benchmarks.quality`."""
    run(command, PROGRAM, "There is not enough memory for these mixtures: give shorter ones.")


if __name__ == "__main__":
    main()
