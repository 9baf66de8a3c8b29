"""`flowsep-serve` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import form, recording, sound

LOADING = "flowsep-serve: loading the model; the address comes when it is ready.\n"
ROOT = Path(__file__).parents[2]


@contextmanager
def started(folder: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'serve'}:{ROOT / 'runtime'}", "TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "flowsep_serve.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("flowsep-serve: http://127.0.0.1:"), line
    return line.split()[1]


@pytest.mark.slow
def test_a_terminated_server_finishes_what_runs_and_leaves_nothing(toy_bundle: Path, tmp_path: Path) -> None:
    arguments = (
        "--port",
        0,
        "--bundle",
        toy_bundle,
        "--backend",
        "cpu",
        "--max-steps",
        10_000,
        "--threads",
        1,
    )
    with started(tmp_path, *arguments) as process:
        address = address_of(process)
        long = recording(sound(5, 16000, 1), 16000, "PCM_16")
        asked = httpx.post(
            f"{address}/v1/jobs", **form(long), data={"query": "rain", "steps": "400"}, timeout=60
        )
        place = address + asked.headers["location"]
        while httpx.get(place).json()["state"] == "queued":
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        while httpx.get(f"{address}/readyz").status_code != 503:
            time.sleep(0.01)
        assert httpx.post(f"{address}/v1/jobs", **form(), data={"query": "rain"}).status_code == 503
        while (job := httpx.get(place).json())["state"] == "running":
            time.sleep(0.05)
        assert job["state"] == "done"
        assert all(httpx.get(address + stem["url"]).status_code == 200 for stem in job["stems"])
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    running, result = err.removeprefix(LOADING).splitlines()
    at_once = "A second signal (Ctrl-C) ends at once."
    assert running == f"flowsep-serve: What runs is finished before the end. {at_once}"
    assert result == f"flowsep-serve: The results can be fetched for 30 s more. {at_once}"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("flowsep-serve")]


@pytest.mark.slow
def test_a_second_signal_ends_at_once(toy_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--port", 0, "--bundle", toy_bundle, "--backend", "cpu", "--max-steps", 10_000)
    with started(tmp_path, *arguments) as process:
        address = address_of(process)
        long = recording(sound(60, 16000, 1), 16000, "PCM_16")
        data = {"query": "rain", "steps": "10000"}
        asked = httpx.post(f"{address}/v1/jobs", **form(long), data=data, timeout=60)
        process.send_signal(signal.SIGINT)
        while httpx.get(f"{address}/readyz").status_code != 503:
            time.sleep(0.01)
        assert process.stderr is not None and process.stderr.readline() == LOADING
        assert "Ctrl-C" in process.stderr.readline()
        # an answer that goes on does not hold it either
        with httpx.stream("GET", f"{address}{asked.headers['location']}/events", timeout=60) as events:
            next(events.iter_bytes())
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    assert process.returncode == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("flowsep-serve")]


INTERRUPTED_WHILE_LOADING = """
import atexit, os, signal, sys, time
from flowsep_runtime import Separator
from flowsep_serve import worker
from flowsep_serve.cli import main

number = int(sys.argv.pop())

def load(*ignored, **too):
    os.kill(os.getpid(), number)
    time.sleep(60)

Separator.warm_up = load
worker.PATIENCE = 0.1
atexit.register(print, "Python ends")
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said", "code"), [(signal.SIGINT, "interrupted.", 130), (signal.SIGTERM, "terminated.", 143)]
)
def test_a_signal_while_it_loads_ends_nothing_under_the_thread_that_loads(
    toy_bundle: Path, tmp_path: Path, number: signal.Signals, said: str, code: int
) -> None:
    arguments = ("--port", 0, "--backend", "cpu", "--bundle", toy_bundle, int(number))
    found = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_LOADING, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'serve'}:{ROOT / 'runtime'}", "TMPDIR": str(tmp_path)},
        timeout=60,
    )
    assert (found.returncode, found.stdout) == (code, "")
    assert found.stderr == f"{LOADING}flowsep-serve: {said}\n"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("flowsep-serve")]


@pytest.mark.slow
def test_a_port_that_is_taken_and_a_host_for_all_are_refused(toy_bundle: Path, tmp_path: Path) -> None:
    with started(tmp_path, "--port", 0, "--bundle", toy_bundle, "--backend", "cpu") as process:
        port = address_of(process).rpartition(":")[2]
        with started(tmp_path, "--port", port, "--bundle", toy_bundle) as second:
            _, err = second.communicate(timeout=60)
            assert second.returncode == 2
            advice = "give another --port; 0 takes any that is free."
            assert err == f"flowsep-serve: Port {port} of 127.0.0.1 is in use: {advice}\n"
    with started(tmp_path, "--host", "192.0.2.1", "--insecure") as elsewhere:
        _, err = elsewhere.communicate(timeout=60)
        assert elsewhere.returncode == 2
        assert re.search(r"^flowsep-serve: 192\.0\.2\.1 port 8000 cannot be had \([^()]+\): give", err)
    with started(tmp_path, "--host", "0.0.0.0", "--port", 0) as open_to_all:
        _, err = open_to_all.communicate(timeout=60)
        assert open_to_all.returncode == 2
        assert "give --api-key-file, or --insecure" in err and err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks of this kind")
def test_a_link_that_another_user_left_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowsep_serve import jobs

    victim = tmp_path / "victim.txt"
    victim.write_text("kept")
    (tmp_path / f"{jobs.PREFIX}abc").mkdir()
    (tmp_path / f"{jobs.PREFIX}abc" / ".lock").symlink_to(victim)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    jobs._remove_abandoned()
    assert victim.read_text() == "kept"
