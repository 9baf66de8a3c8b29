"""The signal-to-noise ratio of arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowsep_runtime.arrays import snr_db


@given(st.integers(0, 2**32 - 1), st.floats(-40, 120))
def test_noise_of_a_known_level_is_found_again(seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    signal, noise = rng.standard_normal((2, 64))
    noise *= 10 ** (-level / 20) * np.linalg.norm(signal) / np.linalg.norm(noise)
    assert snr_db([signal], [signal + noise]) == pytest.approx(level, abs=0.01)


def test_snr_is_infinite_for_equal_arrays_and_nan_for_invalid_ones() -> None:
    ones = np.ones((2, 3), np.float32)
    assert snr_db([ones], [ones]) == math.inf
    assert math.isnan(snr_db([ones], [np.full_like(ones, np.nan)]))
    assert math.isnan(snr_db([ones], [ones[:1]]))
    assert snr_db([0 * ones], [ones]) == -math.inf
