"""Sentences for the text encoder: every class's words in common forms of queries.

Six captions per class are too few to learn from. A table of words (`sounds/words.tsv`: what makes the sound,
what it does, what is heard) and the templates below give thousands; the held-out captions are not among them.

`python -m recipes.nano.phrasings --output DIR` writes a drawn thousand a class, and a tokenizer of
their words.
"""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from flowsep_train.mixtures import Captions
from flowsep_train.text import COMPLEMENTS

SOUNDS = Path(__file__).parent / "sounds"
WORDS = SOUNDS / "words.tsv"
CAPTIONS = SOUNDS / "captions.tsv"

#: Sentences a class.
DRAWN = 1000
VOCABULARY = 1000
#: Weight of a caption among the sentences that the tokenizer learns from.
REPEATS = 40
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789'-.,▁")

ADJECTIVES = (
    *("", "", "loud", "small", "large", "distant", "old", "young", "single", "big", "quiet"),
    *("steady", "heavy", "gentle", "fast", "slow", "deep"),
)
PLACES = (
    "",
    "",
    "",
    "in the distance",
    "nearby",
    "outside",
    "in the background",
    "in a room",
    "far away",
    "at night",
    "in the street",
    "loudly",
    "softly",
    "repeatedly",
    "on and on",
    "from afar",
    "close by",
)
WITH_DOING = (
    "{a} {thing} {doing}",
    "{a} {thing} is {doing}",
    "{doing} {thing}",
    "the sound of {a} {thing} {doing}",
)
WITH_NOISE = ("{noise}", "the {noise}", "sound of {noise}", "the {noise} of {a} {thing}", "{thing} {noise}")
WITH_TWO_NOISES = ("the {noise} of {a} {other}", "{noise} and {other}")
ALONE = ("{thing}", "{a} {thing}", "the sound of {a} {thing}", "{thing} sounds", "noise of {a} {thing}")
ARTICLES = ("a", "the", "", "some")


def sentences(label: str, held_out: set[str]) -> list[list[str]]:
    """All sentences of a class, sorted, by what they say: a doing, a noise, or the thing alone.

    Args:
        label: class of `words.tsv`.
        held_out: captions that training must not see, in lower case.
    """
    with WORDS.open(encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file, delimiter="\t") if row["label"] == label)
    words = {key: row[key].split(",") for key in ("things", "doings", "noises")}
    return [
        sorted({" ".join(sentence.split()) for sentence in made} - held_out)
        for made in (_doings(words), _noises(words), _things(words))
    ]


def _doings(words: dict[str, list[str]]) -> Iterator[str]:
    for form, thing, doing, article in itertools.product(
        WITH_DOING, _with_adjectives(words), words["doings"], ARTICLES
    ):
        yield form.format(a=article, thing=thing, doing=doing)


def _noises(words: dict[str, list[str]]) -> Iterator[str]:
    for form, thing, noise, article in itertools.product(
        WITH_NOISE, words["things"], words["noises"], ARTICLES
    ):
        yield form.format(a=article, thing=thing, noise=noise)
    for form, noise, other, article in itertools.product(
        WITH_TWO_NOISES, words["noises"], words["noises"], ARTICLES
    ):
        if noise != other:
            yield form.format(a=article, noise=noise, other=other)


def _things(words: dict[str, list[str]]) -> Iterator[str]:
    for form, thing, article, place in itertools.product(
        ALONE, _with_adjectives(words), ARTICLES, set(PLACES)
    ):
        yield f"{form.format(a=article, thing=thing)} {place}"


def _with_adjectives(words: dict[str, list[str]]) -> list[str]:
    return [f"{adjective} {thing}" for adjective in set(ADJECTIVES) for thing in words["things"]]


def tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A tokenizer whose tokens are the frequent words of `texts`, and letters for all others.

    Ids as in `tests/data/tokenizer.json`: 0 pads, 1 ends a text (and is appended), 2 is unknown.
    """
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>"],
        show_progress=False,
        initial_alphabet=LETTERS,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made


def draw(captions: Captions, seed: int = 0) -> dict[str, list[str]]:
    """`DRAWN` sentences of every class, none of them a held-out caption.

    A third of each kind, as far as there are as many: the forms with a doing outnumber the others by far,
    and words for noises ("detonation") would be drawn once.
    """
    held_out = {text.lower() for texts in captions.held_out.values() for text in texts}
    rng = random.Random(seed)
    drawn = {}
    for label in sorted(captions.trained):
        kinds = sentences(label, held_out)
        chosen = {text for kind in kinds for text in rng.sample(kind, min(len(kind), DRAWN // len(kinds)))}
        others = sorted({text for kind in kinds for text in kind} - chosen)
        drawn[label] = [*sorted(chosen), *rng.sample(others, DRAWN - len(chosen))]
        rng.shuffle(drawn[label])
    return drawn


def write(drawn: Mapping[str, Sequence[str]], path: Path) -> None:
    """A table of label, caption, use."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["label", "caption", "use"])
        table.writerows([label, text, "train"] for label, texts in drawn.items() for text in texts)


@click.command()
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder.")
def main(output: Path) -> None:
    """Write sentences.tsv, complements.tsv and tokenizer.json."""
    captions = Captions.read(CAPTIONS)
    drawn = draw(captions)
    repeated = [text for texts in captions.trained.values() for text in texts for _ in range(REPEATS)]
    output.mkdir(parents=True, exist_ok=True)
    write(drawn, output / "sentences.tsv")
    write({"everything else": [form.format("").strip() for form in COMPLEMENTS]}, output / "complements.tsv")
    corpus = [*repeated, *(text for texts in drawn.values() for text in texts)]
    complements = [form.format(text) for form in COMPLEMENTS for text in corpus[:: len(COMPLEMENTS)]]
    tokenizer([*corpus, *complements]).save(str(output / "tokenizer.json"))


if __name__ == "__main__":
    main()
