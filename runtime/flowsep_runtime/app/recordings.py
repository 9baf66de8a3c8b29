"""Recordings that were named, or are in a folder that was named."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowsep_runtime.app.made import made_by
from flowsep_runtime.audio.media import EXTENSIONS
from flowsep_runtime.audio.writing import CONTAINERS
from flowsep_runtime.errors import FlowSepWarning, OptionError, shown

#: Extensions of recordings in a folder; any other file is one only if it is named.
AUDIO = (*CONTAINERS, *EXTENSIONS, ".aifc", ".mp1", ".mp2", ".sph", ".nist", ".voc", ".wve")


@dataclass(frozen=True)
class Recording:
    """A recording to be separated.

    Attributes:
        path: None is standard input.
        root: The deepest folder that holds everything that was named.
        folder: The recording's folder, relative to `root`.
        is_found: True if it was found in a folder, and not named.
    """

    path: Path | None
    root: Path = Path()
    folder: str = "."
    is_found: bool = False


def recordings(sources: Sequence[Path | None], results: Path | None = None) -> list[Recording]:
    """Recordings that paths stand for: a folder for all that are in it and in the folders below.

    Hidden files are left out, and so are results of earlier runs, by the mark that they bear: a folder holds
    them, and the shell's `*.wav` finds them. They are recordings only where nothing else is named.

    Args:
        sources: Files and folders; None is standard input.
        results: Folder for results; what is in it is not a recording, unless it is itself a source.

    Raises:
        OptionError: If a folder cannot be read, or has no recording in it.

    Warns:
        FlowSepWarning: If results of earlier runs were left out.
    """
    root = common_folder([path if is_folder(path) else path.parent for path in sources if path is not None])
    found: dict[str, Recording] = {}
    made = {source for source in sources if source is not None and made_by(source) is not None}
    left_out = set() if len(made) == len(sources) else made
    for source in sources:
        if source is None:
            found["-"] = Recording(None, root)
        elif not is_folder(source):
            if source not in left_out:
                found.setdefault(os.path.abspath(source), below(root, source))
        else:
            files = list(files_in(source, results))
            fresh = [path for path in files if made_by(path) is None]
            left_out |= set(files) - set(fresh)
            if not files:
                raise OptionError(f"{shown(source)} has no recordings in it with a known extension.")
            if not fresh:
                raise OptionError(
                    f"{shown(source)} has no recordings in it but results of earlier runs: name the files."
                )
            for path in fresh:
                found.setdefault(os.path.abspath(path), below(root, path, is_found=True))
    if left_out:
        warnings.warn(
            f"Results of earlier runs are left out ({len(left_out)}): to separate them, name them alone.",
            FlowSepWarning,
            stacklevel=2,
        )
    return list(found.values())


def listed(paths: Sequence[Path]) -> list[Recording]:
    """Recordings of a list, whose folders are kept as those of a folder are."""
    root = common_folder([path.parent for path in paths])
    return [below(root, path, is_found=True) for path in paths]


def is_folder(path: Path) -> bool:
    """True for a folder; False also for names that no file can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def below(root: Path, path: Path, is_found: bool = False) -> Recording:
    """A recording whose folder counts from `root`."""
    try:
        folder = os.path.relpath(path.parent, root)
    except ValueError:  # on another drive
        folder = path.parent.name
    return Recording(path, root, folder, is_found)


def common_folder(folders: Iterable[Path]) -> Path:
    """The deepest folder that holds all of them."""
    try:
        return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
    except ValueError:  # none, or on several drives
        return Path()


def files_in(folder: Path, results: Path | None) -> Iterator[Path]:
    """The audio files of a folder and of those below it, without hidden ones and those in `results`.

    Raises:
        OptionError: If a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise OptionError(f"{shown(error.filename or folder)} cannot be read: {error.strerror}.")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not (results and _same(Path(place, name), results))
        )
        for name in sorted(files):
            path = Path(place, name)
            # No pipes or devices: nobody named them.
            if not name.startswith(".") and path.suffix.lower() in AUDIO and path.is_file():
                yield path


def _same(folder: Path, other: Path) -> bool:
    return folder.resolve() == other.resolve()
