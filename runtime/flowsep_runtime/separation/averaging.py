"""The weighted mean of values that come window by window."""

from __future__ import annotations

import numpy as np

from flowsep_runtime.arrays import Floats


class WindowMean:
    """A track of values [n, C, ...], put together from windows that overlap."""

    def __init__(self, shape: tuple[int, ...], silence: float) -> None:
        """
        Args:
            shape: Of one value, [C, ...].
            silence: The value where no window has a weight.
        """
        self._sums = np.zeros((0, *shape), np.float32)
        self._cover = np.zeros((0, shape[0]), np.float32)
        self._silence = np.float32(silence)
        self.taken = 0
        """Values that were taken."""

    def add(self, start: int, values: Floats, weights: Floats) -> None:
        """A window's values [n, C, ...] from `start` on, and their weights [n, C].

        A recording's last window may begin before what was taken; that part is ignored.
        """
        skipped = max(0, self.taken - start)
        values, weights, begin = values[skipped:], weights[skipped:], start + skipped - self.taken
        missing = max(0, begin + len(values) - len(self._sums))
        axes = self._sums.ndim - 1
        self._sums = np.pad(self._sums, ((0, missing), *[(0, 0)] * axes))
        self._cover = np.pad(self._cover, ((0, missing), (0, 0)))
        span = slice(begin, begin + len(values))
        self._cover[span] += weights
        self._sums[span] += weights.reshape(*weights.shape, *[1] * (axes - 1)) * values

    def take(self, end: int) -> Floats:
        """The mean [n, C, ...] from the last that was taken up to `end`."""
        count = end - self.taken
        cover = self._cover[:count].reshape(-1, self._cover.shape[1], *[1] * (self._sums.ndim - 2))
        mean = self._sums[:count] / np.where(cover > 0, cover, np.float32(1))
        known = np.where(cover > 0, mean, self._silence)
        self._sums, self._cover, self.taken = self._sums[count:].copy(), self._cover[count:].copy(), end
        return known
