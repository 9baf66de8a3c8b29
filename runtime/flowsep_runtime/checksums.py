"""SHA-256 of files; that of a large file is computed once and remembered.

Hashing a bundle of several gigabytes costs seconds at every start. A large file's digest is kept under the
user's cache folder with the file's size, inode and times of change, and is computed again as soon as one of
these moves.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path

SMALL = 32 << 20  # bytes: below this, hashing takes a few hundredths of a second, and we always do it
REMEMBERED_FILES = 512


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remembered_sha256(path: Path) -> str:
    """SHA-256 of a file, from memory if the file is large and was not touched since it was last hashed.

    A memory that cannot be read or written is no error: the file is hashed.
    """
    before = path.stat()
    if before.st_size < SMALL:
        return sha256_of(path)
    key = str(path.resolve())
    # The change time moves even for a writer who sets the modification time back.
    stamp = [before.st_size, before.st_ino, before.st_mtime_ns, before.st_ctime_ns]
    entry = _recall().get(key)
    if isinstance(entry, list) and len(entry) == 2 and entry[0] == stamp and isinstance(entry[1], str):
        return entry[1]
    digest = sha256_of(path)
    _remember(key, [stamp, digest])
    return digest


def cache_folder() -> Path:
    """Where this package may keep what it can compute again: `$XDG_CACHE_HOME/flowsep` or
    `~/.cache/flowsep`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "flowsep"


def _recall() -> dict[str, object]:
    try:
        content = json.loads((cache_folder() / "sha256.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return {}
    return content if isinstance(content, dict) else {}


def _remember(key: str, entry: list[object]) -> None:
    content = _recall()
    content.pop(key, None)
    content[key] = entry
    newest = dict(list(content.items())[-REMEMBERED_FILES:])
    try:
        path = cache_folder() / "sha256.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            temporary.write_text(json.dumps(newest), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        pass
