"""Properties of the metrics on any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowsep_eval import metrics
from flowsep_eval.bootstrap import Resamples
from flowsep_eval.mel import mel_magnitudes
from flowsep_runtime import Pipeline
from flowsep_runtime.separator import BUNDLED
from tests.evaluation.conftest import Floats, tone

seeds = st.integers(0, 2**32 - 1)
gains = st.floats(1e-3, 1e3)
quick = settings(max_examples=40, deadline=None)


def bands(seed: int) -> Floats:
    """A made-up mel spectrogram `[20, 64]` of wide range."""
    return np.exp(2 * np.random.default_rng(seed).standard_normal((20, 64))).astype(np.float32)


def waveform(seed: int, samples: int = 400) -> Floats:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


@given(seeds, seeds, gains)
@quick
def test_the_log_mel_distance_is_a_distance_and_knows_no_level(a: int, b: int, gain: float) -> None:
    x, y = bands(a), bands(b)
    floor = metrics.floor_below(x + y)
    distance = metrics.log_mel_distance(x, y, floor)
    assert metrics.log_mel_distance(x, x, floor) == 0
    assert metrics.log_mel_distance(y, x, floor) == distance >= 0
    scale = np.float32(gain)
    scaled = metrics.log_mel_distance(x * scale, y * scale, metrics.floor_below((x + y) * scale))
    assert scaled == pytest.approx(distance, abs=1e-3)


def test_the_log_mel_distance_counts_decibels() -> None:
    x = bands(0)
    assert metrics.log_mel_distance(10 * x, x, 1e-9) == pytest.approx(20, rel=1e-5)
    # the mixture's loudest band against silence is all of the range, and it is no more for a still lower one
    loud = np.ones((5, 64), np.float32)
    floor = metrics.floor_below(loud)
    assert metrics.log_mel_distance(loud, np.zeros_like(loud), floor) == pytest.approx(60, rel=1e-5)


@given(seeds, seeds, gains)
@quick
def test_si_sdr_knows_no_level(a: int, b: int, gain: float) -> None:
    x, y = waveform(a), waveform(b)
    ratio = metrics.si_sdr(x, y)
    assert -60 <= ratio <= 60
    assert metrics.si_sdr(x * np.float32(gain), y) == pytest.approx(ratio, abs=1e-2)
    assert metrics.si_sdr(x, y * np.float32(gain)) == pytest.approx(ratio, abs=1e-2)
    assert metrics.si_sdr(-x, y) == pytest.approx(ratio)
    assert metrics.si_sdr(y, y) == 60


@pytest.mark.parametrize("snr", [-20.0, 0.0, 30.0])
def test_si_sdr_is_the_signal_to_noise_ratio_of_orthogonal_noise(snr: float) -> None:
    signal, noise = tone(500.0, 1.0), tone(750.0, 1.0)
    assert metrics.si_sdr(signal + noise * 10 ** (-snr / 20), signal) == pytest.approx(snr, abs=1e-2)


def test_silence_has_a_score_and_a_silent_target_none() -> None:
    x = waveform(1)
    assert metrics.si_sdr(np.zeros_like(x), x) == -60
    assert math.isnan(metrics.si_sdr(x, np.zeros_like(x)))
    assert metrics.attenuation(np.zeros_like(x), x) == pytest.approx(60)
    assert metrics.level_error(np.zeros_like(x), x, x) == pytest.approx(60)


@given(seeds, st.floats(-55, 40))
@quick
def test_levels_are_decibels(seed: int, change: float) -> None:
    x = waveform(seed)
    changed = (x * 10 ** (change / 20)).astype(np.float32)
    assert metrics.level_db(changed, x) == pytest.approx(change, abs=1e-3)
    assert metrics.level_error(changed, x, x) == pytest.approx(abs(change), abs=1e-3)
    assert metrics.level_error(x, changed, x) == metrics.level_error(changed, x, x)
    assert metrics.attenuation(changed, x) == pytest.approx(-change, abs=1e-3)


@given(seeds)
@quick
def test_the_frechet_distance_of_a_set_to_itself_is_nothing_and_to_a_shifted_one_the_shift(seed: int) -> None:
    a = np.random.default_rng(seed).standard_normal((12, 5)).astype(np.float32)
    shift = np.arange(5, dtype=np.float32)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_distance(a, a + shift) == pytest.approx(30, rel=1e-4)


def test_the_frechet_distance_has_the_closed_form_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((40, 3)).astype(np.float32)
    b = (rng.standard_normal((30, 3)) @ np.diag([1.0, 2.0, 3.0])).astype(np.float32)
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(first + second) - 2 * root
    assert metrics.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-4)
    assert metrics.frechet_distance(b, a) == pytest.approx(wanted, rel=1e-4)


def test_cosine_similarity_is_signed_and_zero_for_silence() -> None:
    x = waveform(3)
    assert metrics.cosine_similarity(x, 5 * x) == pytest.approx(1)
    assert metrics.cosine_similarity(x, -x) == pytest.approx(-1)
    assert metrics.cosine_similarity(x, np.zeros_like(x)) == 0


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(-100, 100)), seeds)
@quick
def test_the_interval_holds_the_mean(values: np.ndarray, seed: int) -> None:
    estimate = Resamples(len(values), seed).mean(values)
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    assert estimate.mean == pytest.approx(values.mean(), abs=1e-9)
    assert values.min() - 1e-9 <= estimate.low <= estimate.mean <= estimate.high <= values.max() + 1e-9


def test_the_interval_is_as_wide_as_the_standard_error_says() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    estimate = Resamples(400).mean(values)
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert Resamples(400).mean(values) == estimate
    assert Resamples(400, seed=1).mean(values) != estimate


def test_rows_to_which_a_metric_does_not_apply_are_left_out() -> None:
    resamples = Resamples(4)
    found = resamples.mean(np.array([1.0, np.nan, 3.0, np.nan]))
    assert found is not None and (found.mean, found.count) == (2.0, 2)
    assert resamples.mean(np.full(4, np.nan)) is None


def test_the_ratio_is_of_means_over_the_same_rows() -> None:
    below = np.array([1.0, 2.0, 30.0, np.nan])
    found = Resamples(4).ratio(below / 2, below)
    assert found is not None
    assert (found.mean, found.low, found.high, found.count) == (0.5, 0.5, 0.5, 3)
    assert Resamples(2).ratio(np.ones(2), np.zeros(2)) is None


def test_the_mel_bands_are_those_of_the_models_front_end() -> None:
    x = 0.1 * waveform(5, 163840)
    (wanted,) = Pipeline.load(BUNDLED, threads=1).log_mel(x[None])
    found = mel_magnitudes(x)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(np.log(np.maximum(found, 1e-5)), wanted, atol=2e-3)


@pytest.mark.parametrize("samples", [1, 159, 160, 1000])
def test_any_length_has_a_spectrogram(samples: int) -> None:
    assert mel_magnitudes(np.ones(samples, np.float32)).shape == (max(1, samples // 160), 64)
