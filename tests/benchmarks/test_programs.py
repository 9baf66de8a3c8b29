"""The three programs as a user calls them, on little; no test asserts a time."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from runpy import run_module

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.benchmarks.conftest import ROOT, Program
from tests.conftest import Ended
from tests.export.conftest import *  # noqa: F403
from tests.export.conftest import Exported

pytestmark = pytest.mark.slow

RATE = 16000
SHORT = ("--seconds", 0.32, "--threads", 1)


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tones, and a sound that is not there."""
    folder = tmp_path_factory.mktemp("set")
    n = np.arange(RATE // 2)
    low, high = (0.2 * np.sin(2 * np.pi * f * n / RATE).astype(np.float32) for f in (300, 3000))
    for name, sound in (("low", low), ("high", high), ("mix", low + high)):
        soundfile.write(folder / f"{name}.wav", sound, RATE, "FLOAT")
    rows = [
        {"mixture": "mix.wav", "query": "a low tone", "target": "low.wav", "other": "high.wav"},
        {"mixture": "mix.wav", "query": "rain", "target": None},
    ]
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_latency_of_tiny_sizes(
    program: Program, tiny_checkpoint: Path, tiny_config: Path, tiny_bundle: Exported, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("latency.json", "latency.md", "latency.png")]
    outputs = [
        word
        for option, file in zip(("--json", "--markdown", "--picture"), files, strict=True)
        for word in (option, file)
    ]
    model = ("--checkpoint", tiny_checkpoint, "--config", tiny_config, "--bundle", tiny_bundle.folder)
    what = ("--steps", 1, "--rounds", 2, "--backends", "eager,cpu")
    answer = program("latency", *model, *what, *SHORT, "--work", tmp_path / "work", *outputs)
    assert (answer.returncode, answer.stderr) == (0, "")
    content = json.loads(files[0].read_text(encoding="utf-8"))
    assert list(content["contestants"]) == ["eager", "cpu"]
    assert content["settings"]["evaluations"] == 1
    ours = content["contestants"]["cpu"]
    assert ours["clip"]["snr_db"] > 80
    assert set(ours["stages"]) == {
        "log_mel",
        "encode_text",
        "encode_mixture",
        "velocity",
        "features",
        "decode_latent",
        "vocode",
    }
    for stage in ours["stages"].values():
        assert len(stage["seconds"]["values"]) == 2
        assert (stage["seconds"]["median"] is None) == stage["seconds"]["disturbed"]
        assert stage["snr_db"] is None or stage["snr_db"] == "equal" or stage["snr_db"] > 80
    assert content["contestants"]["eager"]["clip"]["snr_db"] == "equal"
    assert min(ours["cold_start_seconds"].values()) > 0 and ours["peak_bytes"] > 1 << 20
    assert ours["disk_bytes"] > 1 << 20 and ours["remarks"] == []
    text = files[1].read_text(encoding="utf-8")
    assert text == answer.stdout and "1 threads, 2 interleaved rounds" in text
    with Image.open(files[2]) as picture:
        assert picture.format == "PNG"
    assert list((tmp_path / "work").iterdir()) == []


def test_scaling_of_the_bundled_model(program: Program, tmp_path: Path) -> None:
    data, picture = tmp_path / "scaling.json", tmp_path / "scaling.png"
    lists = ("--seconds", "0.32,0.64,0.96", "--batch", "1,2", "--steps", "1", "--threads", "1")
    answer = program(
        "latency.scaling", "--sizes", "bundled", "--backend", "cpu", *lists, "--rounds", 2,
        "--work", tmp_path, "--json", data, "--picture", picture,
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "")
    content = json.loads(data.read_text(encoding="utf-8"))
    assert content["contestant"] == "cpu"
    sweeps = content["sweeps"]
    assert [point["x"] for point in sweeps["seconds"]["points"]] == pytest.approx([0.32, 0.64, 0.96])
    assert [point["x"] for point in sweeps["batch"]["points"]] == [1, 2]
    assert sweeps["seconds"]["peak_mb"]["law"] in ("linear", "power")
    assert sweeps["batch"]["peak_mb"] is None
    # the place that all sweeps share is measured once
    shared = [sweeps[name]["points"][0] | {"x": 0} for name in sweeps]
    assert all(point == shared[0] for point in shared)
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"


def test_quality_of_the_bundled_model(program: Program, test_set: Path, tmp_path: Path) -> None:
    data, picture = tmp_path / "quality.json", tmp_path / "quality.png"
    answer = program(
        "quality", "--manifest", test_set, "--backends", "cpu", "--steps", "1,2", "--solvers", "euler",
        "--reference", "euler:2", "--converged-steps", 3, "--converged-items", 1, "--threads", 1,
        "--json", data, "--picture", picture,
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "")
    rows = json.loads(data.read_text(encoding="utf-8"))["rows"]
    assert [(row["steps"], row["evaluations"]) for row in rows] == [(2, 2), (1, 1)]
    name = test_set.parent.name
    for row in rows:
        assert row["sets"][name]["query_accuracy"]["count"] == 1
        assert row["sets"][name]["attenuation"]["count"] == 1
        assert row["failed"] == 0
    assert rows[0]["distance_to_reference"]["mean"] == 0
    # a finer grid ends nearer to the finest
    errors = [row["error_to_converged"]["mean"] for row in rows]
    assert 0 < errors[0] < errors[1] and all(map(math.isfinite, errors))
    assert "cpu, euler-1" in answer.stdout
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("latency", ["--backends", "nobody"], "There is no contestant 'nobody'"),
        ("latency", ["--device", "cuda"], "There is no GPU to measure on: there is no NVIDIA driver here"),
        ("latency", ["--solver", "guess"], "There is no solver 'guess'"),
        ("latency", ["--json", "nowhere/file.json"], "There is no folder nowhere"),
        ("latency", ["--bundle", "."], "give both"),
        (
            "latency.scaling",
            ["--backend", "cuda-fast"],
            "cuda-fast cannot take part: this onnxruntime is for CPUs",
        ),
        ("latency.scaling", ["--batch", "1,two"], "--batch takes numbers"),
        ("latency.scaling", ["--seconds", "0"], "--seconds takes numbers above 0"),
        ("quality", ["--manifest", "none.jsonl", "--reference", "euler"], "--reference is a solver"),
        ("quality", ["--manifest", "none.jsonl", "--backends", "eager"], "There is no backend 'eager'"),
        ("quality", ["--manifest", "none.jsonl"], "none.jsonl cannot be read"),
    ],
)
def test_misuse_is_one_sentence(
    ended: Ended, name: str, options: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    program = partial(run_module, f"benchmarks.{name}", run_name="__main__")
    code, out, err = ended(program, *options)
    assert code == 2
    assert sentence in err and err.count("\n") == 1 and out == ""
