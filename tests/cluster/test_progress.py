"""Lines about a run on stderr."""

from __future__ import annotations

import time

import pytest

from flowsep_batch.progress import Progress, span
from flowsep_batch.work import Row


def test_the_estimate_follows_the_pace_of_late(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told = Progress("flowsep-batch", 3000)
    for number in range(1000):  # done before, in ten seconds
        now = 1000 + number / 100
        told.add([Row("a", "dog", "b", "done before")])
    for _ in range(500):  # then one a second
        now += 1
        told.add([Row("a", "dog", "b", "done")])
    told.add([Row("c.wav", "dog", "d", "failed", error="It is\nbroken.")] * 2)
    assert told.line().startswith("1501 of 3000 recordings, 2 results failed, 60.")
    assert told.line().endswith("about 24 min 55 s left")
    assert told.summary().endswith("results: 500 done, 1000 done before, 2 failed")
    said = capsys.readouterr().err.splitlines()
    assert said.count("flowsep-batch: c.wav: It is broken.") == 1
    assert len(said) < 25


def test_a_time_is_said_in_two_units() -> None:
    assert [span(value) for value in (5.4, 61, 7260, 200_000)] == ["5 s", "1 min 1 s", "2 h 1 min", "2 d 7 h"]
