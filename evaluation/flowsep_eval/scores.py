"""Scores of a test set: per query, per class and overall."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from flowsep_eval.bootstrap import Estimate, Resamples, Values
from flowsep_eval.manifest import Item
from flowsep_eval.mel import Floats
from flowsep_eval.metrics import frechet_distance

#: Estimates by metric; without the metrics that apply to no row.
Summary = Mapping[str, Estimate]

#: Ratio of the mean log-mel distance after to that before.
RATIO = "log_mel_ratio"


@dataclass(frozen=True)
class ItemScore:
    """Scores of one query.

    Attributes:
        values: By metric, of those that apply. A name alone is the output's; `…_mixture` is what the mixture
            itself scores, `…_ceiling` the target through autoencoder and vocoder, `…_improvement` output
            minus mixture.
        seconds: Of the separation, without the time that loading took.
        seed: Of its noise: `flowsep-run --seed` makes the same output.
        failed: Why there was no output (it is scored as silence).
    """

    item: Item
    values: Mapping[str, float]
    seconds: float
    seed: int
    failed: str | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of a list of queries.

    Attributes:
        scored: One a query, in the order of the items.
        seed: Of the bootstrap.
        embeddings: CLAP's, `[N, D]` of output, target and mixture for the rows with a target; for the FAD.
    """

    scored: list[ItemScore]
    seed: int = 0
    embeddings: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Median time of a separation."""
        return statistics.median(score.seconds for score in self.scored)

    @property
    def failed(self) -> int:
        """Number of failed separations."""
        return sum(score.failed is not None for score in self.scored)

    def overall(self) -> Summary:
        """Over all queries; with CLAP's embeddings also the FAD, which has no interval."""
        return {**summary(self.scored, self.seed), **self._frechet()}

    def by_label(self) -> dict[str, Summary]:
        """Per class, sorted."""
        return self._by(lambda item: item.label)

    def by_query(self) -> dict[str, Summary]:
        """Per query, sorted."""
        return self._by(lambda item: item.query)

    def _by(self, name: Callable[[Item], str]) -> dict[str, Summary]:
        groups: dict[str, list[ItemScore]] = {}
        for score in self.scored:
            groups.setdefault(name(score.item), []).append(score)
        return {key: summary(groups[key], self.seed) for key in sorted(groups)}

    def _frechet(self) -> Summary:
        wanted = self.embeddings.get("target")
        if wanted is None or len(wanted) < 2:
            return {}
        return {
            name: Estimate(frechet_distance(self.embeddings[key], wanted), None, None, len(wanted))
            for name, key in (("fad", "output"), ("fad_mixture", "mixture"))
        }


def together(parts: Iterable[Scores]) -> Scores:
    """Join several sets."""
    parts = list(parts)
    keys = set().union(*(part.embeddings for part in parts))
    embeddings = {
        key: np.concatenate([part.embeddings[key] for part in parts if key in part.embeddings])
        for key in keys
    }
    return Scores([score for part in parts for score in part.scored], parts[0].seed, embeddings)


def summary(scored: list[ItemScore], seed: int) -> Summary:
    """Means over queries with their intervals; every metric from the same resamples."""
    names = sorted({name for score in scored for name in score.values})
    resamples = Resamples(len(scored), seed)
    columns: dict[str, Values] = {
        name: np.array([score.values.get(name, np.nan) for score in scored], np.float64) for name in names
    }
    estimates = {name: resamples.mean(column) for name, column in columns.items()}
    if "log_mel_distance" in columns:
        estimates[RATIO] = resamples.ratio(columns["log_mel_distance"], columns["log_mel_distance_mixture"])
    return {name: estimate for name, estimate in estimates.items() if estimate is not None}
