"""The report of an evaluation, as data and as tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from flowsep_eval.bootstrap import Estimate
from flowsep_eval.metrics import ABSENT_DB
from flowsep_eval.scores import RATIO, ItemScore, Scores, Summary, together

FORMAT = 1
ALL = "all sets"


@dataclass(frozen=True)
class Column:
    """Format of a metric: heading, factor, decimals."""

    metric: str
    heading: str
    factor: float = 1.0
    decimals: int = 1

    def cell(self, summary: Summary, suffix: str = "", interval: bool = True) -> str:
        """The estimate with its interval, as in `92.3 (89.1…95.0)`; empty where the metric does not apply."""
        estimate = summary.get(self.metric + suffix)
        if estimate is None:
            return ""
        if not interval:
            estimate = replace(estimate, low=None, high=None)
        return estimate.text(self.decimals, self.factor)


COLUMNS = (
    Column("query_accuracy", "query accuracy, %", 100),
    Column("log_mel_distance", "log-mel distance, dB", decimals=2),
    Column("log_mel_distance_mixture", "before, dB", decimals=2),
    Column(RATIO, "after / before", decimals=3),
    Column("mel_si_sdr_improvement", "mel SI-SDR gain, dB"),
    Column("si_sdr_improvement", "SI-SDR gain, dB"),
    Column("level_error", "level error, dB"),
    Column("attenuation", "below the mixture, dB"),
    Column("silenced", f"≥ {ABSENT_DB:.0f} dB below, %", 100),
    Column("clap_score", "CLAPScore", decimals=3),
    Column("fad", "FAD", decimals=3),
)
CEILINGS = (
    Column("query_accuracy", "query accuracy, %", 100),
    Column("log_mel_distance", "log-mel distance to the target, dB", decimals=2),
    Column("mel_si_sdr", "mel SI-SDR, dB"),
    Column("si_sdr", "SI-SDR, dB"),
    Column("level_error", "level error, dB"),
    Column("clap_score", "CLAPScore", decimals=3),
    Column("fad", "FAD", decimals=3),
)


def report(sets: Mapping[str, Scores], about: Mapping[str, Any]) -> dict[str, Any]:
    """The report for JSON; missing numbers are null.

    Args:
        sets: Scores by the name of their test set.
        about: What was evaluated and how; stands first.
    """
    everything = together(by_default(sets, about["settings"]).values())
    return {
        "format": FORMAT,
        **about,
        "seconds_per_clip": everything.seconds,
        "overall": _plain(everything.overall()),
        "classes": {label: _plain(found) for label, found in everything.by_label().items()},
        "sets": {name: _set(scores) for name, scores in sets.items()},
    }


def _set(scores: Scores) -> dict[str, Any]:
    return {
        "count": len(scores.scored),
        "failed": scores.failed,
        "seconds_per_clip": scores.seconds,
        "overall": _plain(scores.overall()),
        "classes": {label: _plain(found) for label, found in scores.by_label().items()},
        "queries": {query: _plain(found) for query, found in scores.by_query().items()},
        "items": [_item(score) for score in scores.scored],
    }


def _item(score: ItemScore) -> dict[str, Any]:
    item = score.item
    return {
        **item.extra,
        "id": item.id,
        "mixture": str(item.mixture),
        "query": item.query,
        "label": item.label,
        "other_label": item.other_label,
        "kind": item.kind,
        "seed": score.seed,
        "seconds": score.seconds,
        "failed": score.failed,
        "scores": {name: None if math.isnan(value) else value for name, value in score.values.items()},
    }


def _plain(summary: Summary) -> dict[str, dict[str, float | int | None]]:
    return {name: asdict(estimate) for name, estimate in sorted(summary.items())}


def set_title(name: str, kind: str, kinds: Collection[str]) -> str:
    """A test set's name in a report; where several kinds of results are scored, the kind stands behind it."""
    return name if len(kinds) == 1 else f"{name}, {kind}"


def by_default(sets: Mapping[str, Scores], settings: Mapping[str, Any]) -> dict[str, Scores]:
    """The sets of the first kind of results, which is the bundle's default."""
    kinds = settings["kinds"]
    if len(kinds) == 1:
        return dict(sets)
    return {name: scores for name, scores in sets.items() if name.endswith(f", {next(iter(kinds))}")}


