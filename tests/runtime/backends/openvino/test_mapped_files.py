"""Pages of mapped weights are given back, and nothing else is."""

from __future__ import annotations

import mmap
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from flowsep_runtime.backends.openvino.mapped_files import give_back, give_back_mapped, mappings, repeated

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


@pytest.mark.parametrize("own", [True, False])
def test_pages_are_given_back_and_read_again(tmp_path: Path, own: bool) -> None:
    path = tmp_path / "graph.data"
    memory, content = mapped(path, mmap.ACCESS_READ)
    total = content.sum(dtype=np.int64)
    assert resident(path) > SIZE // 2
    found = mappings([path])
    assert len(found) == 1
    with repeated((lambda: give_back_mapped(memory)) if own else (lambda: give_back(found))):
        deadline = time.monotonic() + 30
        while resident(path) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert resident(path) == 0  # already inside
        assert content.sum(dtype=np.int64) == total
    assert resident(path) == 0
    assert content.sum(dtype=np.int64) == total


def test_only_read_only_mappings_of_the_given_files_are_given_back(tmp_path: Path) -> None:
    _, elsewhere = mapped(tmp_path / "graph.data.of-another", mmap.ACCESS_READ)
    private, content = mapped(tmp_path / "graph.data", mmap.ACCESS_COPY)
    private[:5] = b"hello"
    assert mappings([tmp_path / "graph.data", tmp_path]) == set()
    assert elsewhere.any() and content[:5].tobytes() == b"hello"


def test_pages_are_given_back_after_a_failure_too(tmp_path: Path) -> None:
    memory, content = mapped(tmp_path / "graph.data", mmap.ACCESS_READ)
    with pytest.raises(ValueError, match="no graph"), repeated(lambda: give_back_mapped(memory)):
        assert content.any()
        raise ValueError("no graph")
    assert resident(tmp_path / "graph.data") == 0


def test_a_variable_keeps_the_pages_and_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWSEP_KEEP_PAGES", "1")
    calls: list[None] = []
    threads = threading.active_count()
    with repeated(lambda: calls.append(None)):
        assert threading.active_count() == threads
    assert calls == []
