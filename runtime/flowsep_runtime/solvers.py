"""Solvers of dx/dt = v(x, t) from t = 0 (noise) to t = 1 (sound), docs/model.md#solver.

A solver is a row of `SOLVERS`: the times at which it evaluates the velocity, known before the loop so that
all time features are computed together, and the integration itself. `euler` is the published one.
`euler-start` takes its short steps near the noise, where it is decided which sound comes out. `midpoint` asks
twice a step. `ab2` is Adams and Bashforth's method of two steps (Hairer, Norsett, Wanner, "Solving ordinary
differential equations I", sections II.1 and III.1). `mean` does not integrate: one evaluation gives the mean
of all targets that fit the mixture and the query. Methods that scored no better for their evaluations were
taken out (docs/benchmarks.md#choice-of-solvers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowsep_runtime.arrays import Floats
from flowsep_runtime.errors import OptionError

#: `velocity(x, k)`: the velocity of x at the k-th time of the schedule.
Velocity: TypeAlias = Callable[[Floats, int], Floats]
Times: TypeAlias = NDArray[np.float64]


class Solver(NamedTuple):
    """`times(steps)` gives the evaluation times [evaluations]; `integrate(velocity, x, steps)` yields the
    state after each step.

    Attributes:
        only_steps: The one number of steps that it takes; None: any.
    """

    times: Callable[[int], Floats]
    integrate: Callable[[Velocity, Floats, int], Iterator[Floats]]
    only_steps: int | None = None


def _euler_on(warp: Callable[[Times], Times]) -> Solver:
    def times(steps: int) -> Floats:
        return _grid(steps, warp)[:-1].astype(np.float32)

    def integrate(velocity: Velocity, x: Floats, steps: int) -> Iterator[Floats]:
        for k, dt in enumerate(np.diff(_grid(steps, warp))):
            x = x + np.float32(dt) * velocity(x, k)
            yield x

    return Solver(times, integrate)


def _grid(steps: int, warp: Callable[[Times], Times]) -> Times:
    """Times t_0 = 0 ... t_N = 1 at which the steps begin and end, [steps + 1]."""
    return warp(np.arange(steps + 1) / steps)


def _uniform_times(steps: int) -> Floats:
    return (np.arange(steps) / steps).astype(np.float32)


def _midpoint_times(steps: int) -> Floats:
    return (np.arange(2 * steps) / (2 * steps)).astype(np.float32)


def _midpoint(velocity: Velocity, x: Floats, steps: int) -> Iterator[Floats]:
    dt = np.float32(1 / steps)
    for k in range(steps):
        halfway = x + dt / np.float32(2) * velocity(x, 2 * k)
        x = x + dt * velocity(halfway, 2 * k + 1)
        yield x


def _ab2(velocity: Velocity, x: Floats, steps: int) -> Iterator[Floats]:
    """The line through the last two velocities, integrated; the first step is Euler's."""
    dt, before = np.float32(1 / steps), None
    for k in range(steps):
        v = velocity(x, k)
        x = x + dt * (v if before is None else np.float32(1.5) * v - np.float32(0.5) * before)
        before = v
        yield x


def _mean(velocity: Velocity, x: Floats, steps: int) -> Iterator[Floats]:
    """The mean of all targets. The flow is trained on x_1 - x_0, and at t = 0 the state says nothing of x_1:
    with the noise at its own mean, 0, the velocity is the mean of x_1."""
    yield velocity(np.zeros_like(x), 0)


#: Grids of Euler's method: where the steps end, of their equal shares in [0, 1].
_EULER: Mapping[str, Callable[[Times], Times]] = {"euler": lambda u: u, "euler-start": lambda u: u**2}

SOLVERS: Mapping[str, Solver] = {
    **{name: _euler_on(warp) for name, warp in _EULER.items()},
    "midpoint": Solver(_midpoint_times, _midpoint),
    "ab2": Solver(_uniform_times, _ab2),
    "mean": Solver(lambda steps: np.zeros(1, np.float32), _mean, only_steps=1),
}


def euler_steps(solver: str, steps: int) -> Floats | None:
    """The lengths [steps] of the steps of Euler's method on a solver's grid, for a loop outside this module;
    None if the solver is another method."""
    if solver not in _EULER:
        return None
    return np.diff(_grid(steps, _EULER[solver])).astype(np.float32)


def solver_named(name: str) -> Solver:
    """The row of that name.

    Raises:
        OptionError: If there is none.
    """
    try:
        return SOLVERS[name]
    except KeyError:
        raise OptionError(f"There is no solver {name!r}: choose from {', '.join(SOLVERS)}.") from None


def solver_taking(name: str, steps: int) -> Solver:
    """The row of that name, if it takes that many steps.

    Raises:
        OptionError: If there is none, or it does not.
    """
    solver = solver_named(name)
    if steps < 1:
        raise OptionError(f"steps must be 1 or more and not {steps}.")
    if solver.only_steps not in (None, steps):
        raise OptionError(
            f"The solver {name} takes {solver.only_steps} step and not {steps}: leave steps out."
        )
    return solver
