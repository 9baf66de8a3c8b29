"""Another sample rate for audio that comes in blocks."""

from __future__ import annotations

import numpy as np

from flowsep_runtime.arrays import Floats
from flowsep_runtime.audio.checks import MOST_CHANNELS


class BlockResampler:
    """Gives block by block what `audio.resampled` gives of the whole: soxr, linear phase, no delay, and in
    all exactly as many samples as are asked for at the end."""

    def __init__(self, rate: float, new_rate: float, channels: int) -> None:
        self.given = 0  # samples so far
        self._channels = channels
        self._groups = _groups(channels)
        self._streams = []
        if rate != new_rate:
            import soxr

            self._streams = [
                soxr.ResampleStream(rate, new_rate, group.stop - group.start) for group in self._groups
            ]

    def push(self, block: Floats) -> Floats:
        """The next samples [n, channels] at the old rate -> those at the new one that are known by now."""
        if self._streams and len(block):
            block = self._resampled(block)
        self.given += len(block)
        return block

    def finish(self, length: int) -> Floats:
        """The remaining samples, cut or padded with zeros to `length` in all; fewer must have been given."""
        missing = np.zeros((max(0, length - self.given), self._channels), np.float32)
        if self._streams:
            rest = self._resampled(missing[:0], is_last=True)
            count = min(len(rest), len(missing))
            missing[:count] = rest[:count]
        self.given += len(missing)
        return missing

    def _resampled(self, block: Floats, is_last: bool = False) -> Floats:
        pieces = [
            stream.resample_chunk(np.ascontiguousarray(block[:, group]), last=is_last)
            for stream, group in zip(self._streams, self._groups, strict=True)
        ]
        return np.concatenate(pieces, axis=1) if len(pieces) > 1 else pieces[0]


def _groups(channels: int) -> list[slice]:
    """Columns that go through soxr together: with tens of thousands it overflows the stack."""
    return [slice(first, min(first + MOST_CHANNELS, channels)) for first in range(0, channels, MOST_CHANNELS)]


def resampled(samples: Floats, rate: float, new_rate: float, length: int) -> Floats:
    """Samples [samples, channels] at another rate (soxr, linear phase, no delay), cut or zero-padded to
    `length`."""
    result = np.zeros((length, samples.shape[1]), np.float32)
    for group in _groups(samples.shape[1]):
        part = samples[:, group]
        if rate != new_rate:
            import soxr

            part = soxr.resample(np.ascontiguousarray(part), rate, new_rate)
        result[: len(part), group] = part[:length]
    return result
