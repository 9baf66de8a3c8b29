"""Made sounds are what their name says, the same every time, and share nothing between the splits."""

from __future__ import annotations

import shutil
from typing import get_args

import numpy as np
import pytest

from recipes.nano import midi, procedural, speech
from recipes.nano.cache import Clip
from recipes.nano.signals import PEAK, SAMPLE_RATE, Samples
from recipes.nano.strings import strung_clips
from recipes.nano.synthesis import generator, parts
from recipes.nano.tables import Split, read_captions


def flatness(audio: Samples) -> float:
    """Spectral flatness between 500 and 4000 Hz: near 1 for noise, near 0 for tones."""
    power = np.abs(np.fft.rfft(audio)) ** 2
    frequency = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    band = power[(frequency > 500) & (frequency < 4000)] + 1e-12
    return float(np.exp(np.mean(np.log(band))) / np.mean(band))


@pytest.mark.parametrize("kind", get_args(procedural.SoundKind))
def test_a_procedural_sound_is_finite_loud_and_repeatable(kind: procedural.SoundKind) -> None:
    first, again = (procedural.make(kind, 4.0, generator("a")) for _ in range(2))
    other = procedural.make(kind, 4.0, generator("b"))
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert np.abs(first).max() == pytest.approx(PEAK, abs=1e-4)
    assert 0 < len(first) <= 4 * SAMPLE_RATE
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_rain_is_noise_and_a_siren_is_a_tone() -> None:
    rain, siren = (
        np.mean([flatness(procedural.make(kind, 2.0, generator(f"{kind}{n}"))) for n in range(4)])
        for kind in ("rain", "siren")
    )
    assert siren < 0.2
    assert rain > 0.4


def test_wind_is_lower_than_rain() -> None:
    def centre(audio: Samples) -> float:
        power = np.abs(np.fft.rfft(audio)) ** 2
        return float((power * np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)).sum() / power.sum())

    wind, rain = (centre(procedural.make(kind, 2.0, generator("x"))) for kind in ("wind", "rain"))
    assert wind < 600 < 1500 < rain


def test_a_telephone_pauses_between_rings() -> None:
    ringing = procedural.telephone(10 * SAMPLE_RATE, generator("telephone"))
    silent = float(np.mean(ringing == 0))
    assert 0.1 < silent < 0.8


def test_an_unknown_procedural_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="no procedural sound 'snow'"):
        procedural.make("snow", 1.0, generator("snow"))  # type: ignore[arg-type]


def test_the_same_name_is_never_made_twice_and_every_class_is_known() -> None:
    made = parts()
    assert len({part.source for part in made}) == len(made)
    assert {part.label for part in made} <= set(read_captions())


def test_the_splits_share_no_soundfont_voice_or_sentence() -> None:
    soundfonts = {split: set[str]() for split in ("train", "test")}
    for part in parts():
        if part.source.startswith("fluidsynth!"):
            soundfonts[part.split].add(part.source.split("!")[1].split("/")[0])
    assert not soundfonts["train"] & soundfonts["test"]
    assert not set(speech.sentences("train")) & set(speech.sentences("test"))
    voices = {
        split: {
            name for each in speech.VOICES if each.split == split for name in (*each.variants, *each.flite)
        }
        for split in ("train", "test")
    }
    assert not voices["train"] & voices["test"]


@pytest.mark.parametrize("instrument", midi.INSTRUMENTS, ids=lambda instrument: instrument.label)
def test_a_player_stays_within_the_instrument(instrument: midi.Instrument) -> None:
    program, notes = midi.play(instrument, 20.0, generator(instrument.label))
    assert program in instrument.programs
    assert all(instrument.notes[0] <= note.key <= instrument.notes[1] for note in notes)
    starts = [note.start for note in notes]
    together = max(sum(abs(start - other) < 0.15 for other in starts) for start in starts)
    assert together <= instrument.voices
    assert max(note.start + note.length for note in notes) >= 19


def test_a_midi_file_says_when_each_key_goes_down_and_up() -> None:
    score = midi.midi_file(40, [midi.Note(0.0, 0.5, 60, 100), midi.Note(0.5, 1.0, 64, 90)])
    assert score[:14] == b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x01\xe0"
    track = score[22:]
    assert int.from_bytes(score[18:22], "big") == len(track)
    # 480 ticks are 83 60 as a variable-length quantity, 960 are 87 40.
    expected = "00c028 00903c64 8360803c00 0090405a 8740804000 00ff2f00"
    assert track == bytes.fromhex(expected)


def test_short_sounds_are_joined_within_their_split() -> None:
    click = np.full(800, 0.5, np.float32)
    sources = {
        "keyboard typing": "bucklespring-data!usr/share/buckle/wav/0{}-{}.wav",
        "footsteps": "game!sounds/grass{}{}.ogg",
        "hammering": "game!hammer_{}{}.ogg",
    }
    splits: tuple[tuple[Split, int], ...] = (("train", 1), ("test", 2))
    clips = [
        Clip(label, split, click, source.format(number, side), "CC0")
        for label, source in sources.items()
        for split, number in splits
        for side in (0, 1)
    ]
    strings = list(strung_clips(clips))
    assert {(string.label, string.split) for string in strings} == {
        (label, split) for label in sources for split in ("train", "test")
    }
    for string in strings:
        assert string.kind == "strung"
        assert string.licence == "CC0"
        assert len(string.audio) > 8 * SAMPLE_RATE
    assert {string.split for string in strung_clips([clip for clip in clips if clip.split == "train"])} == {
        "train"
    }


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_men_speak_lower_than_women() -> None:
    def pitch(voices: speech.Voices) -> float:
        audio, rate = speech.espeak("Nine men are running home.", voices, generator("pitch"))
        spectrum = np.abs(np.fft.rfft(audio)) ** 2
        correlation = np.fft.irfft(spectrum)
        shortest, longest = rate // 350, rate // 70
        return rate / (shortest + int(np.argmax(correlation[shortest:longest])))

    man, woman = (next(v for v in speech.VOICES if v.label == f"{who} speaking") for who in ("man", "woman"))
    assert pitch(man) < 170 < pitch(woman)
