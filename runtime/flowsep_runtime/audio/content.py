"""A file's bytes, and pieces of it that are read as if they were files."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import BinaryIO

WINDOW = 1 << 20  # bytes that are looked at together


class Content:
    """The bytes of a file that can seek, without taking all of it into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.length = file.seek(0, io.SEEK_END)
        self._start, self._window = 0, b""

    def at(self, start: int, count: int) -> bytes:
        """Bytes from a position: up to `WINDOW`, or to the end of the file."""
        if start >= self.length:  # a header may name any place, even such as no file has
            return b""
        if not self._start <= start <= start + count <= self._start + len(self._window):
            self._file.seek(start)
            parts, missing = [], WINDOW
            while missing and (part := self._file.read(missing)):
                parts.append(part)
                missing -= len(part)
            self._start, self._window = start, b"".join(parts)
        return self._window[start - self._start : start - self._start + count]

    def find(self, pattern: re.Pattern[bytes], start: int) -> int | None:
        """Start of the next match of a pattern of at most 64 bytes."""
        while start < self.length:
            window = self.at(start, WINDOW)
            if found := pattern.search(window):
                return start + found.start()
            start += max(1, len(window) - 64)
        return None


@dataclass(frozen=True)
class Piece:
    """A range of a file that libsndfile reads as a file of its own.

    Attributes:
        prefix: Stands before it.
        patches: Bytes that take the place of others, by their place in the file.
        least: Samples of each channel that must come out of it; fewer are a loss.
        is_guessed: True if the file does not state the length that libsndfile expects.
        remark: Remark for the user, which follows the file's name.
    """

    start: int
    end: int
    prefix: bytes = b""
    patches: dict[int, bytes] = field(default_factory=dict)
    least: int = 0
    is_guessed: bool = False
    remark: str = ""

    def covers(self, length: int) -> bool:
        """True for the unchanged file."""
        return (self.start, self.end) == (0, length) and not self.prefix and not self.patches


class View(io.RawIOBase):
    """A piece as a file."""

    def __init__(self, file: BinaryIO, piece: Piece) -> None:
        self._file, self._piece, self._place = file, piece, 0
        self._length = len(piece.prefix) + piece.end - piece.start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = max(0, base + offset)
        return self._place

    def read(self, size: int = -1) -> bytes | None:
        # A damaged header may make a reader ask for 2 GB, which would be taken before anything is read.
        return super().read(size if size < 0 else min(size, max(0, self._length - self._place)))

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        target = memoryview(buffer).cast("B")
        prefix = self._piece.prefix[self._place : self._place + len(target)]
        if prefix:
            target[: len(prefix)] = prefix
            self._place += len(prefix)
            return len(prefix)
        start = self._piece.start + self._place - len(self._piece.prefix)
        count = min(len(target), self._piece.end - start)
        if count <= 0:
            return 0
        self._file.seek(start)
        content = self._file.read(count)
        target[: len(content)] = content
        for place, patch in self._piece.patches.items():
            first, last = max(place, start), min(place + len(patch), start + len(content))
            if first < last:
                target[first - start : last - start] = patch[first - place : last - place]
        self._place += len(content)
        return len(content)
