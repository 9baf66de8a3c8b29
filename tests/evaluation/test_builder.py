"""Test sets that are made of recordings."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from flowsep_eval import build_test_set, read_manifest
from flowsep_eval.builder import Phrasings, Recipe
from flowsep_eval.manifest import read_mono
from flowsep_runtime.errors import OptionError
from flowsep_train.mixtures import level

LABELS = ("bell", "horn", "rain")


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound cache of three classes, two recordings each for training and one held out."""
    folder = tmp_path_factory.mktemp("bank")
    rng = np.random.default_rng(0)
    pieces: list[NDArray[np.int16]] = []
    index: list[dict[str, object]] = []
    for label in LABELS:
        for split in ("train", "train", "test"):
            pieces.append((rng.standard_normal(4000) * 6000).astype(np.int16))
            index.append({"label": label, "split": split, "start": 4000 * len(index), "length": 4000})
    np.save(folder / "audio.npy", np.concatenate(pieces))
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captions") / "captions.tsv"
    rows = ["label\tcaption\tuse"]
    rows += [f"{label}\t{word} {label}\ttrain" for label in LABELS for word in ("a", "the")]
    rows += [f"{label}\tsome {label}\theld-out" for label in LABELS[:2]]
    path.write_text("\n".join(rows) + "\n")
    return path


def built(
    bank: Path, captions: Path, folder: Path, phrasings: Phrasings = "trained", **recipe: float
) -> list[dict[str, object]]:
    build_test_set(bank, captions, folder, "train", phrasings, Recipe(**recipe))  # type: ignore[arg-type]
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_classes_alternate_and_a_seed_reproduces_the_set(bank: Path, captions: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        built(bank, captions, tmp_path / name, count=7, seconds=0.5, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 1 + 3 * 7
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    first, third = ((tmp_path / name / "manifest.jsonl").read_bytes() for name in "ac")
    assert first != third
    items = read_manifest(tmp_path / "a" / "manifest.jsonl")
    assert sorted(Counter(item.label for item in items).values()) == [2, 2, 3]
    for item in items:
        assert item.label != item.other_label
        assert item.query in (f"a {item.label}", f"the {item.label}")


@pytest.mark.parametrize("loudness", [0.0, -12.0])
def test_the_mixture_is_its_sounds_at_the_loudness_asked_for(
    loudness: float, bank: Path, captions: Path, tmp_path: Path
) -> None:
    built(bank, captions, tmp_path / "set", count=3, seconds=1.0, loudness=loudness)
    for item in read_manifest(tmp_path / "set" / "manifest.jsonl"):
        assert item.target is not None and item.other is not None
        mixture, target, other = (read_mono(path) for path in (item.mixture, item.target, item.other))
        assert len(mixture) == 16000 and soundfile.info(item.mixture).samplerate == 16000
        rest = mixture - target - other
        assert np.ptp(rest) < 4 / 32768  # a constant: mixtures are centred
        assert 20 * np.log10(level(target) / level(other)) == pytest.approx(loudness, abs=0.05)


def test_other_phrasings_leave_the_mixtures_unchanged(bank: Path, captions: Path, tmp_path: Path) -> None:
    table = captions.read_text() + "rain\tsome rain\theld-out\n"
    whole = tmp_path / "captions.tsv"
    whole.write_text(table)
    trained = built(bank, whole, tmp_path / "trained", count=4, seconds=0.5)
    held_out = built(bank, whole, tmp_path / "held-out", "held-out", count=4, seconds=0.5)
    assert [row["query"] for row in held_out] == [f"some {row['label']}" for row in trained]
    for row in trained:
        file = str(row["mixture"])
        assert (tmp_path / "trained" / file).read_bytes() == (tmp_path / "held-out" / file).read_bytes()


def test_an_absent_set_queries_the_class_that_is_missing(bank: Path, captions: Path, tmp_path: Path) -> None:
    rows = built(bank, captions, tmp_path / "set", count=6, seconds=0.5, absent=True)
    assert Counter(str(row["label"]) for row in rows) == dict.fromkeys(LABELS, 2)
    for row in rows:
        assert row["target"] is None and row["kind"] == "absent"
        assert sorted([str(row["label"]), *str(row["other_label"]).split(" + ")]) == sorted(LABELS)
    assert len(list((tmp_path / "set" / "audio").iterdir())) == 6


def test_classes_without_a_caption_are_left_out_and_named(bank: Path, captions: Path, tmp_path: Path) -> None:
    recipe = Recipe(count=4, seconds=0.5)
    assert build_test_set(bank, captions, tmp_path / "set", "test", "held-out", recipe) == ["rain"]
    items = read_manifest(tmp_path / "set" / "manifest.jsonl")
    assert {item.label for item in items} | {str(item.other_label) for item in items} == {"bell", "horn"}


def test_a_set_is_replaced_on_demand_only_and_nothing_else_is_touched(
    bank: Path, captions: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    built(bank, captions, folder, count=3, seconds=0.5)
    (folder / "audio" / "0-mine.flac").write_text("mine")
    with pytest.raises(OptionError, match="exists already"):
        built(bank, captions, folder, count=1, seconds=0.5)
    build_test_set(bank, captions, folder, recipe=Recipe(count=1, seconds=0.5), force=True)
    assert len(read_manifest(folder / "manifest.jsonl")) == 1
    assert len(list((folder / "audio").iterdir())) == 3 + 1


def test_an_interrupted_build_leaves_no_manifest(bank: Path, captions: Path, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_test_set(bank, captions, tmp_path / "set", recipe=Recipe(count=2, seconds=0.5), progress=stop)
    assert not (tmp_path / "set" / "manifest.jsonl").exists()
    assert len(built(bank, captions, tmp_path / "set", count=2, seconds=0.5)) == 2


@pytest.mark.slow
def test_the_build_command_writes_a_set(scripts: Path, bank: Path, captions: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = [
        "--sounds",
        bank,
        "--captions",
        captions,
        "-o",
        tmp_path / "set",
        "--phrasings",
        "held-out",
    ]
    arguments += ["--count", "2", "--seconds", "0.5", "--split", "test"]
    command = [scripts / "flowsep-eval", "build", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert (
        answer.stderr.startswith("flowsep-eval: warning: ")
        and "no held-out caption for rain" in answer.stderr
    )
    assert answer.stdout == f"{tmp_path / 'set' / 'manifest.jsonl'}: 2 mixtures of 0.5 s\n"
    assert len(read_manifest(tmp_path / "set" / "manifest.jsonl")) == 2


def test_unusable_captions_and_banks_are_refused(bank: Path, captions: Path, tmp_path: Path) -> None:
    recipe = Recipe(count=1, seconds=0.5, absent=True)
    with pytest.raises(OptionError, match="captions for 2 of the classes"):
        build_test_set(bank, captions, tmp_path / "set", phrasings="held-out", recipe=recipe)
    with pytest.raises(OptionError, match="cannot be read"):
        build_test_set(bank, tmp_path / "no.tsv", tmp_path / "set")
    (tmp_path / "other.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(OptionError, match="is not a table of captions"):
        build_test_set(bank, tmp_path / "other.tsv", tmp_path / "set")
    with pytest.raises(OptionError, match="no-bank"):
        build_test_set(tmp_path / "no-bank", captions, tmp_path / "set")
    assert not (tmp_path / "set").exists()
