"""Two pictures: bars by class, and spectrograms of the best, the median and the worst output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsep_eval.mel import HOP, SAMPLE_RATE, Floats, mel_magnitudes
from flowsep_eval.scores import RATIO, ItemScore, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

COLOURS = ("#2a6f97", "#e07a5f", "#81b29a", "#f2cc8f", "#6d597a")
PANELS = (
    ("query_accuracy", "query accuracy, %", 100.0),
    (RATIO, "log-mel distance, after / before", 1.0),
    ("attenuation", "absent: below the mixture, dB", 1.0),
)
SHOWN_DB = 60.0


def class_bars(sets: Mapping[str, Scores], path: Path) -> None:
    """Bars by class with 95 % intervals: one panel per metric, one colour per test set."""
    classes = {name: scores.by_label() for name, scores in sets.items()}
    labels = sorted({label for found in classes.values() for label in found}, reverse=True)
    panels = [
        panel
        for panel in PANELS
        if any(panel[0] in found for by_label in classes.values() for found in by_label.values())
    ]
    with _figure(path, 3.0 + 3.6 * len(panels), 1.6 + 0.26 * len(labels)) as figure:
        axes = figure.subplots(1, max(1, len(panels)), squeeze=False, sharey=True)[0]
        bars: dict[str, Patch] = {}
        for axis, (metric, title, factor) in zip(axes, panels, strict=False):
            measured = [name for name in sets if any(metric in found for found in classes[name].values())]
            height = 0.8 / len(measured)
            for number, name in enumerate(measured):
                by_row = {row: classes[name].get(label, {}).get(metric) for row, label in enumerate(labels)}
                found = [(row, estimate) for row, estimate in by_row.items() if estimate is not None]
                rows = np.array([row for row, _ in found]) + 0.4 - height * (number + 0.5)
                means = factor * np.array([estimate.mean for _, estimate in found])
                ends = factor * np.array([[e.low, e.high] for _, e in found], np.float64).T
                whiskers = np.abs(ends - means)
                style = {"ecolor": "#444444", "elinewidth": 0.7}
                colour = COLOURS[list(sets).index(name) % len(COLOURS)]
                drawn = axis.barh(rows, means, height, xerr=whiskers, color=colour, error_kw=style)
                bars[name] = drawn.patches[0]
            axis.set_title(title, fontsize=10)
            axis.set_yticks(range(len(labels)), labels, fontsize=8)
            axis.margins(y=0.01)
            axis.grid(axis="x", alpha=0.3)
            axis.set_axisbelow(True)
            if metric == RATIO:
                axis.axvline(1.0, color="#444444", linewidth=1, linestyle=":")  # the mixture itself
                axis.set_xlim(0.0, min(axis.get_xlim()[1], 2.0))
        if len(sets) > 1:
            figure.legend(
                list(bars.values()), list(bars), fontsize=8, ncols=len(bars), loc="outside upper center"
            )


def chosen(scores: Scores) -> list[tuple[str, ItemScore]]:
    """The best, the median and the worst query of a set, by how much nearer the output is to the target than
    the mixture, or, of sounds that are not there, by attenuation."""
    ranked = sorted(
        (score for score in scores.scored if score.failed is None),
        key=lambda score: (_badness(score), score.item.id),
    )
    # of one or two queries, each is shown once
    places = {len(ranked) - 1: "worst", len(ranked) // 2: "median", 0: "best"}
    return [(places[place], ranked[place]) for place in sorted(places)]


def _badness(score: ItemScore) -> float:
    if "attenuation" in score.values:
        return -score.values["attenuation"]
    return score.values["log_mel_distance"] / max(score.values["log_mel_distance_mixture"], 1e-9)


#: A title, and three waveforms `[S]` with a title each (None is a sound that is not there).
Example = tuple[str, tuple[tuple[str, Floats | None], ...]]


def example_page(examples: list[Example], path: Path) -> None:
    """One row per example: the mel spectrograms of mixture, target and output, on the mixture's scale."""
    with _figure(path, 11.0, 0.4 + 2.1 * len(examples)) as figure:
        axes = figure.subplots(len(examples), 3, squeeze=False)
        for row, (title, sounds) in zip(axes, examples, strict=True):
            mixture = sounds[0][1]
            assert mixture is not None
            loudest = float(mel_magnitudes(mixture).max())
            for axis, (name, waveform) in zip(row, sounds, strict=True):
                silent = np.zeros_like(mixture) if waveform is None else waveform
                _spectrogram(axis, silent, loudest)
                axis.set_title(name, fontsize=9)
            row[0].set_ylabel(title, fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel("seconds", fontsize=8)


def _spectrogram(axis: Axes, waveform: Floats, loudest: float) -> None:
    decibels = 20 * np.log10(np.maximum(mel_magnitudes(waveform) / loudest, 10 ** (-SHOWN_DB / 20)))
    # without the ends of the last frame's window the axis still says seconds
    extent = (0.0, decibels.shape[0] * HOP / SAMPLE_RATE, 0.0, float(decibels.shape[1]))
    axis.imshow(
        decibels.T, origin="lower", aspect="auto", extent=extent, vmin=-SHOWN_DB, vmax=0.0, cmap="magma"
    )
    axis.set_yticks([])
    axis.tick_params(labelsize=7)


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of a size in inches; it is written when the block ends without an error."""
    import matplotlib
    from matplotlib.figure import Figure

    # A query with two dollar signs is not a formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        # Without the version in it, the same scores give the same file.
        figure.savefig(path, dpi=110, format="png", metadata={"Software": None})
