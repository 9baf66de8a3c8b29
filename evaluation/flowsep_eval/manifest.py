"""A test set's manifest: JSON lines, one object per query.

A row needs `mixture`, `query` and `target`; `target` is null if the sound that the query names is absent.
Paths are absolute or relative to the manifest's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowsep_eval.mel import SAMPLE_RATE, Floats
from flowsep_runtime.audio.checks import checked_samples
from flowsep_runtime.audio.reading import read_audio
from flowsep_runtime.audio.resampling import resampled
from flowsep_runtime.errors import AudioError, FlowSepError, shown

ItemKind = Literal["present", "absent"]
KNOWN = ("id", "mixture", "query", "target", "other", "label", "other_label", "kind")


class ManifestError(FlowSepError):
    """A manifest that cannot be read, or an incomplete row."""


@dataclass(frozen=True)
class Item:
    """One query of a test set.

    Attributes:
        id: Names the row in reports.
        mixture: Audio file to separate.
        query: What to separate, in words.
        target: Audio file of the sound that the query names as it is in the mixture; None: it is not there.
        other: Audio file of the rest of the mixture, if there is one.
        label: Class of the query; the query itself where a manifest names none.
        other_label: Class of the rest.
        where: Manifest and line, for messages.
        extra: Fields of the row that this program does not know.
    """

    id: str
    mixture: Path
    query: str
    target: Path | None
    other: Path | None = None
    label: str = ""
    other_label: str | None = None
    where: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> ItemKind:
        """True if the sound that the query names is in the mixture."""
        return "absent" if self.target is None else "present"


def read_manifest(path: str | os.PathLike[str], limit: int | None = None) -> list[Item]:
    """Read a manifest and check that its audio files exist.

    Args:
        path: JSON lines; empty lines are skipped.
        limit: The number of rows to read; None is all.

    Raises:
        ManifestError: With file and line of the first row that is wrong, or if there is no row.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ManifestError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{shown(path)} is no UTF-8 text: give a manifest of JSON lines.") from None
    items: list[Item] = []
    for row, where in _rows(path, lines):
        if limit is not None and len(items) == limit:
            break
        items.append(_item(row, where, path.parent, str(len(items))))
    if not items:
        raise ManifestError(f"{shown(path)} has no row: a test set needs at least one query.")
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        twice = next(item for number, item in enumerate(items) if item.id in ids[:number])
        raise ManifestError(f"{twice.where}: the id {twice.id!r} is taken by a row above: give it its own.")
    return items


def _rows(path: Path, lines: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{shown(path)} line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ManifestError(f"{where} is no JSON: {error}.") from None
        if not isinstance(row, dict):
            raise ManifestError(f"{where} is no JSON object: write one object a line.")
        yield row, where


def _item(row: dict[str, Any], where: str, folder: Path, number: str) -> Item:
    for name in ("mixture", "query"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ManifestError(f"{where}: {name!r} is missing or no text.")
    for name in ("id", "target", "other", "label", "other_label"):
        if not isinstance(row.get(name), str | None) or row.get(name) == "":
            raise ManifestError(f"{where}: {name!r} is not text.")
    if "target" not in row and row.get("kind") != "absent":
        raise ManifestError(
            f"{where}: 'target' is missing: name a file, or null for a sound that is not there."
        )
    is_absent = row.get("target") is None
    kind = row.get("kind", "absent" if is_absent else "present")
    if kind not in ("present", "absent"):
        raise ManifestError(f"{where}: 'kind' is {kind!r}: write present or absent.")
    if (kind == "absent") != is_absent:
        raise ManifestError(
            f"{where}: 'kind' is {kind} and 'target' is {row.get('target')}: change one of them."
        )

    def file(name: str) -> Path | None:
        if row.get(name) is None:
            return None
        path: Path = folder / row[name]
        if not path.is_file():
            raise ManifestError(f"{where}: there is no file {shown(path)}, its {name!r}.")
        return path

    mixture = file("mixture")
    assert mixture is not None
    return Item(
        id=row.get("id") or number,
        mixture=mixture,
        query=row["query"],
        target=file("target"),
        other=file("other"),
        label=row.get("label") or row["query"],
        other_label=row.get("other_label"),
        where=where,
        extra={name: value for name, value in row.items() if name not in KNOWN},
    )


def read_mono(path: Path, where: str = "") -> Floats:
    """A whole audio file, its channels averaged, at 16 kHz: `[S]`.

    Raises:
        AudioError: If it is not audio, or has samples that are not finite.
    """
    try:
        recording = read_audio(path)
        mono = recording.samples.mean(axis=1, keepdims=True, dtype=np.float32)
        mono = checked_samples(mono, recording.sample_rate)
    except AudioError as error:
        name = "" if shown(path) in str(error) else f"{shown(path)}: "
        raise AudioError(f"{where}{': ' if where else ''}{name}{error}") from None
    length = max(1, round(len(mono) * SAMPLE_RATE / recording.sample_rate))
    return resampled(mono, recording.sample_rate, SAMPLE_RATE, length)[:, 0]
