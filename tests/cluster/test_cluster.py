"""Batches on a cluster of two nodes, of which one goes away, and whose workers die."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.cluster.conftest import (
    RATE,
    SECONDS,
    environment,
    finished,
    processes,
    started,
    wait_for,
    write_sound,
)

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="batches need Ray: pip install '.[cluster]'")

pytestmark = pytest.mark.slow

FILES, CORRUPT = 200, 8
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 << 20}
QUERY = ("--query", "dog barking")


@pytest.fixture(scope="module")
def token() -> str:
    return f"FLOWSEP_TEST={secrets.token_hex(8)}"


@pytest.fixture(scope="module")
def cluster(token: str) -> Iterator[Any]:
    """A cluster of one node, whose processes all have the token in their environment."""
    # Short, since names of sockets are. The address is written there too, not over that of a real cluster.
    folder = tempfile.mkdtemp(prefix="ray-")
    name, _, value = token.partition("=")
    ours = {name: value, "RAY_TMPDIR": folder, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for variable, text in (environment() | ours).items():
            patch.setenv(variable, text)
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE)
        try:
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
    wait_for(lambda: not processes(token))


def _kill_a_worker(token: str) -> bool:
    """Kills a worker that separates, and waits until it is gone; False if there is none now."""
    workers = processes(token, "ray::Holder.work")
    if not workers:
        return False
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: workers[0] not in processes(token))
    return True


def _readers(token: str, pipe: Path) -> list[int]:
    found = []
    for worker in processes(token, "ray::Holder"):
        try:
            names = [os.readlink(each) for each in Path("/proc", str(worker), "fd").iterdir()]
        except OSError:  # it has ended meanwhile
            continue
        found += [worker] if str(pipe) in names else []
    return found


def _rows(report: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]


def test_a_dead_worker_and_a_lost_node_cost_nothing_but_time(
    cluster: Any, token: str, toy_bundle: Path, tmp_path: Path
) -> None:
    source, output, report = tmp_path / "in", tmp_path / "out", tmp_path / "report.jsonl"
    bad = set()
    for number in range(FILES):
        path = source / f"{number % 4}" / f"{number}.wav"
        write_sound(path, number)
        if number % (FILES // CORRUPT) == 3:
            path.write_bytes(path.read_bytes()[:20])
            bad.add(str(path))
    node = cluster.add_node(**NODE)
    arguments = (
        *(source, *QUERY, "--output", output, "--report", report, "--address", cluster.address),
        *("--cpus", 1, "--bundle", toy_bundle, "--backend", "cpu", "--steps", 1),
    )

    def results() -> list[Path]:
        return sorted(output.rglob("[!.]*.wav"))

    process = started(*arguments)
    try:
        wait_for(lambda: process.poll() is not None or len(results()) >= 20)
        wait_for(lambda: process.poll() is not None or _kill_a_worker(token))
        wait_for(lambda: process.poll() is not None or len(results()) >= 60)
        cluster.remove_node(node, allow_graceful=False)
        assert process.poll() is None, "it was over before the node went away"
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1, err
    assert f"{CORRUPT} of {FILES} results failed" in err

    rows = _rows(report)
    assert Counter(row["state"] for row in rows) == {"done": FILES - CORRUPT, "failed": CORRUPT}
    assert len({row["file"] for row in rows}) == FILES
    assert {row["file"] for row in rows if row["state"] == "failed"} == bad
    assert sorted(row["output"] for row in rows if row["state"] == "done") == list(map(str, results()))
    for path in results():
        sound = soundfile.info(path)
        assert (sound.samplerate, sound.frames) == (RATE, round(SECONDS * RATE))
    # a killed process leaves its hidden file, and no other
    others = [path for path in output.rglob("*") if path.is_file() and path not in results()]
    assert all(path.match(".flowsep-*.tmp") for path in others)

    before = {path: path.stat().st_mtime_ns for path in results()}
    code, _, err = finished(*arguments)
    assert code == 1, err
    states = Counter(row["state"] for row in _rows(report))
    assert states == {"done before": FILES - CORRUPT, "failed": CORRUPT}
    assert {path: path.stat().st_mtime_ns for path in results()} == before


def test_a_recording_that_kills_its_workers_is_given_up(
    cluster: Any, token: str, toy_bundle: Path, tmp_path: Path
) -> None:
    """The pipe has no end: whoever reads it is killed."""
    output, report, table = tmp_path / "out", tmp_path / "report.jsonl", tmp_path / "jobs.csv"
    write_sound(tmp_path / "a.wav")
    write_sound(tmp_path / "z.wav")
    os.mkfifo(tmp_path / "b.wav")
    lines = ["recording,query,output", "a.wav,dog,1.wav", "b.wav,dog,2.wav", "z.wav,dog,3.wav"]
    table.write_text("\n".join(lines), encoding="utf-8")
    pipe = os.open(tmp_path / "b.wav", os.O_RDWR)  # so that it has no end
    process = started(
        *("--table", table, "--output", output, "--report", report, "--address", cluster.address),
        *("--cpus", 1, "--bundle", toy_bundle, "--backend", "cpu", "--steps", 1),
    )
    try:
        end = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < end:
            for worker in _readers(token, tmp_path / "b.wav"):
                os.kill(worker, signal.SIGKILL)
            time.sleep(0.05)
        _, err = process.communicate(timeout=60)
    finally:
        os.close(pipe)
        process.kill()
        process.communicate()
    assert process.returncode == 1, err
    states = {Path(row["file"]).name: (row["state"], row["error"]) for row in _rows(report)}
    assert states["a.wav"] == states["z.wav"] == ("done", None)
    assert states["b.wav"][0] == "failed"
    assert states["b.wav"][1].startswith("3 workers died over this recording")
