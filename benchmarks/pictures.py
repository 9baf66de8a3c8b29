"""The pictures of all benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison import Result, Settings, times_in_clip
from benchmarks.growth import Growth
from benchmarks.spread import Summary
from benchmarks.tables import DISTURBED, digits
from flowsep_runtime.errors import OutputError, shown
from flowsep_runtime.outputs import replacing

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#6d597a", "#81b29a", "#f2cc8f", "#b8b8b8", "#2a6f97", "#e07a5f", "#3d405b", "#a44a3f")
MARKERS = "osD^vP*X"


def stacked_bars(results: Sequence[Result], settings: Settings, order: Sequence[str], path: Path) -> None:
    """A bar a contestant, a colour a stage: where the time of a clip goes. A disturbed run has no bar."""
    measured = [result for result in results if result.left_out is None]
    evaluations = settings.evaluations
    reference = measured[0].clip(evaluations)
    with _figure(path, 9.0, 1.8 + 0.45 * len(measured)) as figure:
        axis = figure.subplots()
        labels: dict[str, int] = {}
        for row, result in enumerate(measured):
            clip = result.clip(evaluations)
            if clip.is_disturbed:
                axis.text(0.0, row, f"  {DISTURBED}", va="center", fontsize=8)
                continue
            left = 0.0
            for stage in (name for name in order if name in result.stages):
                width = times_in_clip(stage, evaluations) * result.stages[stage].median
                colour = COLOURS[list(order).index(stage) % len(COLOURS)]
                label = stage if stage not in labels else None
                axis.barh(row, width, 0.7, left, color=colour, label=label)
                labels.setdefault(stage, row)
                left += width
            faster = "" if reference.is_disturbed else f", {reference.median / clip.median:.1f}×"
            axis.text(left, row, f"  {digits(clip.median)} s{faster}", va="center", fontsize=8)
        axis.set_yticks(range(len(measured)), [result.contestant.words for result in measured], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel(
            f"seconds for a clip of {settings.seconds:g} s, {settings.threads} threads, "
            f"{evaluations} network evaluations",
            fontsize=8,
        )
        axis.margins(x=0.18)
        axis.set_xlim(left=0.0)
        if labels:
            figure.legend(fontsize=8, ncols=len(labels), loc="outside upper center")


@dataclass(frozen=True)
class Curve:
    """Measurements against one quantity, and the law that was fitted to them."""

    title: str
    x: Sequence[float]
    y: Sequence[Summary]
    growth: Growth | None


def growth_panels(columns: Sequence[Sequence[Curve]], rows: Sequence[str], path: Path) -> None:
    """A column a quantity that was varied, a row a quantity that was measured."""
    with _figure(path, 3.1 * len(columns), 2.6 * len(rows)) as figure:
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for column, curves in enumerate(columns):
            for row, curve in enumerate(curves):
                axis: Axes = axes[row][column]
                kept = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if not y.is_disturbed]
                medians = [y.median for _, y in kept]
                ends = [[y.median - y.low for _, y in kept], [y.high - y.median for _, y in kept]]
                axis.errorbar([x for x, _ in kept], medians, ends, fmt="o", color=COLOURS[4], capsize=2)
                if curve.growth is not None and kept:
                    line = np.linspace(min(curve.x), max(curve.x), 100)
                    axis.plot(line, [curve.growth.at(x) for x in line], color=COLOURS[5], linewidth=1)
                    axis.set_title(str(curve.growth), fontsize=7)
                axis.set_xlabel(curve.title, fontsize=8)
                axis.set_xlim(0.0, 1.08 * max(curve.x))
                axis.set_ylim(0.0, 1.15 * max([y.high for _, y in kept], default=1.0))
                axis.grid(alpha=0.3)
                if column == 0:
                    axis.set_ylabel(rows[row], fontsize=8)


@dataclass(frozen=True)
class Point:
    """A mean with its interval at so many network evaluations."""

    evaluations: int
    mean: float
    low: float | None
    high: float | None


def quality_panels(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], is_logarithmic: Mapping[str, bool], path: Path
) -> None:
    """A panel a metric, a line a solver (on an engine), against network evaluations."""
    with _figure(path, 4.2 * len(panels), 3.6) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
        drawn: dict[str, Artist] = {}
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            for name, points in lines.items():
                number = names.index(name)
                ordered = sorted(points, key=lambda point: point.evaluations)
                means = [point.mean for point in ordered]
                below = [0.0 if point.low is None else point.mean - point.low for point in ordered]
                above = [0.0 if point.high is None else point.high - point.mean for point in ordered]
                # side by side, where several lines have the same number of evaluations
                shift = 1.0 + 0.02 * (number - (len(names) - 1) / 2)
                line = axis.errorbar(
                    [point.evaluations * shift for point in ordered],
                    means,
                    [below, above],
                    marker=MARKERS[number % len(MARKERS)],
                    color=COLOURS[(number + 4) % len(COLOURS)],
                    markersize=4,
                    linewidth=1,
                    capsize=2,
                )
                drawn.setdefault(name, line.lines[0])
            axis.set_xscale("log", base=2)
            if is_logarithmic.get(title):
                axis.set_yscale("log")
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_title(title, fontsize=9)
            axis.set_xlabel("network evaluations", fontsize=8)
            axis.grid(alpha=0.3)
        figure.legend(
            list(drawn.values()),
            list(drawn),
            fontsize=8,
            ncols=min(6, len(drawn)),
            loc="outside upper center",
        )


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches; it is written when the block ends well."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    try:
        with replacing([path]) as (temporary,):
            # Without the version in it, the same numbers give the same file.
            figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
    except OSError as error:
        raise OutputError(f"{shown(path)} cannot be written: {error.strerror or error}.") from None
