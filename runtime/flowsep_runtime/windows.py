"""Recordings longer than the model's clip: overlapping windows, joined by cross-fading."""

from __future__ import annotations

import math

import numpy as np

from .arrays import Floats


def window_starts(samples: int, window: int, overlap: int) -> list[int]:
    """First samples of evenly spread windows that cover a recording, neighbours overlapping by `overlap` or
    more.

    A recording no longer than a window has one; otherwise every window lies wholly inside the recording.
    """
    if samples <= window:
        return [0]
    count = math.ceil((samples - overlap) / (window - overlap))
    return [round(index * (samples - window) / (count - 1)) for index in range(count)]


def cross_fade(track: Floats, known: int, piece: Floats, start: int) -> int:
    """Adds a piece to a track in place, fading over from what is known there already.

    The fade is a raised cosine over the whole overlap: where both agree, nothing changes.

    Args:
        track: [samples, channels]; its first `known` samples are filled.
        known: Number of samples filled so far, at least `start`.
        piece: [length, channels].
        start: Where the piece begins in the track.

    Returns:
        The number of samples filled now.
    """
    end = start + len(piece)
    overlap = known - start
    phase = (np.arange(overlap, dtype=np.float32) + np.float32(0.5)) / np.float32(max(overlap, 1))
    rise = (np.float32(0.5) - np.float32(0.5) * np.cos(np.float32(np.pi) * phase))[:, None]
    before = track[start:known]
    track[start:known] = before + rise * (piece[:overlap] - before)
    track[known:end] = piece[overlap:]
    return end
