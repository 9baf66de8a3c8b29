"""Recordings longer than the model's clip: where their windows lie, and how windows share what they overlap.

Windows follow each other at a fixed distance, so that a recording can be cut while it is still coming in;
only the last one lies where it ends with the recording. Neighbours share the last `overlap` of the earlier
one, over which the earlier one's weight falls and the later one's rises as a raised cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Weights = NDArray[np.float64]


def next_start(last: int | None, window: int, overlap: int, length: int, is_whole: bool) -> int | None:
    """The start of the window after one that begins at `last` (None: of the first).

    A recording no longer than a window has one; otherwise every window lies wholly inside the recording.

    Args:
        last: Where the window before begins.
        window, overlap: Length of a window, and of what it shares with the next one.
        length: The recording's, as far as it is known.
        is_whole: True if there is no more of it.

    Returns:
        None if there is no such window, or not yet.
    """
    start = 0 if last is None else last + window - overlap
    if start + window <= length:
        return start
    if not is_whole or (last is not None and length <= last + window):
        return None
    return min(start, max(0, length - window))  # the last window ends with the recording


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """Starts of all windows of a recording, as `next_start` gives them."""
    starts: list[int] = []
    start = next_start(None, window, overlap, length, is_whole=True)
    while start is not None:
        starts.append(start)
        start = next_start(start, window, overlap, length, is_whole=True)
    return starts


def rise(phase: ArrayLike) -> Weights:
    """A raised cosine from 0 to 1 while the phase goes from 0 to 1."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(np.asarray(phase, np.float64), 0, 1))


def window_weights(starts: Sequence[int], window: int, overlap: int, positions: ArrayLike) -> Weights:
    """Weight of each of some consecutive windows at each position: [windows, positions], summing to 1.

    The first of them counts in full before its overlap with the second, the last one after the last overlap.

    Args:
        starts: Where the windows begin, `window` and `overlap` being their length and what they share.
        positions: In the same unit, not at a whole number (there nothing begins in the middle of a sample).
    """
    places = np.asarray(positions, np.float64)
    width = max(overlap, 1e-9)  # windows that share nothing follow each other in one step
    rises = [np.ones(len(places))]
    rises += [rise((places - (start + window - overlap)) / width) for start in starts[:-1]]
    rises.append(np.zeros(len(places)))
    return np.stack([earlier - later for earlier, later in pairwise(rises)])
