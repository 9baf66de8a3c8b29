"""The levels at which a recording's windows go through the model.

The model knows one level: a clip loses its mean and gets a peak of one half (docs/model.md#front-end). In a
long recording every window has an offset and a gain of its own, so that what is quiet is heard as well as
what is loud. Windows that overlap must hear the same sound there, or they could not agree: both numbers move
from one window's to the next one's over what the two share, the gain in decibels. There the sound is no
louder than either window's peak, and so nowhere louder than a half after its gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowsep_runtime.arrays import Floats
from flowsep_runtime.audio.checks import SILENCE, centred
from flowsep_runtime.separation.windows import Weights, window_weights

PEAK = np.float32(0.5)  # docs/model.md#front-end


@dataclass(frozen=True)
class Level:
    """Level of one window, by channel: mean, presence of sound, and gain to a peak of ½ (1 in silence)."""

    offset: NDArray[np.float64]
    sounding: NDArray[np.bool_]
    gain: Floats


def level_of(window: Floats) -> Level:
    """The level of a window [samples, channels]."""
    peak = np.abs(centred(window)).max(axis=0)
    sounding = peak > SILENCE
    gain = np.where(sounding, PEAK / (peak + np.float32(1e-8)), np.float32(1)).astype(np.float32)
    return Level(window.mean(axis=0, dtype=np.float64), sounding, gain)


def normalised(clip: Floats) -> Floats:
    """A clip [samples, channels] with mean 0 and, unless it is silent, peak ½ (docs/model.md#front-end)."""
    return centred(clip) * level_of(clip).gain


@dataclass(frozen=True)
class Window:
    """One of a recording's windows; `start` counts latent frames from the recording's first."""

    start: int
    level: Level


class LevelCurves(NamedTuple):
    """Levels along a recording, each [positions, channels]: what is taken off, what it is then multiplied by,
    and how much of it lies in windows that are not silent (0 to 1)."""

    offset: NDArray[np.float64]
    gain: Floats
    presence: Floats


def curves(windows: Sequence[Window], length: int, overlap: int, positions: Weights) -> LevelCurves:
    """Levels at some positions.

    Args:
        windows: All that touch the positions, consecutive, and at least one.
        length, overlap: Of a window, in latent frames.
        positions: In latent frames; the middle of sample n is (n + 0.5) / samples per latent frame.
    """
    weights = window_weights([window.start for window in windows], length, overlap, positions).T
    levels = [window.level for window in windows]
    sounding = np.stack([level.sounding for level in levels]).astype(np.float64)
    presence = weights @ sounding
    logarithms = sounding * np.log(np.stack([level.gain for level in levels]).astype(np.float64))
    gain = np.exp(weights @ logarithms / np.where(presence > 0, presence, 1))
    offset = weights @ np.stack([level.offset for level in levels])
    return LevelCurves(offset, gain.astype(np.float32), presence.astype(np.float32))
