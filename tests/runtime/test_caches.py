"""The cache folder stays within its bounds, and the newest entries survive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowsep_runtime.caches import keep_newest, recall, remember


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), max_size=8), entries=st.integers(0, 6), size=st.integers(0, 150))
def test_a_folder_keeps_the_newest_files_that_fit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], entries: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    for age, length in enumerate(sizes):
        (folder / str(age)).write_bytes(b"." * length)
        os.utime(folder / str(age), (1000 - age, 1000 - age))
    keep_newest(folder, entries, size)
    kept = sorted(int(path.name) for path in folder.iterdir())
    fitting = max(n for n in range(len(sizes) + 1) if n <= entries and sum(sizes[:n]) <= size)
    assert kept == list(range(fitting))


def test_folders_of_a_folder_are_counted_with_their_content_and_removed_whole(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "blob").write_bytes(b"." * 100_000)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    keep_newest(tmp_path, 5, 150_000)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    keep_newest(tmp_path / "nowhere", 5, 5)


def test_a_memory_forgets_its_oldest_entries_and_survives_damage(own_cache: Path) -> None:
    for number in (1, 2, 3, 1):
        remember("things", str(number), number, 2)
    assert recall("things") == {"3": 3, "1": 1}
    for content in ("{", "[]", "\udcff", "[" * 100_000):
        (own_cache / "things.json").write_bytes(content.encode(errors="surrogateescape"))
        assert recall("things") == {}
        remember("things", "4", 4, 2)
        assert recall("things") == {"4": 4}
