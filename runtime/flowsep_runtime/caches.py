"""Files under the user's cache folder: bounded, and nothing that cannot be computed again.

A cache that cannot be read or written is no error: what it would have held is computed instead.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
from contextlib import suppress
from pathlib import Path

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
    """The entries of a JSON memory by key, the oldest first; empty if it cannot be read."""
    try:
        content = json.loads((cache_folder() / f"{memory}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(memory: str, key: str, entry: object, limit: int) -> None:
    """Puts an entry into a JSON memory, which then forgets all but its newest `limit` entries."""
    with _REMEMBERING:
        content = recall(memory)
        content.pop(key, None)
        content[key] = entry
        newest = dict(list(content.items())[-limit:])
        with suppress(OSError, RuntimeError):
            write_whole(cache_folder() / f"{memory}.json", json.dumps(newest).encode())


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file that appears whole or not at all, and the folders above it.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
