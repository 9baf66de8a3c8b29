"""Where results go: names, checks before the work starts, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import OptionError, OutputError, shown

LONGEST_NAME = 255  # bytes, on every common file system
LONGEST_SLUG = 60  # characters


def slug(query: str) -> str:
    """A query as a part of a file name: lower case, letters and digits of any script, hyphens between
    words."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", query).lower())
    text = "-".join(words).replace("_", "-").strip("-") or "target"
    if len(text) > LONGEST_SLUG:
        text = text[:LONGEST_SLUG].rpartition("-")[0] or text[:LONGEST_SLUG]
    return text


def default_output(mixture: Path, query: str, suffix: str) -> Path:
    """`mix.wav` and "dog barking" -> `mix.dog-barking.wav` beside the mixture, shortened to what a file
    system takes."""
    ending = f".{slug(query)}{suffix}"
    room = LONGEST_NAME - len(os.fsencode(ending))
    stem = mixture.stem
    if len(os.fsencode(stem)) > room:
        stem = os.fsencode(stem)[:room].decode(errors="ignore")
    return mixture.with_name(stem + ending)


def check_outputs(outputs: Sequence[Path], mixture: Path, force: bool) -> None:
    """Refuses outputs that could not be written, or that would destroy something.

    Raises:
        OptionError: With the first reason found.
    """
    seen: set[Path] = set()
    for path in outputs:
        try:
            _check_output(path, mixture, force)
        except OptionError:  # a ValueError too
            raise
        except OSError as error:
            raise OptionError(f"{shown(path)} cannot be written: {error.strerror}.") from None
        except ValueError as error:  # a NUL in the name
            raise OptionError(f"{shown(path)} cannot be written: {error}.") from None
        if path.resolve() in seen:
            raise OptionError(f"Two outputs would go to {shown(path)}: give each its own name.")
        seen.add(path.resolve())


def _check_output(path: Path, mixture: Path, force: bool) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise OptionError(f"There is no folder {shown(folder)}: make it, or choose another output.")
    if path.is_dir():
        raise OptionError(f"{shown(path)} is a folder: give the name of an audio file.")
    if path.exists():
        if path.samefile(mixture):
            raise OptionError(f"{shown(path)} is the mixture itself: choose another output.")
        if not path.is_file():
            raise OptionError(f"{shown(path)} is no regular file: choose another output.")
        if not force:
            raise OptionError(f"{shown(path)} exists already: choose another output or add --force.")
    try:
        # Permission bits do not tell everything (root, read-only mounts): try.
        probe = _sibling(path)
        probe.open("xb").close()
        probe.unlink()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise
        raise OptionError(f"The folder {shown(folder)} is not writable: choose another output.") from None


@contextmanager
def replacing(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary siblings to write to; they take the final names together when the block ends well, else they
    vanish.

    A symbolic link among the paths stays one: the file it points to is replaced.
    """
    final = [path.resolve() for path in paths]
    temporary = [_sibling(path) for path in final]
    try:
        yield temporary
        for source, destination in zip(temporary, final, strict=True):
            try:
                os.replace(source, destination)
            except OSError as error:
                raise OutputError(f"{shown(destination)} cannot be written: {error.strerror}.") from None
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def _sibling(path: Path) -> Path:
    # Short and of ASCII, so that it fits wherever the final name does.
    return path.with_name(f".flowsep-{secrets.token_hex(6)}.tmp")
