"""Cleaning keeps the sound and drops what is not it."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.nano.signals import PEAK, SAMPLE_RATE, Samples, band_pass, clean, high_pass


def tone(frequency: float, rate: int = SAMPLE_RATE, seconds: float = 1.0) -> Samples:
    """A sine of amplitude 0.3."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * frequency * t)).astype(np.float32)


def middle(audio: Samples) -> float:
    """The RMS away from the ends."""
    return float(np.sqrt(np.mean(audio[len(audio) // 4 : -len(audio) // 4] ** 2)))


def test_a_clip_has_the_cache_s_rate_and_peak() -> None:
    clip = clean(tone(440, 44100, 0.5), 44100, "flute")
    assert len(clip) == pytest.approx(0.5 * SAMPLE_RATE, abs=50)
    assert np.abs(clip).max() == pytest.approx(PEAK, abs=1e-4)


def test_an_offset_is_removed() -> None:
    clip = clean(tone(440) + 0.5, SAMPLE_RATE, "flute")
    assert abs(clip.mean()) < 0.01


def test_silent_ends_are_cut_and_silence_is_empty() -> None:
    quiet = np.zeros(SAMPLE_RATE, np.float32)
    clip = clean(np.concatenate([quiet, tone(440), quiet]), SAMPLE_RATE, "flute")
    # The tone starts and ends abruptly, so the high-pass rings a little.
    assert SAMPLE_RATE <= len(clip) < 1.1 * SAMPLE_RATE
    assert len(clean(quiet, SAMPLE_RATE, "flute")) == 0


def test_a_long_recording_is_capped_and_fades() -> None:
    clip = clean(tone(440, seconds=3.0), SAMPLE_RATE, "flute", longest=1.0)
    assert len(clip) == SAMPLE_RATE
    assert abs(clip[-1]) < 1e-3


def test_birds_lose_the_rumble_below_them_and_others_keep_it() -> None:
    def low_to_high(audio: Samples) -> float:
        low, high = band_pass(audio, 50, 200, SAMPLE_RATE), band_pass(audio, 2000, 4000, SAMPLE_RATE)
        return middle(low) / middle(high)

    field = tone(100) + tone(3000)
    assert low_to_high(clean(field, SAMPLE_RATE, "birds chirping")) < 0.01
    assert low_to_high(clean(field, SAMPLE_RATE, "thunder")) == pytest.approx(low_to_high(field), rel=0.02)


def test_the_high_pass_is_3_db_down_at_its_corner() -> None:
    corner = tone(800)
    assert middle(high_pass(corner, 800, SAMPLE_RATE)) / middle(corner) == pytest.approx(2**-0.5, rel=0.01)


def test_a_filter_does_not_wrap_round_to_the_other_end() -> None:
    audio = np.zeros(SAMPLE_RATE, np.float32)
    audio[-200:] = 0.5
    assert np.abs(band_pass(audio, 100, 1000, SAMPLE_RATE)[: SAMPLE_RATE // 2]).max() < 1e-3
