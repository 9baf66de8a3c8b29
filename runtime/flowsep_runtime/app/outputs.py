"""Output files: names, checks before the work starts, and complete files or none."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from flowsep_runtime.errors import OptionError, OutputError, shown

ABANDONED = 24 * 3600  # seconds in which a run that is alive has written something


def check_outputs(outputs: Sequence[Path], mixture: Path | None, force: bool) -> None:
    """Refuses outputs that could not be written, or that would destroy something.

    Args:
        outputs: The final names.
        mixture: The recording; None if it is not a file.
        force: Whether files that exist may be replaced.

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


def _check_output(path: Path, mixture: Path | None, force: bool) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise OptionError(f"There is no folder {shown(folder)}: make it, or choose another output.")
    if path.is_dir():
        raise OptionError(f"{shown(path)} is a folder: give the name of an audio file.")
    if path.exists():
        if mixture is not None and path.samefile(mixture):
            raise OptionError(f"{shown(path)} is the mixture itself: choose another output.")
        if not path.is_file():
            raise OptionError(f"{shown(path)} is not a regular file: choose another output.")
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
def replacing(paths: Sequence[Path], keep: bool = False) -> Iterator[list[Path]]:
    """Temporary siblings to write to; they take the final names together when the block ends well, else they
    vanish.

    A symbolic link among the paths stays one: the file it points to is replaced. What a killed process left
    in the same folders is removed a day later.

    Args:
        paths: The final names.
        keep: Whether a file that has appeared meanwhile under a final name stays, and none is written.

    Raises:
        OutputError: If a name cannot be given.
    """
    final = [path.resolve() for path in paths]
    temporary = [_sibling(path) for path in final]
    for folder in {path.parent for path in final}:
        _remove_abandoned(folder)
    try:
        yield temporary
        named: list[Path] = []
        try:
            for source, destination in zip(temporary, final, strict=True):
                _rename(source, destination, keep)
                named.append(destination)
        except OutputError:
            if keep:  # all of them are ours: nothing was there before
                for path in named:
                    path.unlink(missing_ok=True)
            raise
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def _rename(source: Path, destination: Path, keep: bool) -> None:
    try:
        if keep:
            try:
                # Unlike a rename, a link never takes the place of another file.
                os.link(source, destination)
                return
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                if os.path.lexists(destination):
                    raise FileExistsError from None
        os.replace(source, destination)
    except FileExistsError:
        raise OutputError(
            f"{shown(destination)} was written by someone else meanwhile and stays: choose another output or "
            "add --force."
        ) from None
    except OSError as error:
        raise OutputError(f"{shown(destination)} cannot be written: {error.strerror}.") from None


@cache  # once in a run: a folder may hold a hundred thousand results
def _remove_abandoned(folder: Path) -> None:
    with suppress(OSError):  # tidying up is no reason to fail
        for path in folder.glob(".flowsep-*.tmp"):
            if time.time() - path.lstat().st_mtime > ABANDONED:
                path.unlink()


def _sibling(path: Path) -> Path:
    # Short and of ASCII, so that it fits wherever the final name does.
    return path.with_name(f".flowsep-{secrets.token_hex(6)}.tmp")


def make_folder(folder: Path) -> None:
    """Makes a folder for results, and those above it.

    Raises:
        OptionError: If it cannot be made, or a file has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OptionError(f"{shown(folder)} is a file: give a folder for the results.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"The folder {shown(folder)} cannot be made: {reason}.") from None
