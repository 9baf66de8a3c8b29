"""A server under hostile requests, for seconds; `--seconds 3600` is for a night."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.conftest import Program
from tests.runtime.toy_bundle import write_toy_bundle


@pytest.mark.slow
def test_a_server_stands_hostile_requests(program: Program, tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "toy")
    done = program("latency.hostile", "--seconds", 5, "--bundle", bundle, "--backend", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "requests" in done.stdout
