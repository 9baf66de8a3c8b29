"""All synthesised clips: instruments, speech and procedural sounds, seeded by name."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from recipes.nano import midi, procedural, speech
from recipes.nano.cache import Clip
from recipes.nano.signals import SAMPLE_RATE, Samples, clean
from recipes.nano.tables import Split
from recipes.nano.tools import FLUID_R3, TIM_GM6MB

PIECE = 12.0  # seconds, about, of one clip of music or noise
SPEECH_PIECE = 6.0  # seconds, about, of two sentences
DRUMS = "drums"
# Which soundfont plays a split, and under which licence its samples are.
SOUNDFONTS: dict[Split, tuple[Path, str]] = {"train": (FLUID_R3, "MIT"), "test": (TIM_GM6MB, "GPL-2")}
# (class, kind, seconds for training, seconds for testing)
PROCEDURAL: tuple[tuple[str, procedural.SoundKind, float, float], ...] = (
    ("rain", "rain", 96.0, 12.0),
    ("wind", "wind", 72.0, 12.0),
    ("siren", "siren", 96.0, 12.0),
    ("telephone ringing", "telephone", 96.0, 12.0),
)


@dataclass(frozen=True)
class PlannedClip:
    """A clip that is yet to be made.

    `perform` takes a random generator and gives mono samples and their rate in Hz.
    """

    label: str
    split: Split
    source: str
    licence: str
    perform: Callable[[np.random.Generator], tuple[Samples, int]]

    def clip(self) -> Clip:
        """Make the clip; the same name makes the same clip.

        Raises:
            RecipeError: a tool is missing or failed.
        """
        audio, rate = self.perform(generator(self.source))
        return Clip(
            self.label, self.split, clean(audio, rate, self.label), self.source, self.licence, "synthesised"
        )


def generator(name: str) -> np.random.Generator:
    """A random generator for the thing called `name`, whatever else is made before it."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def parts() -> list[PlannedClip]:
    """Every synthesised clip of the recipe, in a fixed order."""
    return [*_instruments(), *_speech(), *_procedural()]


def _instruments() -> Iterator[PlannedClip]:
    for instrument in midi.INSTRUMENTS:
        yield from _played("train", instrument.label, instrument.train, partial(midi.play, instrument))
        yield from _played("test", instrument.label, instrument.test, partial(midi.play, instrument))
    yield from _played("train", DRUMS, 96.0, midi.drum)
    yield from _played("test", DRUMS, 20.0, midi.drum)


def _played(
    split: Split,
    label: str,
    seconds: float,
    improvise: Callable[[float, np.random.Generator], tuple[int, list[midi.Note]]],
) -> Iterator[PlannedClip]:
    soundfont, licence = SOUNDFONTS[split]
    pieces = round(seconds / PIECE + 0.4)

    def perform(rng: np.random.Generator) -> tuple[Samples, int]:
        program, notes = improvise(seconds / pieces, rng)
        score = midi.midi_file(program, notes, midi.DRUM_CHANNEL if label == DRUMS else 0)
        return midi.render(score, soundfont, reverb=bool(rng.integers(2)))

    for number in range(pieces):
        yield PlannedClip(label, split, f"fluidsynth!{soundfont.stem}/{label}/{number}", licence, perform)


def _speech() -> Iterator[PlannedClip]:
    for voices in speech.VOICES:
        texts = speech.sentences(voices.split)
        for tool, speak, able in (
            ("espeak-ng", speech.espeak, True),
            ("flite", speech.flite, bool(voices.flite)),
        ):
            for number in range(round(voices.seconds / SPEECH_PIECE) if able else 0):
                source = f"{tool}!{voices.label}/{voices.split}/{number}"
                text = " ".join(generator(source).choice(texts, 2, replace=False))
                yield PlannedClip(
                    voices.label, voices.split, source, f"output of {tool}", partial(speak, text, voices)
                )


def _procedural() -> Iterator[PlannedClip]:
    for label, kind, train, test in PROCEDURAL:
        splits: tuple[tuple[Split, float], ...] = (("train", train), ("test", test))
        for split, seconds in splits:
            for number in range(round(seconds / PIECE)):
                yield PlannedClip(
                    label, split, f"procedural!{kind}/{split}/{number}", "MIT", partial(_generated, kind)
                )


def _generated(kind: procedural.SoundKind, rng: np.random.Generator) -> tuple[Samples, int]:
    return procedural.make(kind, PIECE, rng), SAMPLE_RATE
