"""Weights that a backend reads through mapped files need not stay in memory beside the copy that it made.

A backend maps a file of weights and packs them into memory of its own. The pages that it has read then count
as this process's memory until the system wants them for something else: a graph would take twice its size.

Giving pages back is safe only for a mapping that cannot be written and cannot be unmapped meanwhile: its
address might belong to something else by then, which would lose its content. So whoever asks for it holds the
mapping.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

INTERVAL = 0.02  # seconds; packing reads about a gigabyte in one


class Mapping(NamedTuple):
    """A range of addresses."""

    start: int
    end: int


@contextmanager
def repeated(give_back: Callable[[], None]) -> Iterator[None]:
    """Calls this again and again while inside, and once at the end."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(INTERVAL):
            give_back()

    thread = threading.Thread(target=work, name="flowsep-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        give_back()


def give_back_mapped(memory: mmap.mmap) -> None:
    """Gives back the pages of a mapping of this module's caller; they are read again when they are wanted. On
    Windows this does nothing."""
    if hasattr(memory, "madvise"):
        memory.madvise(mmap.MADV_DONTNEED)


def mappings(paths: Iterable[Path]) -> set[Mapping]:
    """Where this process has mapped these files such that it cannot write; empty on systems but Linux."""
    found: set[Mapping] = set()
    if not sys.platform.startswith("linux"):
        return found
    names = {str(path.resolve()) for path in paths}
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5] in names and "w" not in fields[1]:
                start, end = (int(address, 16) for address in fields[0].split("-"))
                found.add(Mapping(start, end))
    return found


def give_back(ranges: Iterable[Mapping]) -> None:
    """Gives back the pages of mappings that the caller keeps alive, of files and not writable."""
    libc = ctypes.CDLL(None)
    for start, end in ranges:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
