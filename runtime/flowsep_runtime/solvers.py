"""Solvers of dx/dt = v(x, t) from t = 0 (noise) to t = 1 (sound), docs/model.md#solver.

A solver is a row of `SOLVERS`: the times at which it evaluates the velocity, known before the loop so that
all time features are computed together, and the weights with which every evaluation and the one before it are
added to the state. That is all a loop needs, on the host and on a device. `euler` is the published one.
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
    """A method of integration.

    Attributes:
        times: `times(steps)` gives the evaluation times [evaluations].
        weights: `weights(steps)` gives, for every evaluation, the weights of its velocity and of the one
            before, [evaluations, 2]; nothing is before the first, whose second weight is 0.
        only_steps: The one number of steps that it takes; None: any.
        starts_from_noise: False if it starts from zeros.
    """

    times: Callable[[int], Floats]
    weights: Callable[[int], Floats]
    only_steps: int | None = None
    starts_from_noise: bool = True

    def start(self, noise: Floats) -> Floats:
        """The state at t = 0."""
        return noise if self.starts_from_noise else np.zeros_like(noise)

    def integrate(self, velocity: Velocity, noise: Floats, steps: int) -> Iterator[Floats]:
        """Yields the state after each step."""
        weights = self.weights(steps)
        each = len(weights) // steps
        x = before = self.start(noise)
        for k, (now, last) in enumerate(weights):
            v = velocity(x, k)
            x = x + now * v
            if last:
                x = x + last * before
            before = v
            if (k + 1) % each == 0:
                yield x


def _euler_on(warp: Callable[[Times], Times]) -> Solver:
    def times(steps: int) -> Floats:
        return _grid(steps, warp)[:-1].astype(np.float32)

    def weights(steps: int) -> Floats:
        return _pairs(np.diff(_grid(steps, warp)), np.zeros(steps))

    return Solver(times, weights)


def _grid(steps: int, warp: Callable[[Times], Times]) -> Times:
    """Times t_0 = 0 ... t_N = 1 at which the steps begin and end, [steps + 1]."""
    return warp(np.arange(steps + 1) / steps)


def _pairs(now: Times, last: Times) -> Floats:
    return np.stack([now, last], axis=1).astype(np.float32)


def _uniform_times(steps: int) -> Floats:
    return (np.arange(steps) / steps).astype(np.float32)


def _midpoint_times(steps: int) -> Floats:
    return (np.arange(2 * steps) / (2 * steps)).astype(np.float32)


def _midpoint_weights(steps: int) -> Floats:
    """Half a step there; then that half back, and a whole one with the velocity found."""
    return np.tile(_pairs(np.array([0.5, 1]) / steps, np.array([0, -0.5]) / steps), (steps, 1))


def _ab2_weights(steps: int) -> Floats:
    """The line through the last two velocities, integrated; the first step is Euler's."""
    now, last = np.full(steps, 1.5), np.full(steps, -0.5)
    now[0], last[0] = 1, 0
    return _pairs(now / steps, last / steps)


#: Grids of Euler's method: where the steps end, of their equal shares in [0, 1].
_EULER: Mapping[str, Callable[[Times], Times]] = {"euler": lambda u: u, "euler-start": lambda u: u**2}

SOLVERS: Mapping[str, Solver] = {
    **{name: _euler_on(warp) for name, warp in _EULER.items()},
    "midpoint": Solver(_midpoint_times, _midpoint_weights),
    "ab2": Solver(_uniform_times, _ab2_weights),
    # The mean of all targets. The flow is trained on x_1 - x_0, and at t = 0 the state says nothing of x_1:
    # with the noise at its own mean, 0, the velocity is the mean of x_1.
    "mean": Solver(
        lambda steps: np.zeros(1, np.float32),
        lambda steps: _pairs(np.ones(1), np.zeros(1)),
        only_steps=1,
        starts_from_noise=False,
    ),
}


def guided(velocity: Floats, scale: Floats | np.float32) -> Floats:
    """Guidance: `unwanted + scale (wanted - unwanted)`.

    Args:
        velocity: [2 N, ...], N rows of what is wanted and as many of what is not.
        scale: A number, or one a row, [N, 1, ...].

    Returns:
        [N, ...].
    """
    wanted, unwanted = np.split(velocity, 2)
    return unwanted + scale * (wanted - unwanted)


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
