"""Manifests that people write by hand, and what is wrong with some of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flowsep_eval import ManifestError, read_manifest
from flowsep_eval.manifest import read_mono
from flowsep_runtime.errors import AudioError
from tests.evaluation.conftest import tone, write_manifest


def test_rows_have_defaults_and_keep_what_they_say_besides(test_set: Path) -> None:
    high, low, rain = read_manifest(test_set)
    assert (high.id, low.id, rain.id) == ("0", "1", "2")
    assert (high.kind, high.label, high.target) == ("present", "high", test_set.with_name("high.wav"))
    assert (rain.kind, rain.label, rain.other, rain.extra) == ("absent", "rain", None, {"source": "none"})
    assert [item.query for item in read_manifest(test_set, limit=1)] == ["a high tone"]


def test_paths_may_be_absolute_and_lines_empty(test_set: Path, tmp_path: Path) -> None:
    row = {"mixture": str(tmp_path / "mix.wav"), "query": "rain", "kind": "absent"}
    elsewhere = tmp_path / "folder" / "set.jsonl"
    elsewhere.parent.mkdir()
    elsewhere.write_text("\n" + json.dumps(row) + "\n\n")
    (item,) = read_manifest(elsewhere)
    assert item.mixture == tmp_path / "mix.wav"
    assert item.where == f"{elsewhere} line 2"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 2 is no JSON"),
        ([1], "line 2 is no JSON object"),
        ({"query": "rain", "target": None}, "line 2: 'mixture' is missing"),
        ({"mixture": "mix.wav", "query": " ", "target": None}, "line 2: 'query' is missing or no text"),
        ({"mixture": "mix.wav", "query": "rain"}, "line 2: 'target' is missing"),
        ({"mixture": "mix.wav", "query": "rain", "target": 3}, "line 2: 'target' is not text"),
        ({"mixture": "mix.wav", "query": "rain", "target": "no.wav"}, "line 2: there is no file"),
        (
            {"mixture": "mix.wav", "query": "r", "target": "low.wav", "kind": "absent"},
            "line 2: 'kind' is absent",
        ),
        (
            {"mixture": "mix.wav", "query": "r", "target": None, "kind": "present"},
            "line 2: 'kind' is present",
        ),
        ({"mixture": "mix.wav", "query": "r", "target": None, "kind": "x"}, "line 2: 'kind' is 'x'"),
        ({"mixture": "mix.wav", "query": "r", "target": None, "id": "0"}, "line 2: the id '0' is taken"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(row: Any, words: str, test_set: Path) -> None:
    first = test_set.read_text().splitlines()[0]
    text = row if isinstance(row, str) else json.dumps(row)
    test_set.write_text(f"{first}\n{text}\n")
    with pytest.raises(ManifestError, match=words) as caught:
        read_manifest(test_set)
    assert str(test_set) in str(caught.value)


def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path / "no.jsonl")
    with pytest.raises(ManifestError, match="has no row"):
        read_manifest(write_manifest(tmp_path / "empty.jsonl"))
    (tmp_path / "audio.wav").write_bytes(b"RIFF\xff\xfe\x00")
    with pytest.raises(ManifestError, match="no UTF-8 text"):
        read_manifest(tmp_path / "audio.wav")


def test_audio_of_any_rate_and_channel_count_becomes_mono_at_16_khz(tmp_path: Path) -> None:
    wide = np.stack([tone(440.0, 0.5, 44100), np.zeros(22050, np.float32)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", wide, 44100, "FLOAT")
    mono = read_mono(tmp_path / "stereo.wav")
    middle = slice(800, 7200)
    np.testing.assert_allclose(mono[middle], tone(440.0, 0.5)[middle] / 2, atol=1e-3)
    assert len(mono) == 8000


def test_audio_that_cannot_be_read_is_named_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(AudioError, match=r"^set line 3: .*text\.wav is not audio"):
        read_mono(tmp_path / "text.wav", "set line 3")
    soundfile.write(tmp_path / "nan.wav", np.full(9, np.nan), 16000, "FLOAT")
    with pytest.raises(AudioError, match=r"^set line 4: .*nan\.wav: .*NaN"):
        read_mono(tmp_path / "nan.wav", "set line 4")
