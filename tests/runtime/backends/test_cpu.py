"""The backend cpu."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from flowsep_runtime import Pipeline
from flowsep_runtime.separator import BUNDLED


def resident() -> int:
    """Memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_large_run_is_given_back_by_the_second_smaller_one() -> None:
    pipeline = Pipeline.load(BUNDLED, "cpu", threads=1)
    large, small = (np.zeros((rows, 160 * 1024), np.float32) for rows in (32, 1))
    pipeline.log_mel(small)
    before = resident()
    pipeline.log_mel(large)
    kept = resident() - before
    pipeline.log_mel(small)
    assert resident() - before > kept / 2  # the rest of rows that go through some by some
    pipeline.log_mel(small)
    assert kept > 50e6 and resident() - before < kept / 2


def test_rows_that_go_through_some_by_some_keep_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.load(BUNDLED, "cpu", threads=1)
    monkeypatch.setattr(pipeline.backend, "_giving_back", lambda: pytest.fail("memory was given back"))
    for rows in (4, 1, 4, 1, 4, 2, 4, 4):
        pipeline.log_mel(np.zeros((rows, 160 * 64), np.float32))
