"""A mark in a result that says what it was made with, where its format has tags (AU, W64 and MP3 have none).

A run that is done again leaves results that are there. Only the mark tells one of other options from one
that is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import soundfile

TAG = "software"  # libsndfile keeps 127 characters of it, and writes its own name behind
_BEGIN = "flowsep-run"
_WORDS = 3


def mark(kind: str, asked: Mapping[str, object]) -> str:
    """The mark of a result: its kind, and a checksum of everything that was asked for."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return f"{_BEGIN} {kind} {digest[:16]}"


def made_by(path: Path) -> str | None:
    """The mark of a file; None if it has none, or is not audio."""
    try:
        if not path.is_file():  # a pipe would wait
            return None
        with path.open("rb") as file:
            # Never a name: libsndfile must judge the content and not the extension.
            return mark_in(file.fileno())
    except (OSError, ValueError):  # a name that no file can have, too
        return None


def mark_in(file: int | BinaryIO) -> str | None:
    """The mark of an open file that can seek, which stays open."""
    try:
        with soundfile.SoundFile(file, closefd=False) as sound:
            words = str(sound.copy_metadata().get(TAG, "")).split()
    except (OSError, ValueError, TypeError, RuntimeError):
        return None
    return " ".join(words[:_WORDS]) if words[:1] == [_BEGIN] else None
