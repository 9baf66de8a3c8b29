"""`flowsep-eval` as a user meets it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from flowsep_eval import evaluate, read_manifest
from flowsep_eval.cli import main
from flowsep_eval.writing import set_names
from flowsep_runtime import Separator
from flowsep_runtime.errors import OptionError
from flowsep_runtime.separator import BUNDLED
from tests.conftest import Ended
from tests.evaluation.conftest import write_manifest

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "mix.wav"


def call(scripts: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [scripts / "flowsep-eval", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def other_set(test_set: Path) -> Path:
    """A second set, of one sound that is not there."""
    folder = test_set.parent / "absent"
    folder.mkdir()
    return write_manifest(
        folder / "manifest.jsonl", {"mixture": "../mix.wav", "query": "2$ of $x_", "kind": "absent"}
    )


#: Prints the library's scores of a bundle on a manifest.
SCORES = """
import json, sys
from flowsep_eval import evaluate, read_manifest
from flowsep_runtime import Separator
separator = Separator.load(sys.argv[1], threads=1)
scores = evaluate(separator, read_manifest(sys.argv[2]), steps=2, seed=5, kind="masked")
means = {name: estimate.mean for name, estimate in scores.overall().items()}
print(json.dumps({"means": means, "seeds": [score.seed for score in scores.scored]}))
"""


def test_a_report_of_two_sets(
    scripts: Path, toy_bundle: Path, test_set: Path, other_set: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    options = ("--bundle", toy_bundle, "--steps", 2, "--threads", 1, "--seed", 5, "--kind=masked", "--json")
    answer = call(scripts, "run", test_set, other_set, "-o", report, *options)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert {path.name for path in report.iterdir()} == {
        "report.json",
        "report.md",
        "classes.png",
        "examples.png",
    }
    content = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert "masked: 2 steps of euler; exact" in (report / "report.md").read_text(encoding="utf-8")
    assert content["settings"]["steps"] == 2 and content["settings"]["seed"] == 5
    assert content["bundle"]["name"] == "toy" and len(content["bundle"]["digest"]) == 64
    assert content["versions"]["numpy"] and content["seconds_per_clip"] > 0
    assert {name: found["count"] for name, found in content["sets"].items()} == {"mine": 3, "absent": 1}
    assert set(content["sets"]["mine"]["classes"]) == {"high", "low", "rain"}
    assert set(content["classes"]) == {"high", "low", "rain", "2$ of $x_"}

    # the file says what the library says, in a process of its own as the command was
    library = subprocess.run(
        [sys.executable, "-c", SCORES, toy_bundle, test_set], capture_output=True, text=True, check=True
    )
    expected = json.loads(library.stdout)
    for name, mean in expected["means"].items():
        assert content["sets"]["mine"]["overall"][name]["mean"] == pytest.approx(mean), name
    rows = content["sets"]["mine"]["items"]
    assert [row["seed"] for row in rows] == expected["seeds"]
    assert rows[2]["source"] == "none" and rows[2]["kind"] == "absent"

    short = json.loads(answer.stdout)
    assert short["overall"] == content["overall"] and "items" not in short["sets"]["mine"]
    tables = (report / "report.md").read_text(encoding="utf-8")
    for words in ("# Evaluation of toy", "| mine | 3 |", "| all sets | 4 |", "doing nothing", "perfect flow"):
        assert words in tables
    for name in ("classes.png", "examples.png"):
        with Image.open(report / name) as picture:
            assert min(picture.size) > 100

    again = call(scripts, "run", test_set, "-o", report, *options)
    assert again.returncode == 2
    assert again.stderr.startswith("flowsep-eval: ") and "report.json exists already" in again.stderr


def test_a_report_is_replaced_on_demand(
    scripts: Path, toy_bundle: Path, test_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text("old")
    options = ("--bundle", toy_bundle, "--steps", 1, "--limit", 2, "--no-ceiling", "--force")
    answer = call(scripts, "run", test_set, "-o", tmp_path, *options)
    assert (answer.returncode, answer.stderr) == (0, "")
    # without --kind both kinds are scored, and each has its own ceiling
    first, second, *_ = answer.stdout.splitlines()
    assert first.startswith("mine, generated: 2 queries, query accuracy, % ")
    assert second.startswith("mine, masked: 2 queries, query accuracy, % ")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["sets"]["mine, masked"]["count"] == content["sets"]["mine, generated"]["count"] == 2
    assert not any(name.endswith("_ceiling") for name in content["overall"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "Missing argument 'MANIFEST...'"),
        (["run", "no.jsonl", "-o", "r"], "no.jsonl cannot be read"),
        (["run", "MANIFEST", "-o", "r", "--solver", "magic"], "magic"),
        (["run", "MANIFEST", "-o", "r", "--clap", "no"], "no is no CLAP checkpoint"),
        (["run", "MANIFEST", "-o", "r", "--bundle", "no"], "no"),
        (["run", "MANIFEST", "MANIFEST", "-o", "r"], "given twice"),
        (["run", "MANIFEST", "-o", "MANIFEST"], "cannot be made"),
        (["build", "--sounds", "s"], "Missing option '--captions'"),
        (["build", "--sounds", "s", "--captions", "c", "-o", "t", "--count", "0"], "--count"),
    ],
)
def test_wrong_calls_are_one_sentence(
    arguments: list[str], words: str, ended: Ended, test_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(test_set.parent)
    known = {"MANIFEST": test_set.name}
    code, out, err = ended(main, *(known.get(argument, argument) for argument in arguments))
    assert code == 2
    assert err.startswith("flowsep-eval: ") and err.count("\n") == 1
    assert words in err and out == ""


def test_audio_is_looked_at_before_anything_is_separated(
    scripts: Path, toy_bundle: Path, test_set: Path, other_set: Path, tmp_path: Path
) -> None:
    """The fault is at the end of the last set, where it would otherwise be found after hours."""
    soundfile.write(tmp_path / "silent.wav", np.zeros(99), 16000)
    row = {"mixture": "../silent.wav", "query": "rain", "target": None}
    with other_set.open("a") as file:
        file.write(json.dumps(row) + "\n")
    options = ("-o", tmp_path / "r", "--bundle", toy_bundle, "--steps", 10_000)
    answer = call(scripts, "run", test_set, other_set, *options)
    assert answer.returncode == 2
    assert answer.stderr == f"flowsep-eval: {other_set} line 2: the mixture is silent: leave the row out.\n"


def test_a_repeated_warning_is_printed_once(
    scripts: Path, toy_bundle: Path, test_set: Path, tmp_path: Path
) -> None:
    long = "rain " * 60
    manifest = write_manifest(
        test_set, *({"mixture": "mix.wav", "query": long, "target": None} for _ in "ab")
    )
    answer = call(scripts, "run", manifest, "-o", tmp_path / "r", "--bundle", toy_bundle, "--steps", 1)
    assert answer.returncode == 0
    assert answer.stderr.count("warning") == 1 and "is cut" in answer.stderr


def test_sets_are_named_by_folder_or_file(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/manifest.jsonl", "b/manifest.jsonl", "a.jsonl", "mine.jsonl")]
    assert set_names(paths) == ["a", "b", "a-2", "mine"]
    with pytest.raises(OptionError, match="given twice"):
        set_names([tmp_path / "a.jsonl", tmp_path / "." / "a.jsonl"])


def test_the_bundled_model_on_the_example(data: Path, tmp_path: Path) -> None:
    """One step says little about the flow; the ceiling says that VAE and vocoder keep the sounds apart."""
    folder = data / "example"
    row = {"mixture": str(EXAMPLE), "target": str(folder / "dog.flac"), "other": str(folder / "rain.flac")}
    items = read_manifest(write_manifest(tmp_path / "example.jsonl", row | {"query": "dog barking"}))
    total = evaluate(Separator.load(BUNDLED, threads=1), items, steps=1).overall()
    assert total["query_accuracy_ceiling"].mean == 1
    assert total["log_mel_distance_ceiling"].mean < total["log_mel_distance_mixture"].mean
    assert total["log_mel_distance_ceiling"].mean < total["log_mel_distance"].mean
    assert all(math.isfinite(estimate.mean) for estimate in total.values())
