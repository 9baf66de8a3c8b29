"""Things that do not fit together are named in one sentence: classes, latents, imitations, tables, ranks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from flowsep_ref import FlowSep
from flowsep_train import loop
from flowsep_train.flow import FlowBatches, FlowTraining
from flowsep_train.latents import VAE_DIGEST, LatentCache
from flowsep_train.masks import DecoderImitation
from flowsep_train.mixtures import Captions
from flowsep_train.parts import ModelParts, digest
from flowsep_train.sounds import SoundBank
from flowsep_train.text import QueryEncoder, learn_phrasings, read_tokenizer, tokens
from tests.train.training import CONFIG, PHRASES, run

pytestmark = pytest.mark.slow


def other_vae(folder: Path) -> ModelParts:
    """A work folder with an autoencoder of its own, not trained at all."""
    parts = ModelParts(folder, CONFIG)
    (folder / "vae").mkdir(parents=True)
    torch.manual_seed(len(folder.name))
    state = {f"vae.{key}": value for key, value in parts.untrained("vae").state_dict().items()}
    torch.save({"state_dict": state}, folder / "vae" / "last.ckpt")
    return parts


@pytest.fixture(scope="module")
def latents(bank: SoundBank, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelParts, Path]:
    """An autoencoder, a text encoder, and latents of the former."""
    folder = tmp_path_factory.mktemp("encoded")
    parts = other_vae(folder / "first")
    encoder = parts.untrained("text").state_dict()
    (folder / "first" / "text").mkdir()
    state = {f"text_encoder.{key}": value for key, value in encoder.items()}
    torch.save({"state_dict": state}, folder / "first" / "text" / "last.ckpt")
    loop.cache_latents(parts, bank, folder / "latents", 1, written=lambda shards: None)
    return parts, folder / "latents"


def test_latents_of_another_autoencoder_are_not_trained_on(
    latents: tuple[ModelParts, Path], tokenizer: Path, bank: SoundBank, tmp_path: Path
) -> None:
    parts, folder = latents
    cache = LatentCache(folder)
    assert cache.vae == digest(parts.trained("vae"))
    other = other_vae(tmp_path / "second one")
    shutil.copytree(parts.work / "text", other.work / "text")
    with pytest.raises(
        ValueError, match=r"holds latents of another autoencoder than the one of .*second one"
    ):
        loop.train_flow(other, cache, tokenizer, PHRASES, run(1))
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match="another autoencoder: give another --output"):
        loop.cache_latents(other, bank, folder, 2, written=lambda shards: None)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_latents_that_do_not_say_whose_they_are_are_taken(
    latents: tuple[ModelParts, Path], tokenizer: Path, tmp_path: Path
) -> None:
    """Older caches have no digest."""
    parts, folder = latents
    shutil.copytree(folder, tmp_path / "latents")
    (tmp_path / "latents" / VAE_DIGEST).unlink()
    other = other_vae(tmp_path / "second one")
    shutil.copytree(parts.work / "text", other.work / "text")
    loop.train_flow(other, LatentCache(tmp_path / "latents"), tokenizer, PHRASES, run(1))
    assert (other.work / "flow" / "last.ckpt").exists()


def test_an_imitation_of_another_decoder_is_not_used(
    latents: tuple[ModelParts, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, folder = latents
    made = []

    def quickly(vae: torch.nn.Module, cache: LatentCache, seed: int) -> DecoderImitation:
        made.append(digest(vae))
        return DecoderImitation()

    monkeypatch.setattr(loop, "imitate", quickly)
    cache = LatentCache(folder)
    for _ in range(2):
        loop.decoder_imitation(parts, cache, run(1))
    assert made == [digest(parts.trained("vae"))]
    other = other_vae(tmp_path / "second one")
    shutil.copytree(parts.work / "flow", other.work / "flow")
    with pytest.raises(ValueError, match=r"decoder_imitation.pt imitates another autoencoder .*: delete it"):
        loop.decoder_imitation(other, cache, run(1))


def test_rank_zero_alone_trains_the_imitation(
    latents: tuple[ModelParts, Path], tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, _ = latents
    made: list[DecoderImitation] = []

    def imitate() -> DecoderImitation:
        made.append(DecoderImitation())
        return made[-1]

    queries = QueryEncoder(parts.trained("text"), read_tokenizer(tokenizer))
    sent: list[object] = []

    def send(what: object) -> object:
        sent.append(what)
        return sent[0]  # rank zero's, as everybody receives it

    for is_zero in (True, False):
        module = FlowTraining(parts.untrained("flow"), queries, 1.0, 1, masking=1.0, imitate=imitate)
        trainer = SimpleNamespace(is_global_zero=is_zero, strategy=SimpleNamespace(broadcast=send))
        monkeypatch.setattr(FlowTraining, "trainer", trainer)
        module.setup("fit")
        assert module.imitations == made
    assert sent == [*made, None] and len(made) == 1


def test_captions_that_lack_a_class_of_the_latents(latents: tuple[ModelParts, Path], tokenizer: Path) -> None:
    parts, folder = latents
    few = {label: texts for label, texts in PHRASES.items() if label != "clicks"}
    with pytest.raises(
        ValueError, match=r"the captions lack 1 of the classes in .*, such as 'clicks': give a"
    ):
        loop.train_flow(parts, LatentCache(folder), tokenizer, few, run(1))


def test_captions_that_lack_a_class_of_a_later_shard(latents: tuple[ModelParts, Path]) -> None:
    _, folder = latents
    cache = LatentCache(folder)
    batches = FlowBatches(cache, PHRASES, 1, 2, 10)
    batches.REFRESH = 1
    batches(np.random.default_rng(0), 0)
    array, labels = next(iter(cache.shards.values()))
    cache.shards["shard-00001"] = (array, [[["whistle"]], *labels[1:]])
    with pytest.raises(ValueError, match="such as 'whistle'"):
        batches(np.random.default_rng(1), 1)


def test_sentences_that_lack_a_class(tokenizer: Path) -> None:
    encoder = FlowSep(CONFIG).text_encoder
    with pytest.raises(ValueError, match="the sentences lack 2 of the captions' classes, such as 'clicks'"):
        learn_phrasings(encoder, Tokenizer.from_file(str(tokenizer)), PHRASES, {"tone": ["a tone"]}, steps=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,caption,use\na,b,train\n", "is not a table of captions"),
        ("label\tcaption\tuse\na\tb\n", "line 2, has fewer than three columns"),
        ("", "is not a table of captions"),
    ],
)
def test_what_is_no_table_of_captions(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        Captions.read(path)
    assert str(path) in str(caught.value)


def test_a_tokenizer_that_pads_and_cuts_gives_the_same_ids(tokenizer: Path, tmp_path: Path) -> None:
    """Files of the hub may say that they pad; the mask here would count the padding."""
    other: Tokenizer = Tokenizer.from_file(str(tokenizer))
    other.enable_padding(length=20)
    other.enable_truncation(3)
    other.save(str(tmp_path / "tokenizer.json"))
    captions = ["a dog barking in the rain", "rain"]
    ids, mask = tokens(read_tokenizer(tmp_path / "tokenizer.json"), captions)
    wanted_ids, wanted_mask = tokens(Tokenizer.from_file(str(tokenizer)), captions)
    assert torch.equal(ids, wanted_ids) and torch.equal(mask, wanted_mask)
    with pytest.raises(ValueError, match=r"none.json is not a tokenizer.json that can be read"):
        read_tokenizer(tmp_path / "none.json")


def test_a_process_that_loads_data_fails_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowsep_train import cli

    def fail(**_: object) -> None:
        raise ValueError(
            "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            '  File "x.py", line 1\nValueError: the captions lack 1 of the classes\n'
        )

    monkeypatch.setattr(cli.command, "main", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "flowsep-train: the captions lack 1 of the classes.\n"


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The words that a call of `flowsep-train` ends with."""
    from flowsep_train import cli

    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["flowsep-train", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        return " ".join(capsys.readouterr()[0].split())

    return call


def test_steps_are_those_of_the_optimiser(shown: Callable[..., str]) -> None:
    said = shown("fit", "--help")
    assert "Number of optimiser steps." in said and "Batches for each step." in said
