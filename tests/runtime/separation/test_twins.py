"""Channels that hold the same samples are computed once, and come out as if each had been."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from flowsep_runtime import Separator
from flowsep_runtime.options import JOININGS, KINDS
from flowsep_runtime.separation.twins import leaders
from tests.runtime.test_separator import noise
from tests.runtime.toy_bundle import MODEL

CLIP, RATE = MODEL.clip_samples, MODEL.sample_rate


@pytest.fixture
def rows(separator: Separator, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Rows that went through each graph."""
    counted: dict[str, int] = {}
    run = separator.pipeline.backend.run

    def count(graph: str, inputs: Any, *more: Any, **options: Any) -> Any:
        if not graph.startswith("encode_text"):
            counted[graph] = counted.get(graph, 0) + len(next(iter(inputs.values())))
        return run(graph, inputs, *more, **options)

    monkeypatch.setattr(separator.pipeline.backend, "run", count)
    yield counted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("windows", JOININGS)
@pytest.mark.parametrize("length", [CLIP // 2, 7 * CLIP])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_two_channels_that_are_equal_cost_one(
    separator: Separator, rows: dict[str, int], kind: Any, windows: Any, length: int, rate: int
) -> None:
    audio = noise(int(length * rate / RATE))
    options: dict[str, Any] = {"steps": 2, "kind": kind, "windows": windows}
    alone = separator.separate(audio, rate, "rain", **options).target
    cost = dict(rows)
    rows.clear()
    both = separator.separate(np.stack([audio, audio], axis=1), rate, "rain", **options).target
    assert rows == cost and rows["velocity"] >= 2
    assert np.array_equal(both[:, 0], both[:, 1]) and np.array_equal(both[:, 0], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_part_later_are_each_what_they_are_alone(
    separator: Separator, rows: dict[str, int], kind: Any
) -> None:
    audio = np.repeat(noise(9 * CLIP)[:, None], 3, axis=1)
    audio[6 * CLIP :, 1] = noise(3 * CLIP, seed=1)
    audio[3 * CLIP :, 2] *= -1
    options: dict[str, Any] = {"steps": 2, "kind": kind}
    together = separator.separate_all(audio, RATE, ["rain", "dog"], **options)
    shared = rows["velocity"]
    rows.clear()
    for channel in range(3):
        alone = separator.separate_all(audio[:, channel], RATE, ["rain", "dog"], **options)
        for one, other in zip(alone, together, strict=True):
            scale = np.abs(one.target).max()
            assert np.abs(other.target[:, channel] - one.target).max() <= 1e-4 * scale
    assert shared < rows["velocity"]


def test_channels_that_become_equal_keep_their_own_past(separator: Separator) -> None:
    audio = np.repeat(noise(9 * CLIP)[:, None], 2, axis=1)
    audio[: 2 * CLIP, 1] = noise(2 * CLIP, seed=1)
    together = separator.separate(audio, RATE, "rain", steps=2).target
    for channel in range(2):
        alone = separator.separate(audio[:, channel], RATE, "rain", steps=2).target
        assert np.abs(together[:, channel] - alone).max() <= 1e-4 * np.abs(alone).max()


def test_a_column_is_led_by_the_first_that_equals_it() -> None:
    tracks = np.array([[1, 2, 1, 2, 1]], np.float32)
    assert leaders(tracks, np.zeros((1, 5))).tolist() == [0, 1, 0, 1, 0]
    assert leaders(tracks, np.array([[0, 0, 1, 0, 1]])).tolist() == [0, 1, 2, 1, 2]
