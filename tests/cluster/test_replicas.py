"""`flowsep-serve --ray`: the server in front of two replicas, of which one is killed."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowsep_runtime.processors import usable_processors
from flowsep_serve import decoding
from flowsep_serve.limits import Limits
from flowsep_serve.models import Settings
from flowsep_serve.service import Service
from tests.cluster.conftest import environment, processes, wait_for
from tests.serve.conftest import client_of, form, recording, sound

pytest.importorskip("ray.serve", reason="replicas need Ray Serve: pip install '.[cluster]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(usable_processors() < 2, reason="each of the two replicas takes a processor"),
]

#: 40 windows of the toy model, which are sent as they are known.
LONG = recording(sound(25, 16000, 1), 16000, "PCM_16")
ENDLESS = {"query": "rain", "steps": "10000"}


@pytest.fixture(scope="module")
def token() -> str:
    return f"FLOWSEP_TEST={secrets.token_hex(8)}"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The server's folder for temporary files, and for what it says on stderr; its name is short, because
    Ray's sockets lie below it, whose names have 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="flowsep-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def server(token: str, toy_bundle: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, all of whose processes have the token in their environment."""
    name, _, value = token.partition("=")
    arguments = (
        *("--ray", "--cpus", 1, "--port", 0, "--max-steps", 10_000),
        *("--bundle", toy_bundle, "--backend", "cpu"),
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "flowsep_serve.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=(folder / "err").open("w"),
        text=True,
        env=environment() | {name: value, "TMPDIR": str(folder)},
    )
    try:
        yield process
    finally:
        for _ in range(2):  # the second signal ends at once; Ray's agents outlive a process that is killed
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        process.communicate(timeout=120)


@pytest.fixture(scope="module")
def client(server: subprocess.Popen[str]) -> Iterator[httpx.Client]:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith("flowsep-serve: http://127.0.0.1:"), line
    with httpx.Client(base_url=line.split()[1], timeout=240) as client:
        yield client


@pytest.fixture
def plain(toy_bundle: Path) -> Iterator[Any]:
    """A client of a server without a cluster."""
    decoding.prepare()
    settings = Settings(toy_bundle, None, "cpu", "exact", 1)
    service = Service(settings.models(), Limits())
    service.rules = service.rules.__class__(hosts=None)
    service.worker.start()
    service.worker.wait_until_ready()
    with client_of(service) as client:
        yield client
    service.close()


def figure(client: httpx.Client, name: str) -> float:
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def started(client: httpx.Client, content: bytes, data: Any) -> str:
    """The address of a job that runs."""
    place = str(client.post("/v1/jobs", **form(content), data=data).headers["location"])
    wait_for(lambda: client.get(place).json()["state"] == "running")
    return place


def busiest(replicas: list[int]) -> int:
    """The process that computes most."""

    def used(process: int) -> int:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11])

    before = {process: used(process) for process in replicas}
    time.sleep(0.3)
    return max(before, key=lambda process: used(process) - before[process])


def test_replicas_come_with_work_and_are_free_when_it_is_cancelled(client: httpx.Client) -> None:
    assert figure(client, "flowsep_models") == 1
    places = [started(client, LONG, ENDLESS) for _ in range(2)]
    assert figure(client, "flowsep_running") == figure(client, "flowsep_models") == 2
    waiting = client.post("/v1/jobs", **form(), data={"query": "rain"}).json()
    assert (waiting["state"], waiting["position"]) == ("queued", 1)
    for place in places:
        assert client.delete(place).status_code == 204
    wait_for(lambda: figure(client, "flowsep_running") == 0)
    # each of the two replicas gets one of these
    with ThreadPoolExecutor(2) as threads:
        answers = threads.map(lambda _: client.post("/v1/separate", **form(), data={"query": "rain"}), "ab")
        assert [answer.status_code for answer in answers] == [200, 200]


def test_two_replicas_answer_side_by_side_what_one_process_does(client: httpx.Client, plain: Any) -> None:
    data: Any = {"query": ["rain", "dog"], "format": "flac"}
    recordings = [LONG, *(recording(sound(seed=seed), subtype="PCM_16") for seed in range(3))]

    def ask(client: Any, content: bytes) -> bytes:
        answer = client.post("/v1/separate", **form(content), data=data)
        assert answer.status_code == 200, answer.text
        return bytes(answer.content)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda content: ask(client, content), recordings))
    assert answers == [ask(plain, content) for content in recordings]
    silent = client.post("/v1/separate", **form(recording(0 * sound())), data={"query": "rain"})
    assert json.loads(silent.headers["flowsep-warnings"]) == ["The audio is silent: so is the result."]
    assert figure(client, "flowsep_models") == 2


def test_a_replica_that_is_killed_in_the_middle_costs_no_job(
    client: httpx.Client, plain: Any, token: str, folder: Path
) -> None:
    data = {"query": "rain", "steps": "150"}
    with client.stream("POST", "/v1/separate", **form(LONG), data=data) as answer:
        pieces = answer.iter_bytes(1000)
        content = next(pieces)
        victim = busiest(processes(token, "ray::ServeReplica"))
        assert figure(client, "flowsep_running") == 1
        os.kill(victim, signal.SIGKILL)
        content += b"".join(pieces)
    assert content == plain.post("/v1/separate", **form(LONG), data=data).content
    assert (folder / "err").read_text().count("A replica has died") == 1
    wait_for(lambda: figure(client, "flowsep_models") == 2)


def test_a_terminated_server_finishes_what_runs_and_leaves_no_process(
    client: httpx.Client, server: subprocess.Popen[str], token: str, folder: Path
) -> None:
    place = started(client, LONG, {"query": "rain", "steps": "100"})
    server.send_signal(signal.SIGTERM)
    wait_for(lambda: client.get("/readyz").status_code == 503)
    wait_for(lambda: client.get(place).json()["state"] != "running")
    job = client.get(place).json()
    assert job["state"] == "done"
    for stem in job["stems"]:
        assert client.get(stem["url"]).status_code == 200
    assert server.wait(60) == 0
    wait_for(lambda: not processes(token))
    assert not list(folder.glob("flowsep-serve-*"))
