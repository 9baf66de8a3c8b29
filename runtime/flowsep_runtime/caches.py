"""Files under the user's cache folder: bounded, and nothing that cannot be computed again.

A cache that cannot be read or written is no error: what it would have held is computed instead. Nothing in it
is trusted because it is there: power cuts, full disks and failing ones leave files that look like any other.
Each is kept with a checksum, and one that does not fit is removed with a warning and computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
import warnings
from contextlib import suppress
from pathlib import Path

from flowsep_runtime.errors import FlowSepWarning, shown

_DIGEST = 64  # characters, of SHA-256: the first line of a file that `write_checked` wrote
_REMEMBERING = threading.Lock()  # graphs are loaded side by side, and a memory is read, changed and written


def cache_folder() -> Path:
    """The cache folder of this package: `$XDG_CACHE_HOME/flowsep` or
    `~/.cache/flowsep`.

    Raises:
        RuntimeError: If there is neither a setting nor a home folder.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "flowsep"


def recall(memory: str) -> dict[str, object]:
    """The entries of a memory by key, the oldest first; empty if it cannot be read.

    Warns:
        FlowSepWarning: If it was damaged.
    """
    try:
        path = _memory(memory)
        text = read_checked(path)
        content = {} if text is None else json.loads(text)
    except (OSError, ValueError, RuntimeError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(memory: str, key: str, entry: object, limit: int) -> None:
    """Puts an entry into a memory, which then forgets all but its newest `limit` entries."""
    with _REMEMBERING:
        content = recall(memory)
        content.pop(key, None)
        content[key] = entry
        newest = dict(list(content.items())[-limit:])
        with suppress(OSError, RuntimeError):
            write_checked(_memory(memory), json.dumps(newest).encode())


def _memory(name: str) -> Path:
    return cache_folder() / f"{name}.cache"


def read_checked(path: Path) -> bytes | None:
    """Content that `write_checked` wrote; None if it is missing, or damaged and therefore removed.

    Raises:
        OSError: If it is there and cannot be read.

    Warns:
        FlowSepWarning: If it was damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, found = content[: _DIGEST + 1], content[_DIGEST + 1 :]
    if digest != _line(found):
        remove_damaged(path)
        return None
    return found


def write_checked(path: Path, content: bytes) -> None:
    """Writes a file as `write_whole`, with a checksum for `read_checked`."""
    write_whole(path, _line(content) + content)


def _line(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode() + b"\n"


def remove_damaged(path: Path) -> None:
    """Removes a file of a cache whose checksum does not fit, and says so: of several threads that find it so,
    the one that removes it."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError:
        pass
    warnings.warn(
        f"{shown(path)} was damaged: what it held is made again.",
        FlowSepWarning,
        stacklevel=3,
    )


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file that appears whole or not at all, also after a power cut, and the folders above it.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        replace_whole(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_whole(source: Path, destination: Path) -> None:
    """Renames a file whose content is then on the disk: some file systems keep a rename and lose what was
    written before it.

    Raises:
        OSError: If it cannot be done.
    """
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(source, destination)


def keep_newest(folder: Path, entries: int, size: int) -> None:
    """Removes the files and folders of `folder` that were touched longest ago, until at most `entries` of at
    most `size` bytes are left."""
    try:
        children = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        total = 0
        for place, child in enumerate(children):
            total += sum(file.stat().st_size for file in (child, *child.rglob("*")))
            if place < entries and total <= size:
                continue
            if child.is_dir():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink(missing_ok=True)
    except OSError:  # another process tidies up too
        pass
