"""Solvers of dx/dt = v(x, t) from noise at t = 0 to the target at t = 1 (docs/model.md#solver)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def euler(velocity: Velocity, noise: Tensor, steps: int) -> Tensor:
    """`steps` uniform Euler steps: the published solver."""
    x = noise
    for n in range(steps):
        x = x + velocity(x, n / steps) / steps
    return x


SOLVERS: dict[str, Callable[[Velocity, Tensor, int], Tensor]] = {"euler": euler}
