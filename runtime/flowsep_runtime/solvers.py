"""Solvers of dx/dt = v(x, t) from t = 0 (noise) to t = 1 (sound), docs/model.md#solver.

A solver is a row of `SOLVERS`: the times at which it evaluates the velocity, known before the loop so that
all time features are computed together, and the integration itself. The rows are every method on every grid
of times (`euler` is the published one), and `mean`, which does not integrate: one evaluation gives the mean
of all targets that fit the mixture and the query.

Methods: Euler, midpoint, Heun (the explicit ones of Hairer, Norsett, Wanner, "Solving ordinary differential
equations I", sections II.1 and III.1) and Adams-Bashforth of two and three steps, whose weights follow from
the grid. Midpoint and Heun ask twice a step, the others once.
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


class _Method(NamedTuple):
    """The same two, of the grid t_0 = 0 ... t_N = 1 [steps + 1]."""

    times: Callable[[Times], Times]
    integrate: Callable[[Velocity, Floats, Times], Iterator[Floats]]


#: Where the steps end, of their equal shares u in [0, 1]. "start" takes its short steps near the noise, where
#: it is decided which sound comes out, "end" near the sound.
_GRIDS: Mapping[str, Callable[[Times], Times]] = {
    "": lambda u: u,
    "-start": lambda u: u**2,
    "-end": lambda u: 1 - (1 - u) ** 2,
}


def _adams_bashforth(order: int) -> _Method:
    """The polynomial through the last `order` velocities, integrated; the first steps have fewer. Order 1 is
    Euler's method."""

    def integrate(velocity: Velocity, x: Floats, grid: Times) -> Iterator[Floats]:
        velocities: list[Floats] = []
        for k in range(len(grid) - 1):
            velocities = [*velocities, velocity(x, k)][-order:]
            weights = _weights(grid[k + 1 - len(velocities) : k + 1], grid[k], grid[k + 1])
            for weight, v in zip(weights, velocities, strict=True):
                x = x + np.float32(weight) * v
            yield x

    return _Method(lambda grid: grid[:-1], integrate)


def _weights(nodes: Times, begin: float, end: float) -> list[float]:
    """Weights of the values at the nodes, in the integral of the polynomial through them."""
    weights = []
    for node in nodes:
        others = nodes[nodes != node]
        basis = np.polynomial.Polynomial.fromroots(others) if len(others) else np.polynomial.Polynomial([1.0])
        integral = basis.integ()
        weights.append(float((integral(end) - integral(begin)) / np.prod(node - others)))
    return weights


def _midpoint(velocity: Velocity, x: Floats, grid: Times) -> Iterator[Floats]:
    for k, dt in enumerate(np.diff(grid).astype(np.float32)):
        halfway = x + dt / np.float32(2) * velocity(x, 2 * k)
        x = x + dt * velocity(halfway, 2 * k + 1)
        yield x


def _heun(velocity: Velocity, x: Floats, grid: Times) -> Iterator[Floats]:
    for k, dt in enumerate(np.diff(grid).astype(np.float32)):
        first = velocity(x, 2 * k)
        second = velocity(x + dt * first, 2 * k + 1)
        x = x + dt / np.float32(2) * (first + second)
        yield x


def _pairs(first: Times, second: Times) -> Times:
    return np.stack([first, second], axis=1).ravel()


_METHODS: Mapping[str, _Method] = {
    "euler": _adams_bashforth(1),
    "midpoint": _Method(lambda grid: _pairs(grid[:-1], (grid[:-1] + grid[1:]) / 2), _midpoint),
    "heun": _Method(lambda grid: _pairs(grid[:-1], grid[1:]), _heun),
    "ab2": _adams_bashforth(2),
    "ab3": _adams_bashforth(3),
}


def _mean(velocity: Velocity, x: Floats, steps: int) -> Iterator[Floats]:
    """The mean of all targets. The flow is trained on x_1 - x_0, and at t = 0 the state says nothing of x_1:
    with the noise at its own mean, 0, the velocity is the mean of x_1."""
    yield velocity(np.zeros_like(x), 0)


def _on_grid(method: _Method, warp: Callable[[Times], Times]) -> Solver:
    def grid(steps: int) -> Times:
        return warp(np.arange(steps + 1) / steps)

    return Solver(
        lambda steps: method.times(grid(steps)).astype(np.float32),
        lambda velocity, x, steps: method.integrate(velocity, x, grid(steps)),
    )


SOLVERS: Mapping[str, Solver] = {
    method + suffix: _on_grid(_METHODS[method], warp)
    for suffix, warp in _GRIDS.items()
    for method in _METHODS
} | {"mean": Solver(lambda steps: np.zeros(1, np.float32), _mean, only_steps=1)}


def euler_steps(solver: str, steps: int) -> Floats | None:
    """The lengths [steps] of the steps of Euler's method on a solver's grid, for a loop outside this module;
    None if the solver is another method."""
    for suffix, warp in _GRIDS.items():
        if solver == f"euler{suffix}":
            return np.diff(warp(np.arange(steps + 1) / steps)).astype(np.float32)
    return None


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
