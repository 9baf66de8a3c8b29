"""English speech for the two speaking classes, from eSpeak NG and Flite."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from recipes.nano.signals import Samples, decode
from recipes.nano.tables import LISTS, Split
from recipes.nano.tools import run_tool


@dataclass(frozen=True)
class Voices:
    """The voices that speak a class in one split; `seconds` is how much each of the two programs has to say.

    Attributes:
        label: the class.
        split: the split; no voice, and no sentence, is in both.
        accents, variants: eSpeak NG's, combined as `accent+variant`.
        pitch: lowest and highest of eSpeak NG's pitch setting, 0 to 99.
        flite: Flite's voices.
        raised: Flite's speech is made higher, and shorter, by up to this share.
        seconds: of speech, about, from each program that has a voice here.
    """

    label: str
    split: Split
    accents: tuple[str, ...]
    variants: tuple[str, ...]
    pitch: tuple[int, int]
    flite: tuple[str, ...]
    raised: float
    seconds: float


VOICES = (
    Voices(
        "man speaking",
        "train",
        ("en-us", "en-gb", "en-gb-x-rp"),
        ("m1", "m2", "m3", "m4", "m5", "m6"),
        (30, 60),
        ("rms", "kal16"),
        0.0,
        60.0,
    ),
    Voices("man speaking", "test", ("en-gb-scotland",), ("m7",), (30, 60), ("awb",), 0.0, 10.0),
    Voices(
        "woman speaking",
        "train",
        ("en-us", "en-gb", "en-gb-x-rp"),
        ("f1", "f2", "f3", "f4"),
        (45, 75),
        ("slt",),
        0.15,
        60.0,
    ),
    Voices("woman speaking", "test", ("en-gb-scotland",), ("f5",), (45, 75), (), 0.0, 20.0),
)


def sentences(split: Split) -> list[str]:
    """The sentences to speak, written for this project."""
    name = "sentences.txt" if split == "train" else "sentences_test.txt"
    return (LISTS / name).read_text(encoding="utf-8").splitlines()


def espeak(text: str, voices: Voices, rng: np.random.Generator) -> tuple[Samples, int]:
    """Speak `text` in one of the voices at 130 to 190 words a minute: mono samples and their rate in Hz."""
    voice = f"{rng.choice(voices.accents)}+{rng.choice(voices.variants)}"
    pitch, speed = rng.integers(*voices.pitch), rng.integers(130, 191)
    return _spoken(["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "-w"], [text], "eSpeak NG")


def flite(text: str, voices: Voices, rng: np.random.Generator) -> tuple[Samples, int]:
    """Speak `text` in one of the voices, raised by chance: mono samples and their rate in Hz."""
    audio, rate = _spoken(["flite", "-voice", str(rng.choice(voices.flite)), "-o"], ["-t", text], "Flite")
    # Played faster, it is higher.
    return soxr.resample(audio, rate * (1 + rng.uniform(0, voices.raised)), rate), rate


def _spoken(before: list[str], after: list[str], name: str) -> tuple[Samples, int]:
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "spoken.wav"
        run_tool([*before, str(wav), *after])
        return decode(wav.read_bytes(), f"what {name} spoke")
