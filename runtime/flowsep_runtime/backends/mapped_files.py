"""Weights that an engine reads through mapped files need not stay in memory beside the copy that it made.

An engine maps a file of weights and packs them into memory of its own. The pages that it has read then count
as this process's memory until the system wants them for something else: a graph would take twice its size.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INTERVAL = 0.02  # seconds; packing reads about a gigabyte in one


@contextmanager
def pages_given_back(folders: list[Path]) -> Iterator[None]:
    """While inside and once at the end, gives back the pages of mapped files below `folders`.

    Nothing is lost: a page that is wanted again is read again, mostly from the system's cache. Only mappings
    that cannot be written are touched. On systems other than Linux this does nothing.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    prefixes = tuple(f"{folder.resolve()}/" for folder in folders)
    done = threading.Event()

    def work() -> None:
        while not done.wait(INTERVAL):
            _give_back(prefixes)

    thread = threading.Thread(target=work, name="flowsep-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _give_back(prefixes)


def _give_back(prefixes: tuple[str, ...]) -> None:
    libc = ctypes.CDLL(None)
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(prefixes) and "w" not in fields[1]:
                start, end = (int(address, 16) for address in fields[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
