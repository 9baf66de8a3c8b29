"""The picture of `benchmarks.quality`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common.pictures import COLOURS, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist


@dataclass(frozen=True)
class Point:
    """A mean with its interval at a number of network evaluations."""

    evaluations: int
    mean: float
    low: float | None
    high: float | None


def quality_panels(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], is_logarithmic: Mapping[str, bool], path: Path
) -> None:
    """A panel a metric, a line a solver (on a backend), against network evaluations."""
    with new_figure(path, 4.2 * len(panels), 3.6) as figure:
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
