"""Pages of mapped weights are given back, and nothing else is."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flowsep_runtime.backends.mapped_files import pages_given_back

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

SIZE = 16 << 20


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            ours = fields[-1] == str(path)
        elif ours and fields[0] == "Rss:":
            total += int(fields[1]) * 1024
    return total


def mapped(path: Path, access: int) -> tuple[mmap.mmap, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=access)
    return memory, np.frombuffer(memory, np.uint8)


def test_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "graph.data"
    path.parent.mkdir()
    _, content = mapped(path, mmap.ACCESS_READ)
    total = content.sum(dtype=np.int64)
    assert resident(path) > SIZE // 2
    with pages_given_back([tmp_path / "weights"]):
        deadline = time.monotonic() + 30
        while resident(path) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert resident(path) == 0  # already inside
        assert content.sum(dtype=np.int64) == total
    assert resident(path) == 0
    assert content.sum(dtype=np.int64) == total


def test_other_files_and_what_was_written_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    _, elsewhere = mapped(tmp_path / "weights-of-another.data", mmap.ACCESS_READ)
    total = elsewhere.sum(dtype=np.int64)
    private, content = mapped(tmp_path / "weights" / "changed.data", mmap.ACCESS_COPY)
    private[:5] = b"hello"
    with pages_given_back([tmp_path / "weights"]):
        pass
    assert content[:5].tobytes() == b"hello"
    assert resident(tmp_path / "weights-of-another.data") > SIZE // 2
    assert elsewhere.sum(dtype=np.int64) == total
