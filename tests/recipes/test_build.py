"""The recipe of the bundled model is made of commands that exist; its sentences hold nothing back."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flowsep_train.mixtures import Captions
from recipes.nano.build import Stage, main, stages
from recipes.nano.phrasings import CAPTIONS, draw, tokenizer, write


@pytest.mark.parametrize("stage", stages(Path("work"), 2), ids=lambda stage: stage.name)
def test_every_command_is_well_formed(stage: Stage) -> None:
    """Options and arguments are parsed by the command that they are for; nothing runs."""
    module = importlib.import_module(stage.module)
    command = getattr(module, "command", None) or module.main
    arguments = list(stage.arguments)
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments.pop(0))
        assert found is not None
        command = found
    # a manifest that a later stage reads does not exist yet
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            parameter.type.exists = False
    assert command.make_context(stage.name, arguments) is not None


def test_a_dry_run_prints_and_makes_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--work", str(tmp_path / "work"), "--dry-run", "--only", "vae"])
    assert result.exit_code == 0
    assert "fit vae" in result.output and "fit flow" not in result.output
    assert not (tmp_path / "work").exists()
    wrong = CliRunner().invoke(main, ["--work", str(tmp_path / "work"), "--only", "vea"])
    assert wrong.exit_code == 2 and "no stage vea" in wrong.output


@pytest.mark.slow
def test_sentences_are_many_and_none_is_held_out(tmp_path: Path) -> None:
    captions = Captions.read(CAPTIONS)
    drawn = draw(captions)
    held_out = {text.lower() for texts in captions.held_out.values() for text in texts}
    assert drawn.keys() == captions.trained.keys()
    assert all(len(set(texts)) == 1000 for texts in drawn.values())
    assert not held_out & {text for texts in drawn.values() for text in texts}
    assert draw(captions) == drawn
    write(drawn, tmp_path / "sentences.tsv")
    assert Captions.read(tmp_path / "sentences.tsv").trained == drawn


def test_the_tokenizer_knows_words_and_spells_the_rest() -> None:
    made = tokenizer(["a dog barking", "the dog barks", "dog"] * 20)
    assert made.token_to_id("<pad>") == 0
    assert made.encode("a DOG").tokens[-2:] == ["▁dog", "</s>"]
    spelt = made.encode("zebra!")
    assert spelt.ids[-1] == 1 and made.token_to_id("<unk>") in spelt.ids
    assert made.decode(made.encode("a dog barks").ids) == "a dog barks"


def test_a_scaled_recipe_trains_and_scores_less_and_is_the_same_otherwise() -> None:
    whole, small = (
        CliRunner().invoke(main, ["--work", "w", "--dry-run", "--scale", scale]).output.splitlines()
        for scale in ("1", "0.01")
    )
    assert len(whole) == len(small)
    changed = {
        before.split(" ")[1]: after for before, after in zip(whole, small, strict=True) if before != after
    }
    assert "--steps 360 " in changed["flow:"] and "--shards 2" in changed["latents:"]
    assert not changed.keys() & {"sounds:", "phrasings:", "model:", "bundle:", "scores:"}
