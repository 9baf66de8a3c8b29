"""Bundles that appear whole or not at all.

A bundle is written into a temporary folder beside its destination and renamed at the end, so an interrupted
export leaves no part of a bundle.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowsep_runtime.bundle.manifest import MANIFEST_NAME
from flowsep_runtime.errors import OptionError, shown


def check_destination(destination: Path, force: bool) -> None:
    """Refuse a destination that exists, before hours of work.

    Raises:
        OptionError: it holds something other than a bundle, or a bundle without `force`.
    """
    if not os.path.lexists(destination):
        return
    if not destination.is_dir() or destination.is_symlink():
        raise OptionError(f"{shown(destination)} is not a folder: give --output another name.")
    try:
        empty = not any(destination.iterdir())
    except OSError as error:
        raise OptionError(f"{shown(destination)} cannot be read: {error.strerror}.") from None
    if empty:
        return
    if not (destination / MANIFEST_NAME).is_file():
        raise OptionError(
            f"{shown(destination)} holds something that is not a bundle: give --output another name."
        )
    if not force:
        raise OptionError(
            f"{shown(destination)} exists: give --force to replace it, or --output another name."
        )


@contextmanager
def new_bundle(destination: Path, force: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `destination` when the block succeeds, and is removed when it fails.

    Missing parents are made, and removed again when the block fails.

    Raises:
        OptionError: the place is taken (see `check_destination`) or cannot be written.
    """
    destination = Path(os.path.abspath(destination))
    check_destination(destination, force)
    made: list[Path] = []
    scratch = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.writing")
    finished = False
    try:
        try:
            _make_parents(destination.parent, made)
            scratch.mkdir()
        except OSError as error:
            raise OptionError(
                f"{shown(destination)} cannot be written ({error.strerror}): give --output another place."
            ) from None
        yield scratch
        check_destination(destination, force)
        _replace(scratch, destination)
        finished = True
    finally:
        if not finished:
            shutil.rmtree(scratch, ignore_errors=True)
            for folder in reversed(made):
                # a folder into which another program has put something stays
                if not any(folder.iterdir()):
                    folder.rmdir()


def _make_parents(folder: Path, made: list[Path]) -> None:
    if folder.is_dir():
        return
    _make_parents(folder.parent, made)
    folder.mkdir(exist_ok=True)
    made.append(folder)


def _replace(scratch: Path, destination: Path) -> None:
    if not destination.exists():
        os.rename(scratch, destination)
        return
    # a folder cannot be renamed over one that is not empty, so the old one is renamed first
    old = scratch.with_name(scratch.name.replace(".writing", ".old"))
    os.rename(destination, old)
    try:
        os.rename(scratch, destination)
    except BaseException:
        os.rename(old, destination)
        raise
    shutil.rmtree(old, ignore_errors=True)
