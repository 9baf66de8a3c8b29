"""Properties of the statistics: whatever was measured, these hold."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common.spread import DISTURBED_ABOVE, Summary, quietest, ratio, weighted_sum

times = st.floats(1e-6, 1e4)
rounds = st.lists(times, min_size=1, max_size=12).map(lambda values: Summary(tuple(values)))
pairs = st.lists(st.tuples(times, times), min_size=1, max_size=12)


@given(rounds)
def test_median_and_percentile_lie_in_the_range(found: Summary) -> None:
    assert found.low <= found.median <= found.p95 * (1 + 1e-12) <= found.high * (1 + 1e-9)


@given(rounds, st.floats(1e-3, 1e3))
def test_a_slower_clock_changes_no_verdict(found: Summary, factor: float) -> None:
    scaled = Summary(tuple(factor * value for value in found.values))
    closest = min(abs(found.p95 / found.median - DISTURBED_ABOVE), 1.0)
    if closest > 1e-9:
        assert scaled.is_disturbed == found.is_disturbed
    assert scaled.median == pytest.approx(factor * found.median)


@given(times, st.integers(1, 12))
def test_equal_rounds_are_not_disturbed(value: float, count: int) -> None:
    assert not Summary((value,) * count).is_disturbed


def test_zero_seconds_are_a_valid_measurement() -> None:
    assert not Summary((0.0, 0.0, 0.0)).is_disturbed  # features, where low memory computes them in the loop
    assert Summary((0.0, 0.0, 1.0)).is_disturbed and Summary((0.0, 1.0, 1.0)).is_disturbed


@pytest.mark.parametrize("values", [(1.0, 1.0, 3.0), (3.0, 3.0, 1.0)])
def test_a_round_far_off_on_either_side_disturbs(values: tuple[float, ...]) -> None:
    found = Summary(values)
    assert found.is_disturbed
    plain = found.plain()
    assert plain["median"] is None and plain["p95"] is None and plain["values"] == list(values)
    json.dumps(plain, allow_nan=False)


@given(pairs, st.floats(0.5, 2.0))
def test_a_drift_in_both_cancels_in_their_ratio(found: list[tuple[float, float]], drift: float) -> None:
    ours, theirs = (Summary(tuple(side)) for side in zip(*found, strict=True))
    drifted = [Summary(tuple(v * drift**k for k, v in enumerate(s.values))) for s in (ours, theirs)]
    assert ratio(*drifted).values == pytest.approx(ratio(ours, theirs).values)


@given(pairs)
def test_a_weighted_sum_multiplies_each_part(found: list[tuple[float, float]]) -> None:
    first, second = (Summary(tuple(side)) for side in zip(*found, strict=True))
    whole = weighted_sum([(1, first), (20, second)])
    assert whole.values == pytest.approx([a + 20 * b for a, b in found])


def test_parts_of_different_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds"):
        weighted_sum([(1, Summary((1.0,))), (1, Summary((1.0, 2.0)))])
    with pytest.raises(ValueError):
        ratio(Summary((1.0,)), Summary((1.0, 2.0)))
    with pytest.raises(ValueError):
        Summary(())


@given(st.lists(st.tuples(times, times), min_size=1, max_size=12), st.integers(1, 12))
def test_the_rounds_that_are_kept_spread_no_wider_than_all(
    values: list[tuple[float, float]], count: int
) -> None:
    found = [{"a": a, "b": b} for a, b in values]
    kept = quietest(found, count)
    assert len(kept) == min(count, len(found)) and kept == sorted(kept)
    for name in ("a", "b"):
        of_all, of_kept = ([found[k][name] for k in which] for which in (range(len(found)), kept))
        assert max(of_kept) / min(of_kept) <= max(of_all) / min(of_all)


def test_a_round_with_one_disturbed_number_goes_as_a_whole() -> None:
    found = [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 3.0}, {"a": 1.1, "b": 1.0}, {"a": 0.2, "b": 1.0}]
    assert quietest(found, 2) == [0, 2] and quietest(found, 3) == [0, 1, 2]
    assert quietest([{"a": 0.0}, {"a": 0.5}, {"a": 0.0}], 2) == [0, 2]
