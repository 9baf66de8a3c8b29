"""A bank of labelled recordings, and tracks made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from flowsep_train.augment import SAMPLE_RATE, Audio, Augmentation, Effects
from flowsep_train.metadata import Recording, list_sounds

__all__ = ["Audio", "Augmentation", "Recording", "SoundBank", "fade"]

#: Longest file that is decoded as a whole and cached; longer ones are read in pieces.
WHOLE_SECONDS = 30
KEPT_FILES = 32
#: Pieces that are drawn from a recording before it counts as silent.
TRIES = 4


class SoundBank:
    """Recordings of one split, by class, of any of the forms in `flowsep_train.metadata`.

    It holds paths only: each process that reads opens files for itself.

    Args:
        path: a sound cache, a metadata file or a folder of labelled recordings.
        split: `train` or `test`, or another that the metadata names.
        captions: phrasings by label, in place of those found with the recordings.
        root: what a metadata file's relative paths start from; by default it is found from the first one.
        skip_missing: leave out rows of a metadata file whose recording is not there.
        augmentation: of tracks; by default `Augmentation()`.

    Raises:
        ValueError: in one sentence what is wrong with the sounds, or that the split has none.

    Attributes:
        labels: all classes, sorted.
        captions: phrasings of every class, at least one.
        by_label: recordings of every class.
        alone: classes of one recording that has no label but captions of its own.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        captions: Mapping[str, Sequence[str]] | None = None,
        root: str | Path | None = None,
        skip_missing: bool = False,
        augmentation: Augmentation | None = None,
    ) -> None:
        listing = list_sounds(path, root, skip_missing)
        self.augmentation = augmentation or Augmentation()
        self.by_label: dict[str, list[Recording]] = {}
        for recording in listing.recordings:
            if recording.split == split:
                self.by_label.setdefault(recording.label, []).append(recording)
        if not self.by_label:
            raise ValueError(f"{path} has no recording of the split {split}")
        self.labels = sorted(self.by_label)
        self.alone = frozenset(listing.alone)
        phrasings = {**listing.captions, **(captions or {})}
        self.captions = {label: list(phrasings.get(label) or [label]) for label in self.labels}

    def read(self, recording: Recording, most: int, rng: np.random.Generator) -> Audio:
        """A recording, or `most` samples from anywhere in it; 16 kHz mono, peak 1.

        Raises:
            ValueError: the file is not audio, or has none.
        """
        for _ in range(TRIES):
            x = read_cache(recording, most, rng) if recording.length else read_file(recording.path, most, rng)
            peak = float(np.abs(x).max())
            if peak > 0:
                return x / peak
        return x

    def track(self, label: str, samples: int, rng: np.random.Generator) -> Audio:
        """A track of one class, augmented, `[samples]`; peak 1.

        Most recordings of a class are a single bark or key, so several are joined. A recording that is a
        class of its own is a scene and stands by itself, unless it is shorter than a third of the track.
        """
        effects = self.augmentation.draw(rng)
        out = self.scene(label, samples, effects, rng) if label in self.alone else None
        if out is None:
            out = self.string(label, samples, effects, rng)
        out = effects.place(out)
        return out / max(float(np.abs(out).max()), 1e-4)

    def scene(self, label: str, samples: int, effects: Effects, rng: np.random.Generator) -> Audio | None:
        """A piece of a class's only recording, anywhere in `[samples]`; none if it is too short for that."""
        # at a higher tempo it takes more of a recording to fill the track
        x = self.read(self.by_label[label][0], math.ceil(samples * max(effects.tempo, 1.0)), rng)
        if 3 * len(x) < samples:
            return None
        x = fade(effects.voice(x)[:samples])
        before = int(rng.integers(samples - len(x) + 1))
        return np.pad(x, (before, samples - len(x) - before))

    def string(self, label: str, samples: int, effects: Effects, rng: np.random.Generator) -> Audio:
        """One or two recordings of a class, over and over with gaps, `[samples]`."""
        out = np.zeros(samples, np.float32)
        choices = self.by_label[label]
        voices = [
            fade(effects.voice(self.read(choices[i], samples, rng)))
            for i in rng.integers(len(choices), size=2)
        ]
        at = int(rng.integers(samples // 4 + 1))
        if rng.random() < 0.3:
            # half of the first recording is heard at least: a track that ended before its start were silent
            at = -int(rng.integers(min(samples // 4, min(map(len, voices)) // 2) + 1))
        gap = float(rng.exponential(0.4)) * SAMPLE_RATE
        while at < samples:
            x = voices[int(rng.random() < 0.3)] * np.float32(rng.uniform(*self.augmentation.gain))
            skip, stop = max(0, -at), min(len(x), samples - at)
            out[at + skip : at + stop] += x[skip:stop]
            at += len(x) + int(gap * rng.uniform(0.3, 1.7))
            if rng.random() < 0.15:
                break
        return out


@lru_cache(maxsize=4)
def mapped(path: Path) -> NDArray[np.int16]:
    """A cache's audio, mapped into memory once a process."""
    try:
        audio: NDArray[np.int16] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not an array of samples: the sound cache is damaged.") from error
    return audio


def read_cache(recording: Recording, most: int, rng: np.random.Generator) -> Audio:
    """Up to `most` samples from a random place of a recording of a cache, as 16-bit numbers."""
    start, length = recording.start, recording.length or 0
    if length > most:
        start += int(rng.integers(length - most))
    return mapped(recording.path)[start : start + min(length, most)].astype(np.float32)


def read_file(path: Path, most: int, rng: np.random.Generator) -> Audio:
    """Up to `most` samples from a random place of a sound file, 16 kHz mono.

    Raises:
        ValueError: the file is not audio, or has none.
    """
    with opened(path) as file:
        rate, frames = file.samplerate, file.frames
        if frames > WHOLE_SECONDS * rate:
            needed = min(math.ceil(most * rate / SAMPLE_RATE), frames)
            file.seek(int(rng.integers(frames - needed + 1)))
            return mono(file, needed)[:most]
    x = decoded(path)
    start = int(rng.integers(len(x) - most)) if len(x) > most else 0
    return x[start : start + most]


@lru_cache(maxsize=KEPT_FILES)
def decoded(path: Path) -> Audio:
    """A whole sound file, 16 kHz mono, read-only, for the next readers may get the same array."""
    with opened(path) as file:
        x = mono(file)
    x.setflags(write=False)
    return x


@contextmanager
def opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open a sound file; a fault becomes one sentence."""
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} cannot be read as audio: {error.error_string}") from error


def mono(file: soundfile.SoundFile, frames: int = -1) -> Audio:
    """The next frames of an open file, the mean of its channels, at 16 kHz."""
    x = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
    x = soxr.resample(x, file.samplerate, SAMPLE_RATE)
    if not len(x):
        raise ValueError(f"{file.name} has no samples; take it out.")
    if not np.isfinite(x).all():
        raise ValueError(f"{file.name} has samples that are not numbers; take it out.")
    return x


def fade(x: Audio, samples: int = SAMPLE_RATE // 100) -> Audio:
    """Ten milliseconds in and out, so that a cut makes no click."""
    n = min(samples, len(x) // 2)
    if n:
        ramp = np.linspace(0, 1, n, dtype=np.float32)
        x = x.copy()
        x[:n] *= ramp
        x[-n:] *= ramp[::-1]
    return x
