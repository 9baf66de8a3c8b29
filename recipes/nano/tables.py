"""The lists in `sounds/`: recordings of every class, and phrasings of queries."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from recipes.nano import RecipeError

Split = Literal["train", "test"]

LISTS = Path(__file__).parent / "sounds"
SOUNDS = LISTS / "sounds.tsv"
EXTRA_0AD = LISTS / "extra_0ad.tsv"
RESERVE = LISTS / "reserve.tsv"
CAPTIONS = LISTS / "captions.tsv"


@dataclass(frozen=True)
class Recording:
    """One sound file inside a Debian package.

    `path` is relative to the unpacked package and may go into an archive (`archive!inside`, see `archives`);
    `seconds` and `sample_rate` are those of the file as shipped.
    """

    label: str
    package: str
    path: str
    seconds: float
    sample_rate: int
    split: Split
    licence: str

    @property
    def source(self) -> str:
        """The recording's address, `package!path`, unique in a table."""
        return f"{self.package}!{self.path}"


@dataclass(frozen=True)
class Captions:
    """The phrasings of one class: `train` may be learnt from, `held_out` only tested with."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def read_recordings(table: Path = SOUNDS) -> list[Recording]:
    """Read a table of recordings, in its own order.

    Raises:
        RecipeError: a column is missing, or a row holds something that is not of its column.
    """
    recordings = []
    for number, row in _rows(
        table, ("label", "package", "path", "seconds", "sample_rate", "split", "licence")
    ):
        try:
            recordings.append(
                Recording(
                    row["label"],
                    row["package"],
                    row["path"],
                    float(row["seconds"]),
                    int(row["sample_rate"]),
                    _split(row["split"]),
                    row["licence"],
                )
            )
        except ValueError as error:
            raise RecipeError(f"{table}, line {number}: {error}; mend the row.") from error
    return recordings


def read_captions(table: Path = CAPTIONS) -> dict[str, Captions]:
    """Read the phrasings of every class, keyed by label, in the table's order.

    Raises:
        RecipeError: a column is missing, or a phrasing is for neither `train` nor `held-out`.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for number, row in _rows(table, ("label", "caption", "use")):
        if row["use"] not in ("train", "held-out"):
            raise RecipeError(f"{table}, line {number}: use is {row['use']!r}; it must be train or held-out.")
        uses = found.setdefault(row["label"], {"train": [], "held-out": []})
        uses[row["use"]].append(row["caption"])
    return {label: Captions(tuple(uses["train"]), tuple(uses["held-out"])) for label, uses in found.items()}


def _rows(table: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        text = table.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"cannot read {table}: {error.strerror}; restore it from the repository."
        ) from error
    # Paths may hold quotation marks, which mean nothing in these tables.
    reader = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise RecipeError(
            f"{table} has no column {missing[0]!r}; its first line must name {', '.join(columns)}."
        )
    for row in reader:
        if any(row[name] is None for name in columns):
            raise RecipeError(f"{table}, line {reader.line_num} has too few columns; mend the row.")
        yield reader.line_num, row


def _split(word: str) -> Split:
    for split in get_args(Split):
        if word == split:
            return split  # type: ignore[no-any-return]
    raise ValueError(f"split is {word!r}, not train or test")
