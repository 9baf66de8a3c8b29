"""The learning rate of all trainings."""

from __future__ import annotations

import math

import torch


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A short linear warm-up, then a cosine to a twentieth of the rate, over `steps` in all.

    A function of the step alone, so that a training resumed with other `steps` follows the new curve.
    """
    warm_up = min(200, steps // 10 + 1)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        progress = min(1.0, (step - warm_up) / max(steps - warm_up, 1))
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
