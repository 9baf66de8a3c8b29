"""Strings of single sounds: keys to typing, steps to walking, blows to hammering.

A single key of a tenth of a second is not recognisable; typing is a rhythm of many keys.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import get_args

import numpy as np

from recipes.nano.cache import Clip
from recipes.nano.signals import SAMPLE_RATE, Samples, finish
from recipes.nano.synthesis import generator
from recipes.nano.tables import Split

SECONDS = 10.0  # of one string, about
STRINGS: dict[Split, int] = {"train": 9, "test": 2}  # a class
STEP, BLOW = 1.1, 0.5  # seconds: longer recordings hold several steps or blows already
KEY_PACKAGE = "bucklespring-data"

Event = tuple[float, Samples]  # when in seconds, and what


def strung_clips(clips: Sequence[Clip]) -> Iterator[Clip]:
    """String the single sounds among `clips` together, each split from its own recordings only."""
    for split in get_args(Split):
        own = [clip for clip in clips if clip.split == split]
        keys = _keys([clip for clip in own if clip.source.startswith(KEY_PACKAGE)])
        steps = _surfaces([clip for clip in own if clip.label == "footsteps" and _seconds(clip) < STEP])
        blows = [clip for clip in own if clip.label == "hammering" and _seconds(clip) < BLOW]
        for number in range(STRINGS[split]):
            if keys:
                rng, source = _named("keyboard typing", split, number)
                yield _strung(source, [c for key in keys for c in key], _typing(keys, rng))
            if steps:
                rng, source = _named("footsteps", split, number)
                surface = steps[int(rng.integers(len(steps)))]
                yield _strung(source, surface, _repeated(surface, 0.35, 0.7, rng))
            if blows:
                rng, source = _named("hammering", split, number)
                blow = [blows[int(rng.integers(len(blows)))]]
                yield _strung(source, blow, _repeated(blow, 0.3, 0.9, rng))


def _typing(keys: Sequence[Sequence[Clip]], rng: np.random.Generator) -> Iterator[Event]:
    now = 0.0
    while now < SECONDS:
        press, *release = keys[int(rng.integers(len(keys)))]
        yield now, press.audio * _gain(rng)
        if release:
            # Clips are stored at full scale, but a key comes up more softly than it goes down.
            yield now + rng.uniform(0.06, 0.14), release[0].audio * _gain(rng) * 0.5
        now += rng.uniform(0.08, 0.35)


def _repeated(
    sounds: Sequence[Clip], shortest: float, longest: float, rng: np.random.Generator
) -> Iterator[Event]:
    pace = rng.uniform(shortest, longest)
    now, turn = 0.0, 0
    while now < SECONDS:
        yield now, sounds[turn % len(sounds)].audio * _gain(rng)
        now += np.clip(pace * rng.uniform(0.9, 1.1), shortest, longest)
        turn += 1


def _strung(source: str, sounds: Sequence[Clip], events: Iterator[Event]) -> Clip:
    audio = np.zeros(round((SECONDS + 2) * SAMPLE_RATE), np.float32)
    for moment, sound in events:
        start = round(moment * SAMPLE_RATE)
        piece = sound[: len(audio) - start]
        audio[start : start + len(piece)] += piece
    first = sounds[0]
    licences = sorted({sound.licence for sound in sounds})
    return Clip(first.label, first.split, finish(audio), source, " AND ".join(licences), "strung")


def _keys(clips: Sequence[Clip]) -> list[list[Clip]]:
    """The clips of one key each, `NN-0.wav` (down) before `NN-1.wav` (up)."""
    keys: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: clip.source):
        keys[clip.source.rpartition("-")[0]].append(clip)
    return list(keys.values())


def _surfaces(clips: Sequence[Clip]) -> list[list[Clip]]:
    """The steps on one surface each: files whose names differ in a number only."""
    surfaces: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        stem = PurePath(clip.source).with_suffix("").as_posix()
        surfaces[re.sub(r"[.\d]+$", "", stem)].append(clip)
    return list(surfaces.values())


def _named(label: str, split: Split, number: int) -> tuple[np.random.Generator, str]:
    source = f"strung!{label}/{split}/{number}"
    return generator(source), source


def _gain(rng: np.random.Generator) -> float:
    return float(10 ** (rng.uniform(-3, 3) / 20))


def _seconds(clip: Clip) -> float:
    return len(clip.audio) / SAMPLE_RATE
