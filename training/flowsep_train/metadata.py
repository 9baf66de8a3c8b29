"""Lists of recordings, from the three forms of training sound.

1. A compact cache: a folder with `audio.npy` (int16 `[samples]`, 16 kHz mono) and `index.json`.
2. The published metadata: a `.json` or `.jsonl` file, an object a line as FlowSep publishes AudioCaps,
   or all of them in one document under `data` as AudioLDM does.
3. A folder of labelled recordings, `<folder>/<label>/*.wav`.

No audio is opened here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

#: Extensions of recordings in a folder.
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64"})
#: Every n-th recording of a labelled folder is held out as `test`.
HELD_OUT = 10
AUDIOSET_TAGS = re.compile(r"/[a-z]/\w+(\s*,\s*/[a-z]/\w+)*")


@dataclass(frozen=True)
class Recording:
    """Place of one recording: a sound file, or `length` samples of a cache's `audio.npy` from `start`."""

    label: str
    split: str
    path: Path
    start: int = 0
    length: int | None = None


@dataclass
class Listing:
    """Recordings and their labels.

    Attributes:
        recordings: of all splits.
        captions: phrasings by label; a label that is missing here is its own only phrasing.
        alone: labels of single recordings without a class, named by their paths.
    """

    recordings: list[Recording] = field(default_factory=list)
    captions: dict[str, list[str]] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)


def list_sounds(path: str | Path, root: str | Path | None = None, skip_missing: bool = False) -> Listing:
    """Every recording of a cache, a metadata file or a labelled folder; distinguished by their content.

    Args:
        path: the folder or the metadata file.
        root: what a metadata file's relative paths start from (see `read_metadata`).
        skip_missing: leave out rows of a metadata file whose recording is missing.

    Raises:
        ValueError: it is none of the three, or has a fault, or has no recording.
    """
    path = Path(path)
    if path.is_file():
        return read_metadata(path, root, skip_missing)
    if not path.is_dir():
        raise ValueError(
            f"{path} does not exist; give a sound cache, a metadata file or a folder of recordings."
        )
    return read_index(path) if (path / "index.json").exists() else read_folder(path)


def read_index(folder: Path) -> Listing:
    """The recordings of a compact cache.

    Raises:
        ValueError: its index or its audio is missing, or the index is malformed.
    """
    index, audio = folder / "index.json", folder / "audio.npy"
    if not audio.exists():
        raise ValueError(f"{folder} is not a sound cache: it has index.json but no audio.npy.")
    try:
        entries = [
            Recording(entry["label"], entry["split"], audio, int(entry["start"]), int(entry["length"]))
            for entry in json.loads(index.read_text(encoding="utf-8"))
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{index} is not an index of a sound cache: a list of label, split, start and length is needed."
        ) from error
    return Listing([entry for entry in entries if entry.length])


