"""Tasks of a batch: their order and their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowsep_batch.tasks import Order, Task, count
from flowsep_runtime import AudioError, OptionError
from flowsep_runtime.app.jobs import plan
from flowsep_runtime.app.recordings import recordings
from flowsep_runtime.audio.reading import Span
from tests.cluster.conftest import write_sound

fsspec = pytest.importorskip("fsspec", reason="batches need fsspec: pip install '.[cluster]'")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "x/b.flac", "x/y/c.wav", ".hidden.wav", "x/.h/d.wav", "x/notes.txt", "out/e.wav"):
        write_sound(tmp_path / "in" / name.replace(".txt", ".wav"))
    (tmp_path / "in/x/notes.wav").rename(tmp_path / "in/x/notes.txt")
    return tmp_path / "in"


def names(order: Order) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    return [(task.name, task.outputs) for task in order.tasks()]


@pytest.mark.parametrize("template", [None, "{number}/{folder}/{stem}.{ext}.{query}.flac"])
@pytest.mark.parametrize("removes", [False, True])
def test_results_have_the_names_that_flowsep_run_gives(
    folder: Path, template: str | None, removes: bool
) -> None:
    queries = ("A dog!",) if removes else ("A dog!", "rain")
    output = folder / "out"
    order = Order(str(folder), queries, str(output), None, removes, template)
    found = [
        (folder / name, [(query, output / path) for query, path in outputs]) for name, outputs in names(order)
    ]
    jobs = plan(recordings([folder], output), queries, None, output, False, removes, template)
    theirs = [(job.source, [*job.outputs, *job.done]) for job in jobs]
    assert sorted(found) == sorted(theirs)
    assert len(found) == 3


def test_a_folder_elsewhere_is_gone_through_like_one_here(folder: Path) -> None:
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/bucket/in", recursive=True)
    try:
        here = names(Order(str(folder), ("dog",), str(folder / "out")))
        there = names(Order("memory://bucket/in", ("dog",), "memory://bucket/in/out"))
        assert sorted(there) == sorted(here)
    finally:
        system.rm("/bucket", recursive=True)


def test_a_file_alone_keeps_no_folder(folder: Path) -> None:
    order = Order(str(folder / "x" / "b.flac"), ("dog",), "out")
    assert names(order) == [("b.flac", (("dog", "b.dog.flac"),))]


def test_rows_of_a_table_are_tasks(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "jobs.csv"
    table.write_text(
        "recording,query,output,start,duration\nin/a.wav,dog,,1,2\nin/x/b.flac,rain,own/b.wav,,\n"
        "in/a.wav,dog,,1,2\nmemory://bucket/c.wav,dog,c.wav,,\n",
        encoding="utf-8",
    )
    found = list(Order(None, (), "out", table).tasks())
    assert found == [
        Task(str(folder), "a.wav", (("dog", found[0].outputs[0][1]),), span=Span(1, 2)),
        Task(str(folder / "x"), "b.flac", (("rain", "own/b.wav"),)),
        Task("memory://bucket", "c.wav", (("dog", "c.wav"),)),
    ]
    assert found[0].outputs[0][1].endswith("in/a.dog.wav")


@pytest.mark.parametrize(
    ("queries", "template", "words"),
    [
        (("a dog", "A dog!"), None, "Two results would go to"),
        (("dog",), "{query}", "Two results would go to"),
        (("dog",), "../{stem}", "outside the folder"),
    ],
)
def test_names_that_cannot_be_are_refused_before_the_work(
    folder: Path, queries: tuple[str, ...], template: str | None, words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        count(Order(str(folder), queries, "out", template=template))


def test_recordings_that_differ_in_their_extension_alone_are_told_apart(tmp_path: Path) -> None:
    write_sound(tmp_path / "in/a.wav")
    (tmp_path / "in/a.m4a").touch()
    with pytest.raises(OptionError, match="Two results would go to"):
        count(Order(str(tmp_path / "in"), ("dog",), "out"))


def test_a_source_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"nothing\.wav does not exist"):
        count(Order(str(tmp_path / "nothing.wav"), ("dog",), "out"))
    with pytest.raises(AudioError, match="memory://nothing/here does not exist"):
        count(Order("memory://nothing/here", ("dog",), "out"))
    with pytest.raises(OptionError, match="no recordings in it"):
        count(Order(str(tmp_path), ("dog",), "out"))
    with pytest.raises(OptionError, match="nosuch://x"):
        count(Order("nosuch://x", ("dog",), "out"))


def test_a_template_that_leaves_its_folder_gives_no_name_twice(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_sound(tmp_path / folder / "x.wav")
    order = Order(str(tmp_path), ("rain",), str(tmp_path / "out"), template="{folder}/../{stem}.{query}")
    with pytest.raises(OptionError, match="Two results would go to"):
        list(order.tasks())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_table_from_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "jobs.csv")
    with pytest.raises(OptionError, match=r"jobs\.csv can be read only once: write the table to a file"):
        count(Order(None, (), "out", tmp_path / "jobs.csv"))
