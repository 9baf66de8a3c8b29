"""Bundles whose files are links into a store, as folders that backends open.

OpenVINO reads no weights through a link that leads out of a graph's folder, and ONNX Runtime's rules differ
by version. Hard links have no such trouble: a folder of them in the user's cache takes no room and no time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from flowsep_runtime.caches import cache_folder, keep_newest

FOLDER = "bundles"
_MOST, _LARGEST = 16, 1 << 62  # the room is the store's


def without_links(folder: Path) -> Path:
    """The folder itself, or, if a file in it is a link out of it, one with the same files and no links.

    Where no such folder can be made (another disk, no cache folder), it is the folder itself.
    """
    with suppress(OSError, RuntimeError):
        home = folder.resolve()
        files = {path.name: path.resolve() for path in sorted(folder.iterdir()) if path.is_file()}
        if all(real.is_relative_to(home) for real in files.values()):
            return folder
        found = [(name, os.fspath(real), *_stamp(real)) for name, real in files.items()]
        cache = cache_folder() / FOLDER
        linked = cache / hashlib.sha256(repr(found).encode()).hexdigest()[:32]
        if not linked.is_dir():
            _link(files, linked)
            keep_newest(cache, _MOST, _LARGEST)
        return linked
    return folder


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_ino, found.st_mtime_ns


def _link(files: dict[str, Path], destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=destination.parent, prefix="."))
    try:
        for name, real in files.items():
            os.link(real, scratch / name)
        with suppress(FileExistsError):
            os.rename(scratch, destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