def _schedules(settings: Mapping[str, Any]) -> str:
    """The kinds of results and the solver steps that each took, as in `masked: 1 step of mean`."""
    return "; ".join(
        f"{kind}: {found['steps']} step{'s' if found['steps'] > 1 else ''} of {found['solver']}"
        for kind, found in settings["kinds"].items()
    )


def _unusual(settings: Mapping[str, Any]) -> str:
    """Options other than the defaults, each followed by a comma."""
    return "" if settings["guidance"] == 1 else f"guidance {settings['guidance']:g}, "


def markdown(sets: Mapping[str, Scores], about: Mapping[str, Any]) -> str:
    """The tables: sets, ceilings, classes; every number with its 95 % interval."""
    totals = {name: scores.overall() for name, scores in sets.items()}
    settings, bundle = about["settings"], about["bundle"]
    default = by_default(sets, settings)
    everything = together(default.values())
    if len(default) > 1:
        totals[set_title(ALL, next(iter(settings["kinds"])), settings["kinds"])] = everything.overall()
    counts = {name: len(scores.scored) for name, scores in sets.items()}
    counts |= {name: len(everything.scored) for name in totals.keys() - counts.keys()}
    lines = [
        f"# Evaluation of {bundle['name']}",
        "",
        f"{_schedules(settings)}; {_unusual(settings)}"
        f"{settings['precision']} precision on "
        f"{bundle['backend']}, seed {settings['seed']}; bundle `{bundle['digest'][:12]}`; "
        f"{everything.seconds:.2f} s a clip (median). In brackets: 95 % bootstrap intervals.",
    ]
    if everything.failed:
        lines += ["", f"**{everything.failed} separations failed** and count as silence."]
    shown = [column for column in COLUMNS if any(column.metric in total for total in totals.values())]
    rows = [[name, str(counts[name]), *(c.cell(total) for c in shown)] for name, total in totals.items()]
    lines += ["", *table(["set", "queries", *(column.heading for column in shown)], rows)]
    for name in sets:
        lines += _ceilings(name, totals[name])
    for name, scores in sets.items():
        lines += _classes(name, scores, shown)
    return "\n".join(lines) + "\n"


def _ceilings(name: str, total: Summary) -> list[str]:
    """Scores of the mixture itself and of a perfect flow; empty for sets without targets."""
    if "log_mel_distance" not in total:
        return []
    columns = [column for column in CEILINGS if column.metric in total]
    rows = [
        [title, *(column.cell(total, suffix) for column in columns)]
        for title, suffix in (
            ("the mixture itself (doing nothing)", "_mixture"),
            ("the model", ""),
            ("a perfect flow: the target through the VAE", "_ceiling"),
            ("the target itself", "_target"),
        )
        if any(column.metric + suffix in total for column in columns)
    ]
    return ["", f"## Ceilings: {name}", "", *table(["", *(column.heading for column in columns)], rows)]


def _classes(name: str, scores: Scores, columns: list[Column]) -> list[str]:
    classes = scores.by_label()
    shown = [column for column in columns if any(column.metric in found for found in classes.values())]
    counts = {label: sum(score.item.label == label for score in scores.scored) for label in classes}
    rows = [
        [label, str(counts[label]), *(column.cell(found, interval=False) for column in shown)]
        for label, found in classes.items()
    ]
    headings = ["class", "queries", *(column.heading for column in shown)]
    return ["", f"## Classes: {name}", "", *table(headings, rows)]


def table(headings: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table's lines."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return [line(headings), "|" + " --- |" * len(headings), *(line(row) for row in rows)]


def closing_line(sets: Mapping[str, Scores]) -> str:
    """The summary for the terminal: one line per set."""
    lines = []
    for name, scores in sets.items():
        total: Mapping[str, Estimate] = scores.overall()
        found = [f"{c.heading} {c.cell(total)}" for c in COLUMNS if c.metric in total]
        lines.append(f"{name}: {len(scores.scored)} queries, " + "; ".join(found))
    return "\n".join(lines)
