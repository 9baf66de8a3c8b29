"""Parts of the separation of long recordings: shares, levels, noise, resampler, mask and vocoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowsep_runtime import Pipeline
from flowsep_runtime.audio.resampling import BlockResampler, resampled
from flowsep_runtime.separation.levels import Window, curves, level_of
from flowsep_runtime.separation.noise import NoiseTrack
from flowsep_runtime.separation.vocoding import REACH, ChunkedVocoder
from flowsep_runtime.separation.windows import window_starts, window_weights
from flowsep_runtime.separator import BUNDLED
from tests.runtime.toy_bundle import MODEL


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@given(st.integers(1, 400), st.integers(4, 64), st.data())
def test_shares_add_up_to_one_and_are_nothing_outside_a_window(
    length: int, window: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, window // 2))
    starts = window_starts(length, window, overlap)
    positions = np.arange(length) + 0.5
    weights = window_weights(starts, window, overlap, positions)
    assert np.allclose(weights.sum(axis=0), 1)
    assert (weights >= 0).all()
    for start, weight in zip(starts, weights, strict=True):
        assert not weight[(positions < start) | (positions > start + window)].any()
    # What some of the windows say of their own places is what all of them say.
    if len(starts) > 3:
        some = window_weights(starts[1:-1], window, overlap, positions)
        inside = (positions > starts[1] + overlap) & (positions < starts[-2] + window - overlap)
        assert np.allclose(some[:, inside], weights[1:-1][:, inside])


@settings(deadline=None)
@given(st.lists(st.floats(-4, 0), min_size=2, max_size=6), st.integers(0, 10))
def test_no_sound_is_louder_than_a_half_after_its_gain(logarithms: list[float], seed: int) -> None:
    window, overlap, per_frame = 16, 4, 10
    starts = [index * (window - overlap) for index in range(len(logarithms))]
    audio = normal((starts[-1] + window) * per_frame, 2, seed=seed)
    for start, logarithm in zip(starts, logarithms, strict=True):
        audio[start * per_frame : (start + window - overlap) * per_frame] *= np.float32(10**logarithm)
    audio[::2] = -audio[1::2]  # no window has a mean
    windows = [
        Window(start, level_of(audio[start * per_frame : (start + window) * per_frame])) for start in starts
    ]
    found = curves(windows, window, overlap, (np.arange(len(audio)) + 0.5) / per_frame)
    assert (np.abs(audio) * found.gain).max() <= 0.5 + 1e-6
    assert (found.presence == 1).all()


def test_noise_belongs_to_its_frame() -> None:
    generator = np.random.default_rng(3)
    length = MODEL.clip_frames // MODEL.latent_stride
    drawn = [[generator.standard_normal((1, 8, length, 16), np.float32) for _ in range(2)] for _ in range(5)]
    posterior, start = (np.concatenate(each, axis=2) for each in zip(*drawn, strict=True))
    track = NoiseTrack(MODEL, 3)
    for begin, end in (
        (0, length),
        (length - 4, 3 * length - 8),
        (length + 3, 5 * length),
        (4 * length, 4 * length + 1),
    ):
        found = track.frames(begin, end)
        assert np.array_equal(found[0], posterior[:, :, begin:end])
        assert np.array_equal(found[1], start[:, :, begin:end])


@settings(max_examples=40, deadline=None)
@example(rate=768_000, new_rate=16_000, seconds=0.3, sizes=[1000])
@example(rate=1000, new_rate=16_000, seconds=1.0, sizes=[1])
@example(rate=22_050.5, new_rate=16_000, seconds=1.0, sizes=[999, 1])
@given(
    rate=st.integers(1000, 96_000) | st.floats(1000, 96_000),
    new_rate=st.sampled_from([16_000, 44_100, 48_000]),
    seconds=st.floats(0, 1),
    sizes=st.lists(st.integers(1, 20_000), min_size=1, max_size=3),
)
def test_blocks_are_resampled_as_the_whole(
    rate: float, new_rate: int, seconds: float, sizes: list[int]
) -> None:
    audio = normal(max(1, int(rate * seconds)), 2)
    length = max(1, round(len(audio) * new_rate / rate))
    pieces: list[Any] = []
    resampler, first = BlockResampler(rate, new_rate, 2), 0
    while first < len(audio):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(resampler.push(audio[first : first + size]))
        first += size
    found = np.concatenate([*pieces, resampler.finish(length)])
    assert found.shape == (length, 2)
    assert np.abs(found - resampled(audio, rate, new_rate, length)).max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("frames", [256, 304, 700])
def test_chunks_of_the_vocoder_are_one_run_over_everything(frames: int) -> None:
    pipeline = Pipeline.load(BUNDLED, "cpu", threads=1)
    log_mels = np.clip(normal(frames, 1, 64, seed=frames) * 2 - 5, -11.5, 2)
    expected = pipeline.vocode(np.pad(log_mels[:, 0], ((0, -frames % 16), (0, 0)))[None])[0]
    chunked = ChunkedVocoder(pipeline.vocode, 256, 160, -11.6)
    pieces = [
        samples
        for first in range(0, frames, 90)
        for samples in chunked.push(log_mels[first : first + 90], first + 90 >= frames)
    ]
    found = np.concatenate(pieces)[:, 0]
    whole = (frames - (REACH if frames % 16 else 0)) * 160  # the padding is no part of the recording
    assert len(found) == frames * 160
    assert np.abs(found - expected[: len(found)])[:whole].max() <= 1e-5


def test_a_sample_depends_on_no_frame_further_than_the_reach() -> None:
    pipeline = Pipeline.load(BUNDLED, "cpu", threads=1)
    log_mels = np.clip(normal(2, 160, 64) * 2 - 5, -11.5, 2)
    log_mels[1] = log_mels[0]
    log_mels[1, 80] += 3
    before, after = pipeline.vocode(log_mels)
    changed = np.flatnonzero(np.abs(before - after) > 1e-6) / 160
    assert changed.min() >= 80 - REACH and changed.max() <= 81 + REACH
    assert changed.max() - changed.min() > 20
