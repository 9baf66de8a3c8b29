"""Statistics of repeated measurements: median, range, and a test for disturbances."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

#: 95th percentile over median (or median over 5th) from which on something else was running: the number is
#: not printed.
DISTURBED_ABOVE = 1.25

Key = TypeVar("Key")


@dataclass(frozen=True)
class Summary:
    """Measurements of one thing, in the order in which they were taken, none below 0."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a summary needs at least one value")

    @property
    def median(self) -> float:
        """Half of the values lie below it."""
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """The 95th percentile, between two values by linear interpolation."""
        return float(np.percentile(self.values, 95))

    @property
    def low(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.values)

    @property
    def is_disturbed(self) -> bool:
        """True if the values lie too far apart for a meaningful median."""
        p5 = float(np.percentile(self.values, 5))
        return self.p95 > DISTURBED_ABOVE * self.median or self.median > DISTURBED_ABOVE * p5

    def plain(self) -> dict[str, object]:
        """Values for JSON: always all of them, and a median unless the run was disturbed."""
        shown = not self.is_disturbed
        return {
            "median": self.median if shown else None,
            "p95": self.p95 if shown else None,
            "low": self.low,
            "high": self.high,
            "disturbed": self.is_disturbed,
            "values": list(self.values),
        }


def ratio(numerators: Summary, denominators: Summary) -> Summary:
    """The ratio in every round: a drift from round to round is in both and cancels.

    Raises:
        ValueError: If one has more rounds than the other.
    """
    pairs = zip(numerators.values, denominators.values, strict=True)
    return Summary(tuple(above / below for above, below in pairs))


def quietest(rounds: Sequence[Mapping[Key, float]], count: int) -> list[int]:
    """Numbers of the `count` rounds that agree best, in their order.

    As long as there are more, the round with the value that is farthest from its median, by their ratio, is
    dropped, whichever side it lies on. A round goes as a whole, so that ratios are still of one round.

    Args:
        rounds: Values by name, none below 0; all rounds have the same names.
        count: Rounds to keep.
    """
    kept = list(range(len(rounds)))
    while len(kept) > count:
        medians = {name: statistics.median(rounds[k][name] for k in kept) for name in rounds[0]}
        apart = {
            k: max((_apart(rounds[k][name], medians[name]) for name in medians), default=1.0) for k in kept
        }
        kept.remove(max(kept, key=lambda k: apart[k]))
    return kept


def _apart(a: float, b: float) -> float:
    """The larger over the smaller; infinite if only one is 0."""
    low, high = min(a, b), max(a, b)
    return high / low if low > 0 else (1.0 if high == 0 else float("inf"))


def weighted_sum(parts: Sequence[tuple[float, Summary]]) -> Summary:
    """Weighted sum of parts, round by round: a whole clip from its stages.

    Raises:
        ValueError: If the parts have different numbers of rounds, or there is none.
    """
    if len({len(part.values) for _, part in parts}) != 1:
        raise ValueError("parts of a sum need the same number of rounds")
    rounds = range(len(parts[0][1].values))
    return Summary(tuple(sum(times * part.values[k] for times, part in parts) for k in rounds))
