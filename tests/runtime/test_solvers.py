"""Every solver ends where the flow ends, at its order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowsep_runtime import OptionError
from flowsep_runtime.solvers import SOLVERS, Solver, solver_taking

ORDERS = {"euler": 1, "euler-start": 1, "midpoint": 2, "ab2": 2}
EVALUATIONS = {"midpoint": 2}
NAMES = [name for name, solver in SOLVERS.items() if solver.only_steps is None]


STARTS = np.array([1.0, -2.0, 0.3])
FREQUENCIES = np.array([3.0, 1.0, 5.0])


def error(solver: Solver, steps: int) -> float:
    """Error for dx/dt = x + cos(w t), curves in time and space: errors of some can vanish, of all cannot."""
    times = solver.times(steps).astype(np.float64)

    def velocity(x: np.ndarray[tuple[int, ...], np.dtype[np.float32]], k: int) -> object:
        return x + np.cos(FREQUENCIES * times[k])

    # a float64 state shows the order beyond float32's rounding
    *_, last = solver.integrate(velocity, STARTS, steps)  # type: ignore[arg-type]
    w = FREQUENCIES
    exact = (STARTS + 1 / (1 + w**2)) * np.e + (w * np.sin(w) - np.cos(w)) / (1 + w**2)
    return float(np.linalg.norm(last - exact))


def test_the_mean_is_the_velocity_of_no_noise_at_the_start() -> None:
    asked: list[tuple[float, int]] = []

    def velocity(
        x: np.ndarray[tuple[int, ...], np.dtype[np.float32]], k: int
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        asked.append((float(np.abs(x).max()), k))
        return x + np.float32(7)

    solver = solver_taking("mean", 1)
    (state,) = solver.integrate(velocity, np.full(3, 5, np.float32), 1)
    assert state.tolist() == [7, 7, 7]
    assert asked == [(0, 0)] and solver.times(1).tolist() == [0]
    with pytest.raises(OptionError, match="takes 1 step"):
        solver_taking("mean", 2)


@pytest.mark.parametrize("name", NAMES)
def test_the_error_falls_with_the_order_of_the_method(name: str) -> None:
    few, many = (error(SOLVERS[name], steps) for steps in (20, 80))
    assert np.log2(few / many) / 2 > ORDERS[name] - 0.3


@given(name=st.sampled_from(NAMES), steps=st.integers(1, 30))
def test_a_constant_velocity_is_followed_exactly(name: str, steps: int) -> None:
    start = np.zeros(3, np.float32)
    states = list(SOLVERS[name].integrate(lambda x, k: np.full_like(x, 2), start, steps))
    assert len(states) == steps
    assert states[-1].dtype == np.float32
    assert np.allclose(states[-1], 2, rtol=1e-6)
    assert not start.any()


@given(name=st.sampled_from(NAMES), steps=st.integers(1, 30))
def test_times_lie_in_the_unit_interval_and_every_one_is_asked_once_in_order(name: str, steps: int) -> None:
    solver = SOLVERS[name]
    times = solver.times(steps)
    assert times.dtype == np.float32
    assert len(times) == steps * EVALUATIONS.get(name, 1)
    assert times[0] == 0 and times.min() >= 0 and times.max() <= 1
    asked: list[int] = []

    def velocity(
        x: np.ndarray[tuple[int, ...], np.dtype[np.float32]], k: int
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        asked.append(k)
        return x

    list(solver.integrate(velocity, np.ones(1, np.float32), steps))
    assert asked == list(range(len(times)))


def test_short_steps_lie_near_the_noise() -> None:
    assert (np.diff(SOLVERS["euler-start"].times(6), n=2) > 0).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("euler", [[1 / 3, 0]] * 3),
        ("euler-start", [[1 / 9, 0], [3 / 9, 0], [5 / 9, 0]]),
        ("ab2", [[1 / 3, 0], [1 / 2, -1 / 6], [1 / 2, -1 / 6]]),
        ("midpoint", [[1 / 6, 0], [1 / 3, -1 / 6]] * 3),
    ],
)
def test_the_weights_are_those_of_the_method(name: str, expected: list[list[float]]) -> None:
    """A loop on a device has them and nothing else of the method."""
    weights = SOLVERS[name].weights(3)
    assert weights.dtype == np.float32
    assert np.allclose(weights, expected, atol=1e-7)


@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_is_asked_of_a_velocity_before_the_first(name: str) -> None:
    assert SOLVERS[name].weights(SOLVERS[name].only_steps or 4)[0, 1] == 0
