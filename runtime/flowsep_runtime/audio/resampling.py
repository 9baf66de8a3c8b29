"""Another sample rate for audio that comes in blocks."""

from __future__ import annotations

import numpy as np

from flowsep_runtime.arrays import Floats


class BlockResampler:
    """Gives block by block what `audio.resampled` gives of the whole: soxr, linear phase, no delay, and in
    all exactly as many samples as are asked for at the end."""

    def __init__(self, rate: float, new_rate: float, channels: int) -> None:
        self.given = 0  # samples so far
        self._channels = channels
        self._stream = None
        if rate != new_rate:
            import soxr

            self._stream = soxr.ResampleStream(rate, new_rate, channels)

    def push(self, block: Floats) -> Floats:
        """The next samples [n, channels] at the old rate -> those at the new one that are known by now."""
        if self._stream is not None and len(block):
            block = self._stream.resample_chunk(np.ascontiguousarray(block))
        self.given += len(block)
        return block

    def finish(self, length: int) -> Floats:
        """The remaining samples, cut or padded with zeros to `length` in all; fewer must have been given."""
        missing = np.zeros((max(0, length - self.given), self._channels), np.float32)
        if self._stream is not None:
            rest = self._stream.resample_chunk(np.zeros((0, self._channels), np.float32), last=True)
            count = min(len(rest), len(missing))
            missing[:count] = rest[:count]
        self.given += len(missing)
        return missing


def resampled(samples: Floats, rate: float, new_rate: float, length: int) -> Floats:
    """Samples [samples, channels] at another rate (soxr, linear phase, no delay), cut or zero-padded to
    `length`."""
    if rate != new_rate:
        import soxr

        samples = soxr.resample(np.ascontiguousarray(samples), rate, new_rate)
    result = np.zeros((length, samples.shape[1]), np.float32)
    result[: len(samples)] = samples[:length]
    return result
