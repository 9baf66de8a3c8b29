"""Pages of mapped weights, given back while OpenVINO copies them.

OpenVINO maps a file of weights and packs them into memory of its own. The pages that it has read then count
as memory of this process until the system needs them: a graph would take twice its size.

Giving pages back is safe only for a mapping that cannot be written and is not unmapped meanwhile, since its
address could belong to something else by then. The caller therefore holds the mapping.
`FLOWSEP_KEEP_PAGES=1` turns this off (docs/troubleshooting.md).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

INTERVAL = 0.02  # seconds; packing reads about a gigabyte per second
KEEP_PAGES = "FLOWSEP_KEEP_PAGES"  # environment variable


class Mapping(NamedTuple):
    """A range of addresses."""

    start: int
    end: int


@contextmanager
def repeated(give_back: Callable[[], None]) -> Iterator[None]:
    """Call a function every `INTERVAL` while inside and once at the end, unless `FLOWSEP_KEEP_PAGES=1`."""
    if os.environ.get(KEEP_PAGES) == "1":
        yield
        return
    done = threading.Event()

    def until_done() -> None:
        while not done.wait(INTERVAL):
            give_back()

    thread = threading.Thread(target=until_done, name="flowsep-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        give_back()


def give_back_mapped(memory: mmap.mmap) -> None:
    """Give back the pages of a mapping that the caller holds; the next access reads them again.

    Without effect on Windows.
    """
    if hasattr(memory, "madvise"):
        memory.madvise(mmap.MADV_DONTNEED)


def mappings(paths: Iterable[Path]) -> set[Mapping]:
    """Read-only mappings of these files in this process; empty on systems other than Linux."""
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
    """Give back the pages of read-only mappings of files that the caller keeps alive."""
    libc = ctypes.CDLL(None)
    for start, end in ranges:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
