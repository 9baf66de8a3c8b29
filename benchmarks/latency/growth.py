"""Growth of one quantity with another: a line or a power law, by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

#: Any two points lie on a line and on a power law: a fit to fewer than three says nothing.
LEAST_POINTS = 3


@dataclass(frozen=True)
class Growth:
    """A fitted law: linear y = a·x + b, or power y = a·x^b; `r_squared` is the share of the spread of y
    that it explains, on y's own scale for both laws."""

    law: Literal["linear", "power"]
    a: float
    b: float
    r_squared: float

    def at(self, x: float) -> float:
        """The law's value."""
        return self.a * x + self.b if self.law == "linear" else float(self.a * x**self.b)

    def __str__(self) -> str:
        if self.law == "linear":
            sign = "+" if self.b >= 0 else "−"
            formula = f"{self.a:.3g}·x {sign} {abs(self.b):.3g}"
        else:
            formula = f"{self.a:.3g}·x^{self.b:.2f}"
        return f"{formula} ({self.law}, R² {self.r_squared:.3f})".replace("-", "−")


def linear(x: Sequence[float], y: Sequence[float]) -> Growth:
    """The line through points with the least squared vertical distances.

    Raises:
        ValueError: If all x are the same.
    """
    xs, ys = _arrays(x, y)
    spread = float(np.sum((xs - xs.mean()) ** 2))
    if spread == 0:
        raise ValueError("a line needs points at two different x")
    a = float(np.sum((xs - xs.mean()) * (ys - ys.mean()))) / spread
    b = float(ys.mean() - a * xs.mean())
    return Growth("linear", a, b, _r_squared(ys, a * xs + b))


def power(x: Sequence[float], y: Sequence[float]) -> Growth:
    """The power law through points, a line on logarithmic scales.

    Raises:
        ValueError: If a number is not positive, or all x are the same.
    """
    xs, ys = _arrays(x, y)
    if (xs <= 0).any() or (ys <= 0).any():
        raise ValueError("a power law needs positive numbers")
    line = linear(list(np.log(xs)), list(np.log(ys)))
    a, b = float(np.exp(line.b)), line.a
    return Growth("power", a, b, _r_squared(ys, a * xs**b))


def best(x: Sequence[float], y: Sequence[float]) -> Growth | None:
    """Whichever law explains more; None where there are fewer than three different x."""
    if len(set(x)) < LEAST_POINTS:
        return None
    laws = [linear(x, y)]
    if min(x) > 0 and min(y) > 0:
        laws.append(power(x, y))
    return max(laws, key=lambda law: law.r_squared)


def _arrays(x: Sequence[float], y: Sequence[float]) -> tuple[Vector, Vector]:
    if len(x) != len(y) or not x:
        raise ValueError("every x needs its y")
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def _r_squared(y: Vector, fitted: Vector) -> float:
    total = float(np.sum((y - y.mean()) ** 2))
    left = float(np.sum((y - fitted) ** 2))
    is_flat = total <= 1e-20 * float(np.sum(y**2))  # nothing but rounding is left to explain
    return 1.0 if is_flat else 1.0 - left / total
