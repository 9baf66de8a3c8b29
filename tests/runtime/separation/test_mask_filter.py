"""Masks: shares of several sounds, and the filter that applies them to a mixture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowsep_eval.mel import mel_magnitudes
from flowsep_runtime.separation.averaging import WindowMean
from flowsep_runtime.separation.masking import MaskFilter, band_weights
from flowsep_runtime.separation.shares import shares
from tests.runtime.separation.test_stream import cut
from tests.runtime.toy_bundle import MODEL

RATE = MODEL.sample_rate


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def filtered(mixture: Any, masks: Any, rate: float, sizes: list[int] | None = None) -> Any:
    """The mixture [n, C] through masks [m, H, Q, 64]; given block by block if there are sizes."""
    masking = MaskFilter(rate, MODEL, mixture.shape[1], *masks.shape[1:3])
    if sizes is None:
        return np.concatenate([masking.push(mixture, masks), masking.finish()])
    pieces: list[Any] = []
    blocks, frames = cut(mixture, sizes), cut(masks, [max(1, size // 100) for size in sizes])
    while True:
        block, some = next(blocks, mixture[:0]), next(frames, masks[:0])
        if not len(block) and not len(some):
            return np.concatenate([*pieces, masking.finish()])
        pieces.append(masking.push(block, some))


@given(st.integers(1, 4), st.floats(-30, 200), st.integers(0, 99))
def test_masks_lie_between_nothing_and_everything_and_never_exceed_the_mixture(
    sounds: int, level: float, seed: int
) -> None:
    log_mels = 4 * normal(sounds, 6, 64, seed=seed) + np.float32(level)
    mixture = 4 * normal(6, 64, seed=seed + 1) + np.float32(level)
    masks = shares(log_mels, mixture, complements=False)
    assert masks.shape == log_mels.shape
    assert (masks >= 0).all() and masks.sum(axis=0).max() <= 1 + 1e-5
    if sounds == 1:
        assert np.allclose(masks[0], np.minimum(1, np.exp(log_mels[0] - mixture)), atol=1e-5)


def test_a_sound_and_its_complement_share_everything() -> None:
    log_mels = normal(2, 6, 64)
    (mask,) = shares(log_mels, np.full((6, 64), 50, np.float32), complements=True)
    (other,) = shares(log_mels[::-1], np.full((6, 64), 50, np.float32), complements=True)
    assert np.allclose(mask + other, 1, atol=1e-6)
    assert np.allclose(mask, 1 / (1 + np.exp(log_mels[1] - log_mels[0])), atol=1e-6)


def test_an_exponent_below_one_brings_shares_closer_to_one_half() -> None:
    log_mels = np.stack([normal(6, 64), normal(6, 64, seed=1)])
    mixture = np.full((6, 64), 50, np.float32)
    (sharp,) = shares(log_mels, mixture, complements=True)
    (soft,) = shares(log_mels, mixture, complements=True, exponent=0.8)
    assert (np.abs(soft - 0.5) <= np.abs(sharp - 0.5)).all()
    odds, softened = sharp / (1 - sharp), soft / (1 - soft)
    assert np.allclose(softened, odds**0.8, rtol=1e-3)
    assert np.array_equal(shares(log_mels, mixture, False), shares(log_mels, mixture, False, 0.8))


def test_several_sounds_share_everything_where_they_claim_half_of_it() -> None:
    claims = np.array([0.4, 0.2, 0.1, 0.1], np.float32)[:, None, None] * np.ones((4, 6, 64), np.float32)
    mixture = np.zeros((6, 64), np.float32)
    (first, second) = shares(np.log(claims[:2]), mixture, complements=False)
    assert np.allclose(first, 2 / 3) and np.allclose(second, 1 / 3)
    (third, fourth) = shares(np.log(claims[2:]), mixture, complements=False)
    assert np.allclose(third, 0.2) and np.allclose(fourth, 0.2)


def test_the_weights_of_a_bin_are_those_of_the_front_ends_triangles() -> None:
    frequencies = np.fft.rfftfreq(1024, 1 / RATE).astype(np.float32)
    weights = band_weights(frequencies, 64, 8000)
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)
    # A tone sounds in the bands whose triangles cover it, and in no other.
    for index in (30, 100, 311):
        tone = np.sin(2 * np.pi * frequencies[index] * np.arange(4096) / RATE).astype(np.float32)
        loud = mel_magnitudes(tone)[10]
        assert np.argmax(loud) == np.argmax(weights[index])
        assert (loud[weights[index] > 0] > 1e-3 * loud.max()).all()
    assert weights[0, 0] == 1 and weights[-1, -1] == 1


@pytest.mark.parametrize("rate", [1000, 8000, 16_000, 22_050.5, 44_100, 192_000])
def test_masks_of_one_keep_everything_and_of_zero_nothing(rate: float) -> None:
    mixture = normal(int(rate), 2)
    masks = np.ones((101, 2, 2, 64), np.float32)
    masks[:, :, 1] = 0
    found = filtered(mixture, masks, rate)
    assert found.shape == (len(mixture), 2, 2)
    assert np.allclose(found[:, :, 0], mixture, atol=1e-5)
    assert not found[:, :, 1].any()


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_mask_acts_at_its_own_time_and_frequency(rate: int) -> None:
    time = np.arange(2 * rate) / rate
    low, high = np.sin(2 * np.pi * 500 * time), np.sin(2 * np.pi * 3000 * time)
    mixture = (low + high).astype(np.float32)[:, None]
    masks = np.zeros((200, 1, 1, 64), np.float32)
    centres = band_weights(np.array([500, 3000], np.float32), 64, 8000) > 0
    masks[:100, :, :, centres[0]] = 1
    masks[100:, :, :, centres[1]] = 1
    found = filtered(mixture, masks, rate)[:, 0, 0]
    edge = int(0.05 * rate)
    for span, wanted in ((slice(edge, rate - edge), low), (slice(rate + edge, 2 * rate - edge), high)):
        assert np.abs(found[span] - wanted[span]).max() < 0.03
    # Half-way through, the masks cross: the low tone has faded by half a window.
    fade = np.abs(found[rate - 3 * edge : rate + 3 * edge] * np.sqrt(2))
    assert fade.max() < 2


def test_above_what_the_model_hears_the_mask_goes_on() -> None:
    mixture = normal(96_000, 1)
    masks = np.full((200, 1, 1, 64), 0.25, np.float32)
    masks[:, :, :, :50] = 1
    found = filtered(mixture, masks, 48_000)[:, 0, 0]
    gain = np.abs(np.fft.rfft(found)) / np.maximum(np.abs(np.fft.rfft(mixture[:, 0])), 1e-9)
    frequencies = np.fft.rfftfreq(96_000, 1 / 48_000)
    assert np.median(gain[(frequencies > 9000)]) == pytest.approx(0.25, abs=0.02)
    assert np.median(gain[(frequencies > 200) & (frequencies < 2000)]) == pytest.approx(1, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(
    rate=st.sampled_from([1000, 16_000, 48_000]),
    samples=st.integers(1, 9000),
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=3),
    level=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
)
def test_a_mixture_in_blocks_is_filtered_as_the_whole(
    rate: int, samples: int, sizes: list[int], level: float
) -> None:
    mixture = normal(samples, 2) * np.float32(level)
    masks = np.abs(normal(1 + samples * 100 // rate, 1, 2, 64))
    whole, found = filtered(mixture, masks, rate), filtered(mixture, masks, rate, sizes)
    assert found.shape == whole.shape == (samples, 2, 2)
    assert np.abs(found - whole).max() <= 1e-5 * np.abs(whole).max()


def test_many_frames_are_filtered_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, masks = normal(30_000, 1), np.abs(normal(188, 1, 1, 64))
    whole = filtered(mixture, masks, 16_000)
    monkeypatch.setattr("flowsep_runtime.separation.masking.BLOCK_FRAMES", 7)
    assert np.allclose(filtered(mixture, masks, 16_000), whole, atol=1e-6)


def test_windows_average_by_their_weights_and_silence_stands_where_none_has_any() -> None:
    mean = WindowMean((2, 3), silence=-1)
    first, second = normal(6, 2, 3), normal(6, 2, 3, seed=1)
    weights = np.ones((6, 2), np.float32)
    weights[:, 1] = 0
    mean.add(0, first, weights)
    assert np.array_equal(mean.take(4)[:, 0], first[:4, 0])
    mean.add(2, second, 3 * np.ones((6, 2), np.float32))
    found = mean.take(8)
    assert np.allclose(found[:2, 0], (first[4:, 0] + 3 * second[2:4, 0]) / 4)
    assert np.allclose(found[:, 1], second[2:, 1])
    mean.add(8, first, np.zeros((6, 2), np.float32))
    assert (mean.take(14) == -1).all()
