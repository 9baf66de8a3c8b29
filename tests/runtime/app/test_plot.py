"""The picture of a separation: what is in it is where it was, however long the recording."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowsep_runtime import OutputError
from flowsep_runtime.app.plot import Plot, clock, ticks, title
from flowsep_runtime.audio.spectrograms import BANDS, COLUMNS, Spectrogram, mel

RATE = 8000


def spectrogram(samples: Any, block: int = 3000, rate: int = RATE) -> Spectrogram:
    found = Spectrogram(rate, len(samples))
    for first in range(0, len(samples), block):
        found.add(samples[first : first + block])
    found.finish()
    return found


def tone(frequency: float, seconds: float, rate: int = RATE) -> Any:
    time = np.arange(int(seconds * rate)) / rate
    return np.sin(2 * np.pi * frequency * time).astype(np.float32)[:, None]


@pytest.mark.parametrize("frequency", [100.0, 440.0, 1000.0, 3000.0])
def test_a_full_scale_tone_has_0_db_in_its_band_and_is_far_below_elsewhere(frequency: float) -> None:
    decibels = spectrogram(tone(frequency, 2)).decibels
    middle = decibels[len(decibels) // 2]
    assert middle.max() == pytest.approx(0, abs=1.5)
    loudest = int(middle.argmax())
    assert abs(loudest - mel(frequency) / mel(RATE / 2) * BANDS) < 3
    far = np.abs(np.arange(BANDS) - loudest) > 30
    assert middle[far].max() < -40


@pytest.mark.parametrize("seconds", [0.2, 5, 300])
def test_a_click_stays_visible_at_its_place(seconds: float) -> None:
    samples = np.zeros((int(seconds * RATE), 1), np.float32)
    samples[int(0.7 * len(samples))] = 1
    found = spectrogram(samples)
    column = int(found.decibels.max(axis=1).argmax())
    width = found.seconds / len(found.decibels)
    assert abs((column + 0.5) * width - 0.7 * seconds) < width + 0.04
    assert found.decibels.max() > -60


def test_a_picture_does_not_depend_on_the_block_size() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (20000, 2)).astype(np.float32)
    whole = spectrogram(samples, 20000).decibels
    for block in (1, 77, 4096):
        part = samples[:2000] if block == 1 else samples
        expected = whole if block > 1 else spectrogram(part, 2000).decibels
        assert np.allclose(spectrogram(part, block).decibels, expected, atol=1e-3)


@pytest.mark.parametrize("frames", [1, 2, 63, 64, 511, 512, 513, 100_000])
@pytest.mark.parametrize("rate", [1000, 44100, 192_000])
def test_any_length_and_rate_fills_every_column(frames: int, rate: int) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (frames, 1)).astype(np.float32)
    found = spectrogram(samples, rate=rate)
    assert (found.decibels.max(axis=1) > -100).all()
    assert len(found.decibels) <= COLUMNS
    assert found.seconds >= frames / rate


def test_forty_minutes_take_the_memory_of_one() -> None:
    block = np.zeros((RATE, 1), np.float32)

    def peak(minutes: int) -> int:
        tracemalloc.start()
        try:
            found = Spectrogram(1000, minutes * 60 * 1000)
            for _ in range(minutes * 60 * 1000 // len(block)):
                found.add(block)
            found.finish()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(40) < 1.3 * peak(2)


def test_silence_is_drawn_and_so_is_a_query_of_any_kind(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    silence = np.zeros((RATE, 2), np.float32)
    for place, query in enumerate(["", "$\\frac{", "\x1b[31m\n", "طائر", "x" * 10_000]):
        plot = Plot(RATE, RATE)
        plot.add(silence, silence, silence)
        file = tmp_path / f"{place}.png"
        plot.draw(file, query)
        assert file.stat().st_size > 1000


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".jpg", ".webp"])
def test_the_extension_is_the_format(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    plot = Plot(RATE, RATE)
    noise = np.random.default_rng(0).uniform(-1, 1, (RATE, 1)).astype(np.float32)
    plot.add(noise, noise, noise)
    file = tmp_path / "picture.tmp"
    plot.draw(file, "dog", Path(f"out{suffix}"))
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml", ".jpg": b"\xff\xd8", ".webp": b"RIFF"}
    assert file.read_bytes().startswith(starts[suffix])


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = Plot(RATE, RATE)
    with pytest.raises(OutputError, match=r"no/out\.png cannot be written: No such file or directory"):
        plot.draw(tmp_path / "no" / "out.png", "dog")


def test_titles_are_cleaned_and_times_formatted_for_the_length() -> None:
    assert title("dog\n barking\x1b") == "dog barking"
    assert len(title("long " * 1000)) == 90
    assert [clock(t, 5) for t in (0, 1.5)] == ["0", "1.5"]
    assert [clock(t, 2400) for t in (0, 750)] == ["0:00", "12:30"]
    assert clock(3750, 7200) == "1:02:30"


@given(st.floats(120.001, 1e6))
def test_long_axes_have_a_few_ticks_at_round_times(length: float) -> None:
    places = ticks(length)
    assert 3 <= len(places) <= 11 and places[-1] <= length
    assert all(place % 30 == 0 for place in places)
    assert ticks(2400) == [0, 300, 600, 900, 1200, 1500, 1800, 2100, 2400]
