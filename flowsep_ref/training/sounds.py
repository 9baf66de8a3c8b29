"""A bank of labelled recordings, and tracks made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """Where one recording lies in the bank's audio."""

    label: str
    split: str
    start: int
    length: int


class SoundBank:
    """Recordings of one split: 16 kHz mono int16 in one memory-mapped file, beside an index.

    Args:
        folder: with `audio.npy` and `index.json` (a list of label, split, start, length).
        split: `train` or `test`.

    Raises:
        ValueError: the folder is no sound cache, or has no recording of the split.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        folder = Path(folder)
        try:
            entries = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            self.audio = np.load(folder / "audio.npy", mmap_mode="r")
        except OSError as error:
            raise ValueError(f"{folder} is no sound cache: {error.strerror} {error.filename}") from error
        recordings = [
            Recording(entry["label"], entry["split"], entry["start"], entry["length"]) for entry in entries
        ]
        self.by_label: dict[str, list[Recording]] = {}
        for recording in recordings:
            if recording.split == split and recording.length > 0:
                self.by_label.setdefault(recording.label, []).append(recording)
        if not self.by_label:
            raise ValueError(f"{folder} has no recording of the split {split}")

    @property
    def labels(self) -> list[str]:
        """All classes, sorted."""
        return sorted(self.by_label)

    def read(self, recording: Recording, most: int, rng: np.random.Generator) -> Audio:
        """A recording, or `most` samples from anywhere in it; peak 1."""
        start = recording.start
        if recording.length > most:
            start += int(rng.integers(recording.length - most))
        x = self.audio[start : start + min(recording.length, most)].astype(np.float32)
        return x / max(float(np.abs(x).max()), 1.0)

    def track(self, label: str, samples: int, rng: np.random.Generator) -> Audio:
        """Recordings of one class, augmented, strung together with gaps to `samples`; peak 1."""
        out = np.zeros(samples, np.float32)
        choices = self.by_label[label]
        # most recordings are one bark, one key: a track keeps to one voice and repeats it
        voices = [choices[i] for i in rng.integers(len(choices), size=2)]
        speed = float(np.exp(rng.uniform(-0.15, 0.15)))
        at = -int(rng.integers(samples // 4)) if rng.random() < 0.3 else int(rng.integers(samples // 4 + 1))
        gap = float(rng.exponential(0.4)) * 16000
        tint = Equaliser(rng)
        while at < samples:
            x = self.read(voices[int(rng.random() < 0.3)], samples, rng)
            if rng.random() < 0.7:
                x = soxr.resample(x, 16000 * speed, 16000, quality="LQ")
            x = fade(tint(x)) * float(rng.uniform(0.6, 1.0))
            skip, stop = max(0, -at), min(len(x), samples - at)
            if stop > skip:
                out[at + skip : at + stop] += x[skip:stop]
            at += len(x) + int(gap * rng.uniform(0.3, 1.7))
            if rng.random() < 0.15:
                break
        return out / max(float(np.abs(out).max()), 1e-4)


class Equaliser:
    """A random smooth gain over frequency, for a quarter of the tracks a low-pass too.

    Many recordings of some classes are narrow-band; without the low-pass their bandwidth would give
    the class away.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        knots = np.array([0, 150, 400, 1000, 2500, 5000, 8000])
        gains = rng.normal(0.0, 4.0, size=len(knots)) * (rng.random() < 0.6)
        grid = np.linspace(0, 8000, 513)
        self.db = np.interp(grid, knots, gains)
        if rng.random() < 0.25:
            cutoff = rng.uniform(3500, 6000)
            self.db = self.db - np.clip((grid - cutoff) / 400, 0, 1) * 60

    def __call__(self, x: Audio) -> Audio:
        spectrum = np.fft.rfft(x)
        db = np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, len(self.db)), self.db)
        return np.fft.irfft(spectrum * 10 ** (db / 20), n=len(x)).astype(np.float32)


def fade(x: Audio, samples: int = 160) -> Audio:
    """Ten milliseconds in and out, so that a cut makes no click."""
    n = min(samples, len(x) // 2)
    if n:
        ramp = np.linspace(0, 1, n, dtype=np.float32)
        x = x.copy()
        x[:n] *= ramp
        x[-n:] *= ramp[::-1]
    return x
