"""The bundle's tokenizer, from a file, a folder or a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowsep_export.errors import TokenizerError
from flowsep_export.tokenizer import load_tokenizer, pad_id
from flowsep_ref.config import TextConfig

TEXT = TextConfig(vocab_size=384)
SENTENCE = "a dog barking"


@pytest.fixture
def file(data: Path) -> Path:
    return data / "tokenizer.json"


def test_a_file_and_its_folder_give_the_same_tokenizer(file: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(file.read_bytes())
    ids = load_tokenizer(file, TEXT).encode(SENTENCE).ids
    assert ids[-1] == 1
    assert load_tokenizer(tmp_path, TEXT).encode(SENTENCE).ids == ids
    assert pad_id(load_tokenizer(file, TEXT)) == 0


def test_a_sentencepiece_model_is_converted(file: Path, tmp_path: Path) -> None:
    protobuf = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    model = protobuf.ModelProto()
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    for piece, score in json.loads(file.read_text())["model"]["vocab"]:
        model.pieces.add(piece=piece, score=score, type=kinds.get(piece, 1))
    model.trainer_spec.unk_id = 2
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    wanted = load_tokenizer(file, TEXT).encode(SENTENCE).ids
    assert load_tokenizer(tmp_path, TEXT).encode(SENTENCE).ids == wanted


def test_more_tokens_than_the_model_has_are_refused(file: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has \d+ tokens and the model 100"):
        load_tokenizer(file, TextConfig(vocab_size=100))


def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json", TEXT)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"holds neither tokenizer\.json nor spiece\.model"):
        load_tokenizer(tmp_path, TEXT)


def test_a_path_to_nothing_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"There is no tokenizer at nothing/here\.json"):
        load_tokenizer("./nothing/here.json", TEXT)


def test_a_hub_name_without_a_network_says_what_to_do() -> None:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer("nobody/no-such-tokenizer", TEXT)
    said = str(caught.value)
    assert "https://huggingface.co/nobody/no-such-tokenizer" in said and "--tokenizer tokenizer.json" in said
    assert "\n" not in said
