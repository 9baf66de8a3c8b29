"""The load on a server, on little; no test asserts a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.benchmarks.conftest import Program
from tests.runtime.toy_bundle import write_toy_bundle


@pytest.mark.slow
def test_a_server_and_as_many_processes_are_measured(program: Program, tmp_path: Path) -> None:
    recording, found = tmp_path / "mix.wav", tmp_path / "serving.json"
    soundfile.write(recording, np.random.default_rng(0).uniform(-0.3, 0.3, 4000), 16000)
    bundle = write_toy_bundle(tmp_path / "toy")
    arguments = ("--clients", "1,2", "--requests", 1, "--soak", 1, "--recording", recording)
    done = program("latency.serving", *arguments, "--bundle", bundle, "--backend", "cpu", "--json", found)
    assert done.returncode == 0, done.stderr
    rows = json.loads(found.read_text())["rows"]
    assert [(row["program"], row["clients"], len(row["seconds"])) for row in rows] == [
        ("flowsep-serve", 1, 1),
        ("flowsep-serve", 2, 2),
        ("flowsep-run", 1, 1),
        ("flowsep-run", 2, 2),
    ]
    assert "told to come back" in done.stdout and "Memory" in done.stdout
