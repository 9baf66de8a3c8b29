"""Long mixtures of two sounds, made of a test set's short ones: the targets of a class, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowsep_eval.evaluation import read_tracks
from flowsep_eval.manifest import Item
from flowsep_runtime.arrays import Floats
from flowsep_runtime.errors import OptionError

RATE = 16000  # Hz
JOINT = RATE // 20  # samples over which one recording gives way to the next
SKIPPED = 4 * RATE  # of the first recording: where recordings meet is not where windows do


@dataclass(frozen=True)
class LongMixture:
    """Two tracks [samples] of one level, their sum, and the words for the first."""

    query: str
    target: Floats
    mixture: Floats


def long_mixtures(items: Sequence[Item], seconds: float, count: int, seed: int) -> list[LongMixture]:
    """Mixtures of different pairs of classes, each of the given length.

    Raises:
        OptionError: If no two classes have recordings enough.
    """
    by_label: dict[str, list[Item]] = {}
    for item in items:
        if item.target is not None:
            by_label.setdefault(item.label, []).append(item)
    rng = np.random.default_rng(seed)
    samples = round(seconds * RATE)
    tracks = {
        label: track
        for label, of_label in sorted(by_label.items())
        if (track := _end_to_end(of_label, samples)) is not None
    }
    pairs = [(a, b) for a in tracks for b in tracks if a != b]
    if not pairs:
        raise OptionError(f"The test set has no two classes of {seconds:g} seconds each: ask for less.")
    made = []
    for number in rng.permutation(len(pairs))[:count]:
        wanted, other = pairs[number]
        target, rest = (tracks[label] / np.sqrt(np.mean(tracks[label] ** 2)) for label in (wanted, other))
        scale = np.float32(0.5 / np.abs(target + rest).max())
        made.append(LongMixture(by_label[wanted][0].query, target * scale, (target + rest) * scale))
    return made


def _end_to_end(items: Sequence[Item], samples: int) -> Floats | None:
    """The targets of some items [samples], each as loud as the others; None if they are too short."""
    ramp = np.linspace(0, 1, JOINT, dtype=np.float32)
    track = np.zeros(0, np.float32)
    for item in items:
        target = read_tracks(item).target
        if target is None or not target.any():
            continue
        sound = (target / np.sqrt(np.mean(target**2))).astype(np.float32)
        if not len(track):
            track = sound[SKIPPED:]
            continue
        met = track[-JOINT:] * (1 - ramp) + sound[:JOINT] * ramp
        track = np.concatenate([track[:-JOINT], met, sound[JOINT:]])
        if len(track) >= samples:
            return track[:samples]
    return None
