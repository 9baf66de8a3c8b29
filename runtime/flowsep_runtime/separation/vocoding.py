"""The vocoder over a spectrogram of any length, in chunks.

A vocoder is convolutional: a sample depends on the frames around it and on nothing else. Chunks that overlap
by as much on either side give what one run over everything would give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from flowsep_runtime.arrays import Floats
from flowsep_runtime.separation.twins import leaders

#: Mel frames on either side that a sample depends on. The layers of the vocoder (docs/model.md#vocoder) add
#: up to 3 frames in the first convolution, 1.6 + 19.8 at the first level (transposed convolution, AMP block
#: of kernel 11), 1 + 5, .5 + 2.5, .3 + 1.3 and .2 + .7 at those that follow: 36.
REACH = 48


class ChunkedVocoder:
    """Takes spectrograms frame by frame, gives waveforms; every chunk has the length of a clip."""

    def __init__(self, vocode: Callable[[Floats], Floats], length: int, hop: int, silence: float) -> None:
        """
        Args:
            vocode: Log-mel [R, length, 64] -> waveforms [R, hop * length or a little more].
            length: Mel frames a chunk; with less than four times `REACH`, chunks overlap by less than that.
            hop: Samples a frame.
            silence: The log-mel value of silence: a chunk that holds nothing else is silent.
        """
        self._vocode, self._length, self._hop, self._silence = vocode, length, hop, silence
        self._reach = min(REACH, length // 4)
        self._frames: Floats | None = None  # [frames, R, 64], the last that are known
        self._first = 0  # the number of its first
        self._done = 0  # frames that have their samples

    def push(self, log_mels: Floats, is_last: bool) -> Iterator[Floats]:
        """More frames [n, R, 64] -> samples [m, R]. In all there must be as many as in a chunk."""
        known = log_mels if self._frames is None else np.concatenate([self._frames, log_mels])
        end = self._first + len(known)
        while self._done < end:
            first = max(0, self._done - self._reach)
            if first + self._length > end:
                if not is_last:
                    break
                first = end - self._length
            last = first + self._length
            until = end if is_last and last == end else last - self._reach
            chunk = known[first - self._first : last - self._first]
            yield self._samples(chunk, self._done - first, until - first)
            self._done = until
        useless = max(0, self._done - self._length - self._first)
        self._frames, self._first = known[useless:].copy(), self._first + useless

    def _samples(self, chunk: Floats, begin: int, end: int) -> Floats:
        span = slice(begin * self._hop, end * self._hop)
        samples = np.zeros((span.stop - span.start, chunk.shape[1]), np.float32)
        rows = np.flatnonzero((chunk[begin:end] > self._silence).any(axis=(0, 2)))
        if len(rows):
            heard = chunk[:, rows]
            distinct, places = np.unique(leaders(heard, heard[:0, :, 0]), return_inverse=True)
            samples[:, rows] = self._vocode(heard[:, distinct].transpose(1, 0, 2))[places, span].T
        return samples
