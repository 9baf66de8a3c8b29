"""The sound cache: every clip end to end in one file that can be mapped into memory, and an index.

audio.npy    int16 [samples], 16 kHz mono
index.json   [{label, split, start, length, source, licence, kind}, …], start and length in samples
READY        written last: the cache is complete
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from recipes.nano import RecipeError
from recipes.nano.signals import SAMPLE_RATE, Samples
from recipes.nano.tables import Split

ClipKind = Literal["recording", "strung", "synthesised"]


@dataclass(frozen=True)
class Clip:
    """A clean clip before it is stored: samples in [-1, 1] at 16 kHz and where they come from.

    `kind` tells recordings from strings of single keys, steps or blows, and from synthesised sound.
    """

    label: str
    split: Split
    audio: Samples
    source: str
    licence: str
    kind: ClipKind = "recording"


@dataclass(frozen=True)
class Entry:
    """A clip's place in the cache."""

    label: str
    split: Split
    start: int
    length: int
    source: str
    licence: str
    kind: ClipKind

    @property
    def seconds(self) -> float:
        """The clip's duration."""
        return self.length / SAMPLE_RATE


def write_cache(folder: Path, clips: Iterable[Clip]) -> list[Entry]:
    """Store `clips` as a new cache and return its index.

    Raises:
        RecipeError: the folder exists; a training may have mapped its files.
    """
    if folder.exists():
        raise RecipeError(f"{folder} exists already; choose a new folder or delete it.")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    entries: list[Entry] = []
    pieces: list[npt.NDArray[np.int16]] = []
    start = 0
    for clip in clips:
        piece = np.round(np.clip(clip.audio, -1, 1) * 32767).astype(np.int16)
        pieces.append(piece)
        entries.append(Entry(clip.label, clip.split, start, len(piece), clip.source, clip.licence, clip.kind))
        start += len(piece)
    np.save(partial / "audio.npy", np.concatenate(pieces) if pieces else np.zeros(0, np.int16))
    rows = ",\n".join(json.dumps(asdict(entry), ensure_ascii=False) for entry in entries)
    (partial / "index.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    (partial / "READY").touch()
    os.replace(partial, folder)
    return entries


def read_cache(folder: Path) -> tuple[npt.NDArray[np.int16], list[Entry]]:
    """Map a cache: the samples, `[samples]` int16 and read-only, and the index.

    Raises:
        RecipeError: there is no complete cache.
    """
    if not (folder / "READY").exists():
        raise RecipeError(f"no sound cache in {folder}; make one with `python -m recipes.nano.prepare`.")
    audio: npt.NDArray[np.int16] = np.load(folder / "audio.npy", mmap_mode="r")
    rows = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return audio, [Entry(**row) for row in rows]
