"""Peak performance of a device, measured with a large matrix product and a large copy in PyTorch.

No program reaches the number of a data sheet; these two are reached by these operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

#: Side of the matrices, and bytes of the copy: many times the size of a GPU's cache.
SIDE, COPIED = 8192, 1 << 30

WARM_UPS, CALLS, TRIES = 3, 10, 8


@dataclass(frozen=True)
class Peak:
    """Operations a second in half precision (a multiplication and an addition are two), and bytes a second
    read and written."""

    operations: float
    bandwidth: float


def measured(device: str = "cuda", side: int = SIDE, copied: int = COPIED) -> Peak:
    """The best of several tries, each of several calls in a row.

    Args:
        device: The device's name in PyTorch.
        side: Rows and columns of the square matrices.
        copied: Bytes to copy.
    """
    import torch

    def best(call: Callable[[], torch.Tensor]) -> float:
        """Seconds of a call."""
        for _ in range(WARM_UPS):
            call()
        found = []
        for _ in range(TRIES):
            wait(device)
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            wait(device)
            found.append((time.perf_counter() - start) / CALLS)
        return min(found)

    # random numbers: of zeros or ones a GPU draws less power, and keeps a clock that no model sees
    left, right, product = (torch.randn(side, side, device=device).half() for _ in range(3))
    operations = 2 * side**3 / best(lambda: torch.mm(left, right, out=product))
    source, target = (torch.ones(copied, dtype=torch.uint8, device=device) for _ in range(2))
    return Peak(operations, 2 * copied / best(lambda: target.copy_(source)))


def wait(device: str) -> None:
    """Wait until the device has finished; a CPU always has."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
