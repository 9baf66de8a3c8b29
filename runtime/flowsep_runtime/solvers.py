"""Solvers of dx/dt = v(x, t) from t = 0 (noise) to t = 1 (sound), SPEC section 5.

A solver is a row of `SOLVERS`: the times at which it asks for the velocity, known before the loop starts so
that the time features of the whole schedule can be computed in one go, and the integration itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from .arrays import Floats
from .errors import OptionError

#: `velocity(x, k)`: the velocity of x at the k-th time of the schedule.
Velocity: TypeAlias = Callable[[Floats, int], Floats]


class Solver(NamedTuple):
    """`times(steps)` gives the evaluation times [evaluations]; `integrate(velocity, x, steps)` yields the
    state after each step."""

    times: Callable[[int], Floats]
    integrate: Callable[[Velocity, Floats, int], Iterator[Floats]]


def _euler_times(steps: int) -> Floats:
    return (np.arange(steps) / steps).astype(np.float32)


def _euler(velocity: Velocity, x: Floats, steps: int) -> Iterator[Floats]:
    dt = np.float32(1 / steps)
    for k in range(steps):
        x = x + dt * velocity(x, k)
        yield x


SOLVERS: Mapping[str, Solver] = {"euler": Solver(_euler_times, _euler)}


def solver_named(name: str) -> Solver:
    """The row of that name.

    Raises:
        OptionError: If there is none.
    """
    try:
        return SOLVERS[name]
    except KeyError:
        raise OptionError(f"There is no solver {name!r}: choose from {', '.join(SOLVERS)}.") from None
