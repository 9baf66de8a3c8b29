"""Files a minute, on little; no test asserts a time."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile

from benchmarks.latency.batch import report
from tests.benchmarks.conftest import Program
from tests.runtime.toy_bundle import write_toy_bundle


def test_the_start_is_taken_off() -> None:
    ones = {"flowsep-run": [2.0, 2.0], "flowsep-batch": [12.0, 12.0]}
    alls = {"flowsep-run": [62.0, 62.0], "flowsep-batch": [42.0, 42.0]}
    *_, theirs, ours = report(ones, alls, 61).splitlines()
    assert [cell.strip() for cell in theirs.split("|")[1:6]] == [
        "flowsep-run",
        "2.00",
        "62.0",
        "59.0",
        "60.0",
    ]
    assert [cell.strip()[:4] for cell in ours.split("|")[4:8]] == ["87.1", "120", "1.48", "2.00"]


@pytest.mark.slow
def test_both_programs_are_measured(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="batches need Ray: pip install '.[cluster]'")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    with TemporaryDirectory(prefix="ray-") as folder:  # short, since names of sockets are
        monkeypatch.setenv("RAY_TMPDIR", folder)
        _measure(program, tmp_path)


def _measure(program: Program, tmp_path: Path) -> None:
    recording, found = tmp_path / "mix.wav", tmp_path / "batch.json"
    soundfile.write(recording, np.random.default_rng(0).uniform(-0.3, 0.3, 4000), 16000)
    bundle = write_toy_bundle(tmp_path / "toy")
    arguments = ("--files", 2, "--rounds", 1, "--recording", recording)
    done = program("latency.batch", *arguments, "--bundle", bundle, "--backend", "cpu", "--json", found)
    assert done.returncode == 0, done.stderr
    rows = json.loads(found.read_text())["rows"]
    assert [row["program"] for row in rows] == ["flowsep-run", "flowsep-batch, --cpus 1"]
    assert all(len(row["all"]) == 1 for row in rows)
