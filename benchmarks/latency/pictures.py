"""The pictures of `benchmarks.latency` and `benchmarks.latency.scaling`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common.pictures import COLOURS, new_figure
from benchmarks.common.spread import Summary
from benchmarks.common.tables import DISTURBED, digits
from benchmarks.latency.comparison import ComparisonSettings, Result, times_in_clip
from benchmarks.latency.growth import Growth

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def stacked_bars(
    results: Sequence[Result], settings: ComparisonSettings, order: Sequence[str], path: Path
) -> None:
    """A bar a contestant, a colour a stage: where the time of a clip goes. A disturbed run has no bar."""
    measured = [result for result in results if result.left_out is None]
    evaluations = settings.evaluations
    reference = measured[0].clip(evaluations)
    with new_figure(path, 9.0, 1.8 + 0.45 * len(measured)) as figure:
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
    with new_figure(path, 3.1 * len(columns), 2.6 * len(rows)) as figure:
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
