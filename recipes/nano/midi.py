"""Random music for the instrument classes: a score as a Standard MIDI File, played by FluidSynth."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.nano.signals import Samples, decode
from recipes.nano.tools import run_tool

TICKS = 960  # a second: 480 a quarter note, at the format's default of 120 quarters a minute


@dataclass(frozen=True)
class Instrument:
    """Instruments and notes of a class.

    Attributes:
        label: the class.
        programs: General MIDI programs, counted from 0.
        notes: lowest and highest key.
        voices: most keys at once.
        held: shortest and longest note in seconds.
        rest: shortest and longest pause after a note in seconds.
        strum: shortest and longest delay between the keys of a chord in seconds.
        train, test: seconds to make for each split.
    """

    label: str
    programs: tuple[int, ...]
    notes: tuple[int, int]
    voices: int = 1
    held: tuple[float, float] = (0.25, 2.0)
    rest: tuple[float, float] = (0.0, 0.3)
    strum: tuple[float, float] = (0.0, 0.0)
    train: float = 96.0
    test: float = 20.0


INSTRUMENTS = (
    Instrument("piano", (0, 1), (33, 96), voices=4, held=(0.2, 1.5)),
    Instrument("violin", (40,), (55, 93)),
    Instrument("acoustic guitar", (24, 25), (40, 79), voices=5, held=(0.3, 1.5), strum=(0.01, 0.03)),
    Instrument("flute", (73, 73, 72), (60, 96)),
    Instrument("organ", (19, 19, 16, 20), (36, 84), voices=4, held=(0.5, 3.0)),
    Instrument("bell ringing", (14,), (48, 79), held=(1.0, 3.0)),
    Instrument("telephone ringing", (124,), (57, 76), held=(1.0, 2.0), rest=(1.0, 3.0), train=48.0, test=0.0),
    # Supplements: at most a third of the class, which has recordings.
    Instrument("helicopter", (125,), (54, 66), held=(2.0, 4.0), train=12.0, test=0.0),
    Instrument("crowd cheering", (126,), (54, 66), held=(2.0, 4.0), train=12.0, test=0.0),
)
DRUM_CHANNEL = 9  # counted from 0
DRUM_KITS = (0, 8, 16, 32, 40)  # programs on that channel
KICK, SNARE, CLOSED_HAT, OPEN_HAT, CRASH, TOMS = 36, 38, 42, 46, 49, (45, 47, 50)
CHORDS = ((0, 4, 7, 12), (0, 3, 7, 12), (0, 5, 9, 12), (0, 4, 10, 16), (0, 7, 12, 16), (0, 3, 8, 12))


@dataclass(frozen=True)
class Note:
    """A key struck at `start` for `length` seconds with `velocity` 1 to 127."""

    start: float
    length: float
    key: int
    velocity: int


def play(instrument: Instrument, seconds: float, rng: np.random.Generator) -> tuple[int, list[Note]]:
    """Improvise on an instrument: its program, and a wandering line of notes and chords."""
    low, high = instrument.notes
    key = int(rng.integers(low, high + 1))
    notes: list[Note] = []
    now = 0.0
    while now < seconds:
        key = int(np.clip(key + rng.integers(-9, 10), low, high))
        held, velocity = rng.uniform(*instrument.held), int(rng.integers(50, 121))
        voices = int(rng.integers(1, instrument.voices + 1))
        chord = (
            [key] if voices == 1 else [key + step for step in rng.permutation((*CHORDS[rng.integers(6)], 19))]
        )
        start = now
        for voice in sorted(voice for voice in chord[:voices] if voice <= high):
            notes.append(Note(start, held, voice, velocity))
            start += rng.uniform(*instrument.strum)
        now += held + rng.uniform(*instrument.rest)
    return int(rng.choice(instrument.programs)), notes


def drum(seconds: float, rng: np.random.Generator) -> tuple[int, list[Note]]:
    """Improvise on the drums: a kit, and a groove of sixteenths at 80 to 150 beats a minute."""
    sixteenth = 15 / rng.uniform(80, 150)
    hat_every = int(rng.choice([1, 2, 2, 4]))
    kicks = {0, *rng.choice(16, 3).tolist()}
    snares = {4, 12, *rng.choice(16, int(rng.integers(0, 2))).tolist()}
    notes: list[Note] = []
    for step in range(int(seconds / sixteenth)):
        bar, place = divmod(step, 16)
        fill = bar % 4 == 3 and place >= 12
        struck = [TOMS[(15 - place) % 3]] if fill else []
        struck += [KICK] * (place in kicks) + [SNARE] * (place in snares and not fill)
        if place % hat_every == 0:
            struck.append(
                CRASH if place == 0 and bar % 4 == 0 else OPEN_HAT if rng.random() < 0.1 else CLOSED_HAT
            )
        notes += [Note(step * sixteenth, 0.9 * sixteenth, key, int(rng.integers(60, 121))) for key in struck]
    return int(rng.choice(DRUM_KITS)), notes


def midi_file(program: int, notes: list[Note], channel: int = 0) -> bytes:
    """Write a score as a Standard MIDI File of format 0."""
    events = [(0, bytes((0xC0 | channel, program)))]
    for note in notes:
        start, end = round(note.start * TICKS), round((note.start + note.length) * TICKS)
        events.append((start, bytes((0x90 | channel, note.key, note.velocity))))
        events.append((max(end, start + 1), bytes((0x80 | channel, note.key, 0))))
    track, now = b"", 0
    # Sorted by time alone: a note's end, which came later into the list, must not overtake its start.
    for time, event in sorted(events, key=lambda timed: timed[0]):
        track += _variable_length(time - now) + event
        now = time
    track += b"\x00\xff\x2f\x00"
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS // 2)
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def render(score: bytes, soundfont: Path, reverb: bool) -> tuple[Samples, int]:
    """Play a MIDI file with FluidSynth: mono samples and their rate in Hz.

    Raises:
        RecipeError: FluidSynth is missing or failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder) / "score.mid", Path(folder) / "played.wav"
        midi.write_bytes(score)
        options = ["-o", f"synth.reverb.active={int(reverb)}", "-o", "synth.chorus.active=0", "-g", "0.4"]
        run_tool(
            [
                "fluidsynth",
                "-n",
                "-i",
                "-q",
                *options,
                "-r",
                "44100",
                "-F",
                str(wav),
                str(soundfont),
                str(midi),
            ]
        )
        return decode(wav.read_bytes(), f"FluidSynth's playing of {soundfont.name}")


def _variable_length(number: int) -> bytes:
    septets = [number & 0x7F]
    while number := number >> 7:
        septets.append(0x80 | number & 0x7F)
    return bytes(reversed(septets))
