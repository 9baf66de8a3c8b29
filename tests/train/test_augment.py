"""Changes of an augmentation, and properties that it keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowsep_train.augment import (
    Audio,
    Augmentation,
    Effects,
    Equaliser,
    draw_room,
    fast_length,
    reverberate,
    revoice,
    stretch,
)

ALWAYS = Augmentation(speed=1, pitch=1, stretch=1, equalise=1, low_pass=1, reverberate=1)
AUGMENTATIONS = st.builds(
    Augmentation,
    *[st.sampled_from([0.0, 0.5, 1.0])] * 6,
    speed_range=st.floats(0, 0.5),
    pitch_range=st.floats(0, 7),
    stretch_range=st.floats(0, 0.5),
)


def tone(frequency: float, seconds: float = 1.0) -> Audio:
    time = np.arange(round(16000 * seconds)) / 16000
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def noise(samples: int = 16000, seed: int = 0) -> Audio:
    return np.random.default_rng(seed).standard_normal(samples, dtype=np.float32) * np.float32(0.25)


def frequency_of(x: Audio) -> float:
    """The strongest frequency of the middle of a sound, in Hz."""
    middle = x[len(x) // 4 : -len(x) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 17))
    return float(spectrum.argmax()) * 16000 / (1 << 17)


def energy(x: Audio) -> float:
    return float(np.square(x, dtype=np.float64).sum())


@given(AUGMENTATIONS, st.integers(1, 6000), st.integers(0, 2**32), st.booleans())
@settings(deadline=None, max_examples=80)
def test_every_augmentation_gives_finite_sound_of_the_right_length(
    augmentation: Augmentation, samples: int, seed: int, silent: bool
) -> None:
    x = np.zeros(samples, np.float32) if silent else noise(samples, seed)
    before = x.copy()
    effects = augmentation.draw(np.random.default_rng(seed))
    y = effects(x)
    assert y.dtype == np.float32
    assert y.shape == (max(1, round(samples / effects.tempo)),)
    assert np.isfinite(y).all()
    if silent:
        assert not y.any()
    np.testing.assert_array_equal(x, before)


def test_one_seed_is_one_augmentation() -> None:
    x = noise()
    first, again = (ALWAYS.draw(np.random.default_rng(7))(x).tobytes() for _ in range(2))
    assert first == again
    assert ALWAYS.draw(np.random.default_rng(8))(x).tobytes() != first


def test_effects_are_the_same_every_time_they_are_applied() -> None:
    effects = ALWAYS.draw(np.random.default_rng(7))
    np.testing.assert_array_equal(effects(noise()), effects(noise()))


def test_no_augmentation_changes_nothing() -> None:
    for seed in range(20):
        x = noise(seed=seed)
        np.testing.assert_array_equal(Augmentation.none().draw(np.random.default_rng(seed))(x), x)
    assert Augmentation.none().gain == (1, 1)


def test_changes_are_drawn_as_often_as_asked_and_within_their_ranges() -> None:
    rng = np.random.default_rng(0)
    augmentation = Augmentation(speed=0.5, pitch=0, stretch=0, reverberate=0.25, equalise=0, low_pass=0)
    drawn = [augmentation.draw(rng) for _ in range(400)]
    assert all(effects.pitch == effects.tempo for effects in drawn)
    assert all(abs(np.log(effects.tempo)) <= augmentation.speed_range for effects in drawn)
    assert 0.4 < np.mean([effects.tempo != 1 for effects in drawn]) < 0.6
    assert 0.17 < np.mean([effects.room is not None for effects in drawn]) < 0.33
    only_pitch = Augmentation(speed=0, pitch=1, stretch=0).draw(rng)
    assert only_pitch.tempo == 1 != only_pitch.pitch
    only_stretch = Augmentation(speed=0, pitch=0, stretch=1).draw(rng)
    assert only_stretch.pitch == 1 != only_stretch.tempo


@pytest.mark.parametrize("ratio", [0.8, 0.9, 1.12, 1.3])
def test_pitch_moves_the_frequency_and_keeps_the_length(ratio: float) -> None:
    y = revoice(tone(500), pitch=ratio)
    assert len(y) == 16000
    assert frequency_of(y) == pytest.approx(500 * ratio, rel=0.01)


@pytest.mark.parametrize("tempo", [0.75, 0.9, 1.1, 1.5])
def test_stretch_changes_the_length_and_keeps_frequency_and_level(tempo: float) -> None:
    y = revoice(tone(500), tempo=tempo)
    assert len(y) == round(16000 / tempo)
    assert frequency_of(y) == pytest.approx(500, rel=0.01)
    assert np.abs(y[2000:-2000]).max() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_speed_changes_pitch_and_length(speed: float) -> None:
    y = revoice(tone(500), pitch=speed, tempo=speed)
    assert len(y) == round(16000 / speed)
    assert frequency_of(y) == pytest.approx(500 * speed, rel=0.01)


def test_a_stretched_click_stays_where_it_was_in_the_sound() -> None:
    x = np.zeros(16000, np.float32)
    x[9000] = 1
    for tempo in (0.8, 1.25):
        assert np.abs(stretch(x, tempo)).argmax() == pytest.approx(9000 / tempo, abs=300)


def test_a_stretch_by_one_gives_the_sound_back() -> None:
    x = noise()
    np.testing.assert_allclose(stretch(x, 1.0)[512:], x[512:], atol=1e-4)


@pytest.mark.parametrize("direct", [-3.0, 15.0])
@pytest.mark.parametrize("rt60", [0.15, 1.2])
def test_a_room_keeps_energy_and_length(rt60: float, direct: float) -> None:
    x = np.concatenate([noise(8000), np.zeros(24000, np.float32)])
    y = reverberate(x, draw_room(np.random.default_rng(1), rt60, direct))
    assert y.shape == x.shape
    assert energy(y) == pytest.approx(energy(x), rel=1e-3)
    # the sound goes on where there was silence
    assert energy(y[8000:]) > 0


def test_a_room_has_the_reverberation_asked_for() -> None:
    room = draw_room(np.random.default_rng(1), rt60=0.8, direct=6.0)
    late = room[1:]
    assert 10 * np.log10(room[0] ** 2 / energy(late)) == pytest.approx(6, abs=1e-3)
    # by Schroeder's backward integration: 30 dB in half the time of 60
    decay = 10 * np.log10(np.cumsum(np.square(late[::-1], dtype=np.float64))[::-1] / energy(late))
    assert np.argmax(decay < -30) / 16000 == pytest.approx(0.4, abs=0.05)


def test_a_low_pass_leaves_no_highs_and_an_equaliser_keeps_the_length() -> None:
    x = noise(15001)
    y = Equaliser(np.random.default_rng(0), equalise=0, low_pass=1)(x)
    assert y.shape == x.shape
    spectrum = np.square(np.abs(np.fft.rfft(y)))
    assert spectrum[-2000:].sum() < 1e-4 * spectrum[:2000].sum()


def test_voice_and_place_effects_together_are_all_effects() -> None:
    rng = np.random.default_rng(0)
    effects = Effects(1.1, 0.9, Equaliser(rng, 1, 1), draw_room(rng, 0.3, 3.0))
    x = noise()
    np.testing.assert_array_equal(effects.place(effects.voice(x)), effects(x))


def test_fast_lengths_are_even_and_just_long_enough() -> None:
    assert [fast_length(n) for n in (1, 2, 7, 9, 11, 163840, 163841)] == [2, 2, 8, 10, 12, 163840, 196608]
