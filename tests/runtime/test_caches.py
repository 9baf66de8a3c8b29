"""The cache folder stays within its bounds, and the newest entries survive."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowsep_runtime.caches import (
    keep_newest,
    read_checked,
    recall,
    remember,
    remove_damaged,
    write_checked,
    write_whole,
)
from flowsep_runtime.errors import FlowSepWarning


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
    kept = own_cache / "things.cache"
    whole = kept.read_bytes()
    for damage in (b"{", b"[]", b"\xff", b"[" * 100_000, b"", whole[:-1], whole.replace(b"3", b"4", 1)):
        kept.write_bytes(damage)
        with pytest.warns(
            FlowSepWarning, match="things.cache was damaged: what it held is made again"
        ) as said:
            assert recall("things") == {}
            assert recall("things") == {}
        assert len(said) == 1
        remember("things", "4", 4, 2)
        assert recall("things") == {"4": 4}


def test_of_two_that_find_a_file_damaged_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.touch()
    with pytest.warns(FlowSepWarning, match="was damaged") as said:
        for _ in range(2):
            remove_damaged(path)
    assert len(said) == 1


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=100), data=st.data())
def test_a_damaged_file_is_noticed_wherever_it_is_damaged(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cache") / "kept"
    assert read_checked(path) is None
    write_checked(path, content)
    assert read_checked(path) == content
    damaged = bytearray(path.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    with pytest.warns(FlowSepWarning, match="was damaged"):
        assert read_checked(path) is None
    assert not path.exists()


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.replace

    def synced(number: int) -> None:
        done.append("fsync")
        sync(number)

    def renamed(source: Path, destination: Path) -> None:
        done.append("replace")
        rename(source, destination)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_whole(tmp_path / "file", b"content")
    assert done == ["fsync", "replace"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
