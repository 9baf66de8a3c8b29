"""Benchmarks of long recordings, on little; no test asserts a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.quality.long_mixtures import RATE, long_mixtures
from benchmarks.quality.seams import scores, seams
from flowsep_eval import read_manifest
from flowsep_runtime.errors import OptionError
from tests.benchmarks.conftest import Program
from tests.runtime.toy_bundle import MODEL, write_toy_bundle


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings of 5 s each of two classes."""
    folder = tmp_path_factory.mktemp("set")
    rows = []
    for number, label in enumerate(("hum", "hiss") * 3):
        rng = np.random.default_rng(number)
        target = (0.1 * rng.standard_normal(5 * RATE)).astype(np.float32)
        soundfile.write(folder / f"{number}.wav", target, RATE, "FLOAT")
        rows.append(
            {"mixture": f"{number}.wav", "target": f"{number}.wav", "query": f"a {label}", "label": label}
        )
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_long_mixtures_are_made_of_pairs_of_classes(test_set: Path) -> None:
    made = long_mixtures(read_manifest(test_set), 8, 5, 0)
    assert [mixture.query for mixture in made] in (["a hum", "a hiss"], ["a hiss", "a hum"])
    for mixture in made:
        assert len(mixture.mixture) == len(mixture.target) == 8 * RATE
        assert np.abs(mixture.mixture).max() == pytest.approx(0.5)
        power, rest = (np.mean(each**2) for each in (mixture.target, mixture.mixture - mixture.target))
        assert power == pytest.approx(rest, rel=1e-4)
    with pytest.raises(OptionError, match="two classes"):
        long_mixtures(read_manifest(test_set), 20, 1, 0)


def test_a_perfect_output_has_no_seam_and_a_concatenated_one_has(test_set: Path) -> None:
    (mixture, *_) = long_mixtures(read_manifest(test_set), 8, 1, 0)
    places = seams(len(mixture.mixture), MODEL, "cross-fade")
    assert len(places) > 5
    perfect = scores(mixture.target, mixture, places)
    assert perfect.error == perfect.jump_at_seams == perfect.jump_elsewhere == 0
    glued = mixture.target.copy()
    for number, (first, _) in enumerate(places):
        glued[first * 160 :] *= 10 if number % 2 else 0.1
    found = scores(glued, mixture, places)
    assert found.error > 1 and found.jump_at_seams > found.jump_elsewhere + 1


@pytest.mark.slow
def test_seams_of_a_toy(program: Program, test_set: Path, toy: Path, tmp_path: Path) -> None:
    files = [tmp_path / "seams.json", tmp_path / "seams.md"]
    what = ("--manifest", test_set, "--bundle", toy, "--backend", "cpu", "--seconds", 8, "--mixtures", 2)
    answer = program("quality.seams", *what, "--steps", 1, "--json", files[0], "--markdown", files[1])
    assert (answer.returncode, answer.stderr) == (0, "")
    content = json.loads(files[0].read_text(encoding="utf-8"))
    assert set(content["scores"]) == {"joint", "cross-fade", "none"}
    assert all(len(rows) == 2 for rows in content["scores"].values())
    assert files[1].read_text(encoding="utf-8") == answer.stdout
    assert "| joint |" in answer.stdout


@pytest.mark.slow
def test_streaming_of_a_toy(program: Program, toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "streaming.json"
    what = ("--bundle", toy, "--backend", "cpu", "--seconds", "5,20", "--steps", 1, "--json", file)
    answer = program("latency.streaming", *what)
    assert (answer.returncode, answer.stderr) == (0, "")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [row["seconds"] for row in rows] == [5, 20]
    assert all(row["largest_lag_seconds"] >= row["first_part_after_seconds"] > 0 for row in rows)
    assert "| 20 s |" in answer.stdout
