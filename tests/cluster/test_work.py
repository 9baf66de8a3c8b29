"""One task after the other in a worker, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import soundfile

from flowsep_batch.report import Report
from flowsep_batch.stores import Store
from flowsep_batch.tasks import Order, Task
from flowsep_batch.work import Row, Settings, Worker, failed
from flowsep_runtime import BackendError, OptionError, OutputError
from flowsep_runtime.app import cli as run_cli
from flowsep_runtime.options import Options
from tests.cluster.conftest import RATE, SECONDS, write_sound

fsspec = pytest.importorskip("fsspec", reason="batches need fsspec: pip install '.[cluster]'")


Start = Callable[..., Worker]


@pytest.fixture
def settings(tmp_path: Path, toy_bundle: Path) -> Settings:
    return Settings(str(tmp_path / "out"), None, str(toy_bundle), "cpu", threads=1, options=Options(steps=1))


@pytest.fixture
def memory() -> Any:
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def states(rows: list[Row]) -> list[str]:
    return [row.state for row in rows]


def test_what_is_done_is_told_from_what_was_done_before(tmp_path: Path, settings: Settings) -> None:
    write_sound(tmp_path / "a.wav")
    task = Task(str(tmp_path), "a.wav", (("dog", "x/1.wav"), ("rain", "x/2.flac")))
    worker = Worker(settings)
    rows = worker.work(task)
    assert states(rows) == ["done", "done"]
    assert [row.output for row in rows] == [str(tmp_path / "out/x/1.wav"), str(tmp_path / "out/x/2.flac")]
    assert rows[0].seconds == SECONDS and rows[0].real_time_factor and not rows[0].error
    assert soundfile.info(rows[1].output).frames == round(SECONDS * RATE)
    assert states(worker.work(task)) == ["done before", "done before"]
    assert states(worker.work(task, again=True)) == ["done", "done"]
    Path(rows[0].output).unlink()
    assert states(worker.work(task)) == ["done", "done before"]
    assert states(Worker(replace(settings, force=True)).work(task)) == ["done", "done"]
    assert not list(tmp_path.rglob(".*"))


def test_flowsep_run_takes_the_results_for_its_own(
    tmp_path: Path, settings: Settings, toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sound(tmp_path / "in/a.wav")
    (task,) = Order(str(tmp_path / "in"), ("dog",), settings.output).tasks()
    assert states(Worker(settings).work(task)) == ["done"]
    arguments = [*(str(tmp_path / "in"), "dog", "--output-dir", settings.output, "--backend", "cpu")]
    options = ["--bundle", str(toy_bundle), "--steps", "1", "--json"]
    run_cli.command.main([*arguments, *options], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["skipped"]


def test_a_result_of_other_options_is_left_and_said(tmp_path: Path, settings: Settings) -> None:
    write_sound(tmp_path / "a.wav")
    task = Task(str(tmp_path), "a.wav", (("dog", "1.wav"),))
    Worker(settings).work(task)
    (row,) = Worker(replace(settings, options=Options(steps=2))).work(task)
    assert row.state == "failed" and "run with other options" in str(row.error)


def test_a_result_of_an_earlier_run_is_no_recording(tmp_path: Path, settings: Settings) -> None:
    write_sound(tmp_path / "a.wav")
    worker = Worker(settings)
    worker.work(Task(str(tmp_path), "a.wav", (("dog", "1.wav"),)))
    found = Task(settings.output, "1.wav", (("dog", "2.wav"),), is_found=True)
    assert states(worker.work(found)) == ["left out"]
    assert states(worker.work(replace(found, is_found=False))) == ["done"]


def test_recordings_and_results_may_lie_elsewhere(tmp_path: Path, settings: Settings, memory: Any) -> None:
    write_sound(tmp_path / "a.wav")
    memory.makedirs("/bucket/in")
    memory.put_file(str(tmp_path / "a.wav"), "/bucket/in/a.wav")
    memory.pipe_file("/bucket/in/b.wav", b"no audio")
    worker = Worker(replace(settings, output="memory://bucket/out"))
    tasks = list(Order("memory://bucket/in", ("dog",), "memory://bucket/out").tasks())
    good, bad = (worker.work(task)[0] for task in tasks)
    assert (good.state, good.file, good.output) == (
        *("done", "memory://bucket/in/a.wav", "memory://bucket/out/a.dog.wav"),
    )
    assert bad.state == "failed" and str(bad.error).startswith("memory://bucket/in/b.wav is not audio")
    assert memory.find("/bucket/out") == ["/bucket/out/a.dog.wav"]
    assert states(worker.work(tasks[0])) == ["done before"]
    other = Worker(replace(settings, output="memory://bucket/out", options=Options(steps=2)))
    assert "run with other options" in str(other.work(tasks[0])[0].error)
    (row,) = worker.work(Task("memory://bucket/in", "nothing.wav", (("dog", "1.wav"),)))
    assert row.error == "memory://bucket/in/nothing.wav does not exist."


def test_an_upload_that_breaks_off_leaves_nothing(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")

    def half(self: Any, source: str, destination: str) -> None:
        self.pipe_file(destination, Path(source).read_bytes()[:5])
        raise OSError("the line is cut")

    monkeypatch.setattr(type(memory), "put_file", half)
    with pytest.raises(Exception, match=r"memory://bucket/x/1.wav cannot be written: the line is cut"):
        Store("memory://bucket").put(tmp_path / "file", "x/1.wav")
    assert memory.find("/bucket") == []


def test_a_store_that_cannot_rename_is_refused_and_keeps_nothing(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")

    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(type(memory), "cp_file", refuse)
    with pytest.raises(OutputError, match=r"memory://bucket/x/1.wav cannot be written: .* give another"):
        Store("memory://bucket").put(tmp_path / "file", "x/1.wav")
    assert memory.find("/bucket") == []


def test_what_a_killed_worker_left_elsewhere_goes_after_a_day(tmp_path: Path, memory: Any) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    memory.pipe({"/bucket/x/.flowsep-0.tmp": b"old", "/bucket/x/.flowsep-1.tmp": b"new"})
    memory.store["/bucket/x/.flowsep-0.tmp"].modified -= timedelta(days=2)
    Store("memory://bucket").put(tmp_path / "file", "x/1.wav")
    assert memory.find("/bucket") == ["/bucket/x/.flowsep-1.tmp", "/bucket/x/1.wav"]


def test_a_worker_that_sees_another_folder_for_results_is_refused(settings: Settings) -> None:
    with pytest.raises(BackendError, match="is not the same folder on"):
        Worker(replace(settings, witness=".flowsep-1.tmp"))


@pytest.mark.parametrize("name", ["report.jsonl", "report.parquet"])
def test_the_report_has_a_row_for_each_result(tmp_path: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install '.[cluster]'")
    task = Task("/in", "a\udcff.wav", (("dog", "1.wav"), ("rain", "2.wav")))
    rows = [*failed(task, "/out", "It is broken."), Row("b", "dog", "c", "done", 1.5, 0.25, 2.0, "here")]
    file = tmp_path / "new" / name
    for _ in range(2):  # the second takes the place of the first
        with pytest.raises(KeyboardInterrupt), Report(str(file)) as report:
            report.add(rows)
            raise KeyboardInterrupt
    if file.suffix == ".parquet":
        from pyarrow import parquet

        found = parquet.read_table(file).to_pylist()
    else:
        found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(row["file"], row["query"], row["state"], row["error"]) for row in found] == [
        ("/in/a\\udcff.wav", "dog", "failed", "It is broken."),
        ("/in/a\\udcff.wav", "rain", "failed", "It is broken."),
        ("b", "dog", "done", None),
    ]
    assert (found[2]["seconds"], found[2]["real_time_factor"]) == (1.5, 0.25)
    assert [path.name for path in file.parent.iterdir()] == [name]


def test_a_report_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(OptionError, match=r"end it with .parquet or .jsonl"):
        Report("report.txt")


def test_a_password_in_an_address_is_in_no_message() -> None:
    assert Store("memory://user:secret@bucket").at("x.wav") == "memory://bucket/x.wav"
