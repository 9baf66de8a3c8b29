from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.latency.growth import best, linear, power

X = [1.0, 2.0, 4.0, 8.0, 16.0]
coefficients = st.floats(0.01, 100)


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_points_on_a_line_give_the_line(a: float, b: float) -> None:
    law = linear(X, [a * x + b for x in X])
    assert (law.a, law.b) == pytest.approx((a, b), abs=1e-6)
    assert law.at(3.0) == pytest.approx(3 * a + b, abs=1e-6)


@given(coefficients, st.floats(-2, 2))
def test_points_on_a_power_law_give_its_exponent(a: float, b: float) -> None:
    law = power(X, [a * x**b for x in X])
    assert (law.a, law.b) == pytest.approx((a, b), rel=1e-6, abs=1e-9)
    assert law.r_squared == pytest.approx(1.0) or abs(b) < 0.01


def test_the_better_law_is_taken() -> None:
    line, parabola = [3 * x + 50 for x in X], [0.1 * x**2 for x in X]
    assert (found := best(X, line)) is not None and found.law == "linear"
    assert (found := best(X, parabola)) is not None and found.law == "power"
    assert found.b == pytest.approx(2.0)


def test_no_line_explains_more_than_the_fitted_one() -> None:
    y = np.random.default_rng(0).uniform(1, 2, len(X))
    law = linear(X, list(y))
    left = float(np.sum((y - [law.at(x) for x in X]) ** 2))
    for a, b in ((0.01, 0.0), (-0.01, 0.0), (0.0, 0.01), (0.0, -0.01)):
        moved = float(np.sum((y - [(law.a + a) * x + law.b + b for x in X]) ** 2))
        assert moved > left


def test_a_constant_is_explained_by_every_law() -> None:
    assert linear(X, [0.1] * len(X)).r_squared == power(X, [0.1] * len(X)).r_squared == 1.0


def test_two_points_fit_no_law() -> None:
    assert best([1.0, 2.0], [1.0, 2.0]) is None
    assert best([1.0, 1.0, 2.0], [1.0, 1.1, 2.0]) is None


def test_points_that_no_law_can_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="different x"):
        linear([1.0, 1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="positive"):
        power([0.0, 1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="its y"):
        linear([1.0], [])