def read_folder(folder: Path) -> Listing:
    """The recordings in `<folder>/<label>/`, in which an underscore of a folder's name is a space.

    Every recording whose name has a CRC-32 that `HELD_OUT` divides is of the split `test`, unless its
    class would be left without a recording to train on; so a recording keeps its split when others
    come or go.

    Raises:
        ValueError: no sub-folder has a recording.
    """
    listing = Listing()
    for sub in sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith(".")):
        paths = sorted(
            path
            for path in sub.rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        held_out = {path for path in paths if crc32(path.name.encode()) % HELD_OUT == 0}
        if len(held_out) == len(paths):
            held_out.clear()
        label = sub.name.replace("_", " ")
        listing.recordings += [
            Recording(label, "test" if path in held_out else "train", path) for path in paths
        ]
    if not listing.recordings:
        raise ValueError(
            f"{folder} is not a sound cache (audio.npy, index.json) and has no recordings in sub-folders"
            " named after their class."
        )
    return listing


def read_metadata(path: Path, root: str | Path | None = None, skip_missing: bool = False) -> Listing:
    """The recordings of the published metadata.

    A row has `wav`, `caption` (one or a list), and optionally `label` or `labels`, and `split`
    (`train` if it is missing). Rows of the same `wav` add captions to it. With a label a recording
    belongs to that class, and its captions are phrasings of the class. Without one it is a class of its
    own, called by its `wav`; so it is with AudioSet tags (`/m/0bt9lr,/m/09x0r`) and with a list of
    several labels, for recordings that share some tags are not of one description.

    Args:
        path: the file.
        root: what a relative `wav` starts from. If not given it is the nearest folder, from the file's
            own upwards, in which the first recording is found: the published files lie in
            `metadata-master/processed/`, and their paths start above it.
        skip_missing: leave out rows whose recording is not there. Videos of AudioCaps vanish with time.

    Raises:
        ValueError: naming the file and the line or row that is at fault.
    """
    listing = Listing()
    splits: dict[Path, str] = {}
    listed: set[tuple[str, Path]] = set()
    found = Path(root) if root is not None else None
    for where, row in read_rows(path):
        wav = row.get("wav")
        if not isinstance(wav, str) or not wav:
            raise ValueError(f"{where} has no wav: the path of a recording is needed.")
        label = class_of(row)
        captions = captions_of(row)
        if not captions and label is None:
            raise ValueError(f"{where} has no caption: a sentence that describes {wav} is needed.")
        recording = (found or root_of(path, wav)) / wav
        if recording in splits or recording.is_file():
            found = found or root_of(path, wav)
        else:
            if skip_missing:
                continue
            raise ValueError(f"{where} names {recording}, which is missing; fetch it or take the row out.")
        split = str(row.get("split") or "train")
        if splits.setdefault(recording, split) != split:
            raise ValueError(
                f"{where} has {wav} in the split {split}, an earlier row in {splits[recording]}."
            )
        if label is None:
            label = wav
            listing.alone.add(label)
        if (label, recording) not in listed:
            listed.add((label, recording))
            listing.recordings.append(Recording(label, split, recording))
        known = listing.captions.setdefault(label, [])
        known += [caption for caption in captions or [label] if caption not in known]
    if not listing.recordings:
        raise ValueError(f"{path} names no recording that is there.")
    return listing


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a metadata file, each with the words that tell where it stands."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not metadata: it is not a text file in UTF-8.") from error
    kind = "row"
    rows: Iterable[tuple[int, Any]]
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        kind, rows = "line", read_lines(path, text, error)
    else:
        if isinstance(document, dict):
            document = document.get("data", [document])
        if not isinstance(document, list):
            raise ValueError(f"{path} is not metadata: a list of objects with wav and caption is needed.")
        rows = enumerate(document, 1)
    for number, row in rows:
        where = f"{path}, {kind} {number},"
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not an object with wav and caption.")
        yield where, row


def read_lines(path: Path, text: str, fault: json.JSONDecodeError) -> Iterator[tuple[int, Any]]:
    """The JSON values of a file that has one a line; `fault` is what it has as one document."""
    first = True
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            # a document over several lines breaks where it is broken, not at its first line
            number = fault.lineno if first else number
            raise ValueError(f"{path}, line {number}, is not JSON ({error.msg}).") from error
        first = False


def class_of(row: dict[str, Any]) -> str | None:
    """The class of a row, or none if it has no label or only tags."""
    label = row.get("label") or row.get("labels")
    if isinstance(label, list):
        label = label[0] if len(label) == 1 else None
    if not isinstance(label, str) or AUDIOSET_TAGS.fullmatch(label.strip()):
        return None
    return label.strip() or None


def captions_of(row: dict[str, Any]) -> list[str]:
    """The captions of a row, none of them empty."""
    captions = row.get("caption")
    found = captions if isinstance(captions, list) else [captions]
    return [caption.strip() for caption in found if isinstance(caption, str) and caption.strip()]


def root_of(metadata: Path, wav: str) -> Path:
    """The nearest folder above a metadata file in which `wav` is found, or else the file's own."""
    folder = metadata.absolute().parent
    return next((root for root in (folder, *folder.parents) if (root / wav).is_file()), folder)
