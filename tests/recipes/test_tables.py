"""The lists of sounds are whole, and a broken one is refused in one sentence."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from recipes.nano import RecipeError
from recipes.nano.tables import EXTRA_0AD, RESERVE, SOUNDS, read_captions, read_recordings

HEADER = "label\tpackage\tpath\tseconds\tsample_rate\tsplit\tlicence\n"


def test_no_recording_is_listed_twice_so_none_can_be_in_both_splits() -> None:
    counts = Counter(
        recording.source for table in (SOUNDS, EXTRA_0AD) for recording in read_recordings(table)
    )
    assert [source for source, count in counts.items() if count > 1] == []


def test_every_class_can_be_trained_and_asked_for() -> None:
    recordings = read_recordings(SOUNDS)
    captions = read_captions()
    trained = {recording.label for recording in recordings if recording.split == "train"}
    assert len(captions) == 40
    assert trained == set(captions)
    assert all(each.train and each.held_out for each in captions.values())


def test_a_held_out_phrasing_is_never_trained_on() -> None:
    for captions in read_captions().values():
        assert not set(captions.train) & set(captions.held_out)


@pytest.mark.parametrize("table", [SOUNDS, EXTRA_0AD, RESERVE])
def test_every_recording_names_its_licence(table: Path) -> None:
    assert all(recording.licence for recording in read_recordings(table))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("label\tpath\n", "no column 'package'"),
        (HEADER + "dog\tp\ta.wav\t1\t44100\tvalidation\tCC0\n", "line 2: split is 'validation'"),
        (HEADER + "dog\tp\ta.wav\tlong\t44100\ttrain\tCC0\n", "line 2: could not convert"),
        (HEADER + "dog\tp\ta.wav\n", "line 2 has too few columns"),
    ],
)
def test_a_broken_table_is_refused_by_name_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    table = tmp_path / "sounds.tsv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=complaint) as refusal:
        read_recordings(table)
    assert str(table) in str(refusal.value)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read .*absent\.tsv"):
        read_recordings(tmp_path / "absent.tsv")
