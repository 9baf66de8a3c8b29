"""Scores of a model under several settings: backend, solver and steps, all on the same items and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.contestants import Contestant
from benchmarks.common.progress import say
from benchmarks.quality.trajectories import ends, relative_errors, starts
from flowsep_eval import evaluate
from flowsep_eval.bootstrap import Estimate, Resamples
from flowsep_eval.manifest import Item
from flowsep_eval.scores import Scores, together
from flowsep_runtime import Separator
from flowsep_runtime.solvers import solver_named

DISTANCE = "log_mel_distance"


@dataclass(frozen=True)
class OperatingPoint:
    """One way to run the model."""

    contestant: str
    solver: str
    steps: int

    @property
    def evaluations(self) -> int:
        """Runs of the velocity network in one clip."""
        return len(solver_named(self.solver).times(self.steps))

    def __str__(self) -> str:
        return f"{self.contestant}, {self.solver}-{self.steps}"


@dataclass
class Row:
    """Results of one setting.

    Attributes:
        setting: Which.
        sets: Scores by test set.
        difference: Of every item's log-mel distance in dB to that of the setting that all are compared with:
            below 0 is better.
        error: Relative L2 error of the latent to the converged trajectory, over items; None: not measured.
    """

    setting: OperatingPoint
    sets: dict[str, Scores] = field(default_factory=dict)
    difference: Estimate | None = None
    error: Estimate | None = None


def measure(
    settings: Sequence[OperatingPoint],
    contestants: Sequence[Contestant],
    bundle: str | None,
    sets: Mapping[str, Sequence[Item]],
    threads: int,
    seed: int,
    converged_steps: int,
    converged_items: int,
) -> list[Row]:
    """Scores and errors of every setting; the first is what the others are compared with.

    Raises:
        FlowSepError: If a backend or an audio file fails.
    """
    rows = [Row(setting) for setting in settings]
    few = [item for items in sets.values() for item in items][:converged_items]
    converged = None
    for contestant in contestants:
        precision: Any = contestant.precision
        separator = Separator.load(bundle, contestant.backend, precision, threads)
        begun = starts(separator.pipeline, few, seed)
        if few and converged is None:
            say(f"{contestant.name}: {converged_steps} steps of {len(few)} queries")
            converged = ends(separator.pipeline, begun, converged_steps, "euler")
        for row in rows:
            setting = row.setting
            if setting.contestant != contestant.name:
                continue
            say(f"{setting}: {setting.evaluations} evaluations")
            for name, items in sets.items():
                row.sets[name] = evaluate(
                    separator, items, ceiling=False, steps=setting.steps, solver=setting.solver, seed=seed
                )
            if converged is not None:
                latents = ends(separator.pipeline, begun, setting.steps, setting.solver)
                errors = np.array(relative_errors(converged, latents))
                row.error = Resamples(len(errors), seed).mean(errors)
    for row in rows:
        row.difference = difference(rows[0], row, seed)
    return rows


def difference(reference: Row, row: Row, seed: int) -> Estimate | None:
    """Item by item, with its interval: far narrower than the difference of two means, as the items' own
    difficulty falls out. None where no query names a sound that is there."""
    ours, theirs = (_distances(together(each.sets.values())) for each in (row, reference))
    return Resamples(len(ours), seed).mean(ours - theirs)


def _distances(scores: Scores) -> NDArray[np.float64]:
    return np.array([found.values.get(DISTANCE, np.nan) for found in scores.scored], np.float64)
