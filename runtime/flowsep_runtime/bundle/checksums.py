"""SHA-256 of files; that of a large file is computed once and cached.

Hashing a bundle of several gigabytes costs seconds at every start. A large file's digest is kept under the
user's cache folder with the file's size, inode and times of change, and is computed again as soon as one of
these moves.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from flowsep_runtime.caches import recall, remember

MEMORY = "sha256"
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
    entry = recall(MEMORY).get(key)
    if isinstance(entry, list) and len(entry) == 2 and entry[0] == stamp and isinstance(entry[1], str):
        return entry[1]
    digest = sha256_of(path)
    remember(MEMORY, key, [stamp, digest], REMEMBERED_FILES)
    return digest
