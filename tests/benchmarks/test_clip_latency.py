"""`benchmarks.clip_latency` on the toy bundle: what it prints, not how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import clip_latency
from benchmarks.clip_latency import main, summary
from flowsep_runtime import Pipeline
from tests.gpu.doubles import VERSIONS, installed
from tests.runtime.toy_bundle import MODEL, write_toy_bundle

STAGES = ["log_mel", "encode_mixture", "solve", "decode_latent", "vocode"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


def test_every_round_and_stage_is_told(toy: Path) -> None:
    arguments = [f"--bundle={toy}", "--backend=cpu", "--batch=2", "--rounds=3", "--json"]
    answer = json.loads(CliRunner().invoke(main, arguments, catch_exceptions=False).stdout)
    assert (answer["backend"], answer["steps"], answer["gpu_bytes"]) == ("cpu", MODEL.default_steps, None)
    assert {stage: len(times) for stage, times in answer["seconds"].items()} == {
        "preparation": 1,
        **dict.fromkeys(STAGES, 3),
        "clip": 3,
    }
    assert all(sum(answer["seconds"][s][k] for s in STAGES) <= answer["seconds"]["clip"][k] for k in range(3))


def test_the_table_has_a_row_a_stage(toy: Path) -> None:
    arguments = [f"--bundle={toy}", "--backend=cpu", "--rounds=2"]
    lines = CliRunner().invoke(main, arguments, catch_exceptions=False).stdout.splitlines()
    assert [line.split()[1] for line in lines[4:11]] == ["preparation", *STAGES, "clip"]
    assert lines[-1].startswith("real-time factor ")


def test_the_real_time_factor_counts_every_clip_of_the_batch(toy: Path) -> None:
    pipeline = Pipeline.load(toy, "cpu")
    seconds = MODEL.clip_samples / MODEL.sample_rate
    rows = summary(pipeline, {"clip": [seconds, 3 * seconds, seconds]}, batch=2)
    assert rows["clip"]["real_time_factor"] == pytest.approx(0.5)
    assert rows["clip"]["p50"] == pytest.approx(1e3 * seconds)


def test_gpu_memory_is_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed(VERSIONS[-1]) as machine:
        total = machine.cuda.free_bytes
        machine.cuda.cudaSetDevice(0)
        machine.cuda.cudaMalloc(4096)
        assert clip_latency.gpu_memory_in_use() == 4096
        assert total == machine.cuda.free_bytes + 4096
