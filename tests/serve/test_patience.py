"""Clients that do not read, disks that fill, files that vanish, and servers that are told to end."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
import soundfile
from starlette.types import Message

from flowsep_serve import decoding, jobs, server, service
from flowsep_serve.answers import Streamed
from flowsep_serve.errors import ServeError
from flowsep_serve.limits import Limits
from tests.serve.conftest import (
    RATE,
    Gate,
    Serve,
    client_of,
    connected,
    form,
    listening,
    recording,
    sound,
    wait_for,
)

QUERY = {"query": "rain"}


def asking(address: str, path: str, content: bytes) -> bytes:
    """A request as it goes over the wire."""
    request = httpx.Request("POST", address + path, files={"recording": content}, data=QUERY)
    headers = [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join([f"POST {path} HTTP/1.1", *headers, "", ""]).encode() + request.read()


def test_old_jobs_are_removed_also_after_a_failure(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    calls = []

    def expire() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise FileNotFoundError("a file that vanished")

    monkeypatch.setattr(served.store, "expire", expire)
    with client_of(served):
        wait_for(lambda: len(calls) > 1)


def test_a_job_that_is_removed_while_it_is_looked_at_keeps_no_room(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    with client_of(served) as client:
        job = client.post("/v1/jobs", **form(), data=QUERY).json()["id"]
        wait_for(lambda: served.worker.is_idle)
        (served.store.root / job / "stem-0.wav").unlink()

        def size(_: Path) -> int:
            served.store.remove(job)
            return 1000

        served.store.expire()  # the file is missed without a word
        monkeypatch.setattr(jobs, "_size", size)
        served.store.expire()
        assert served.store.used == 0


def test_a_client_that_does_not_read_its_answer_is_cut_off(serve: Serve) -> None:
    served = serve(stall_time=1)
    # 18 MB, which no socket takes at once; equal channels are computed once
    large = recording(np.repeat(sound(3, 192_000, 1), 8, axis=1), 192_000)
    with listening(served) as address, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = address.removeprefix("http://").split(":")
        client.connect((host, int(port)))
        client.sendall(asking(address, "/v1/separate", large))
        assert client.recv(12) == b"HTTP/1.1 200"
        wait_for(lambda: served.store.used == 0)
    assert [path.name for path in served.store.root.iterdir()] == [".lock"]


def test_a_client_that_sends_no_request_is_cut_off(serve: Serve) -> None:
    with listening(serve(stall_time=1)) as address, connected(address) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
        client.settimeout(60)
        assert client.recv(100) == b""


def test_an_answer_that_is_read_for_too_long_breaks_off() -> None:
    sent: list[Message] = []
    ended = []

    async def content() -> Any:
        for number in range(5):
            yield bytes([number])

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    answer = Streamed(content(), lambda: ended.append(1), lambda: len(sent) > 2)
    anyio.run(answer, {"type": "http", "method": "GET", "headers": []}, receive, send)
    assert [message.get("body") for message in sent] == [None, b"\x00", b"\x01"]
    assert ended == [1]


def test_room_is_promised_before_a_sample_is_written(tmp_path: Path) -> None:
    decoding.prepare()
    soundfile.write(tmp_path / "zeros.flac", np.zeros((500_000, 2)), RATE)
    (tmp_path / "zeros.flac").rename(tmp_path / decoding.UPLOAD)
    asked = []

    def reserve(samples: int) -> None:
        asked.append(samples)
        raise ServeError(507, "There is no room.")

    with pytest.raises(ServeError, match="There is no room"):
        decoding.decode(tmp_path, Limits(), reserve)
    assert asked == [1_000_000]
    assert not (tmp_path / decoding.SAMPLES).exists()


def test_a_small_upload_of_a_large_sound_is_refused(serve: Serve) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((500_000, 1)), RATE, format="FLAC")
    with client_of(serve(max_disk=4)) as client:
        answer = client.post("/v1/jobs", **form(file.getvalue()), data=QUERY)
    assert len(file.getvalue()) < 100_000
    assert answer.status_code == 413
    assert "need 10 MiB of disk, more than the 4 MiB" in answer.json()["error"]


@pytest.fixture
def small_files() -> Iterator[Any]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_is_told_in_a_sentence(
    serve: Serve, gate: Gate, small_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    full = {"error": "The server's disk is full: try again later."}
    with client_of(served) as client:
        gate.open.clear()
        job = client.post("/v1/jobs", **form(), data=QUERY).json()["id"]
        wait_for(lambda: gate.steps == 1)
        small_files(20_000)
        gate.open.set()
        wait_for(lambda: served.worker.is_idle)
        small_files(None)
        assert client.get(f"/v1/jobs/{job}").json()["error"] == full["error"]
        assert client.get(f"/v1/jobs/{job}/stems/rain.wav").status_code == 507

        def copy(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(service, "_copy", copy)
        answer = client.post("/v1/separate", **form(), data=QUERY)
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (507, full, "60")


def test_a_wav_of_which_the_disk_takes_a_part_is_no_whole_answer(
    serve: Serve, gate: Gate, small_files: Any
) -> None:
    served = serve()
    gate.only = 15  # of 33; the first part is known after 3
    long = recording(sound(20, 16000, 1), 16000, "PCM_16")
    files = {"recording": long}
    with (
        listening(served) as address,
        httpx.stream("POST", f"{address}/v1/separate", files=files, data=QUERY, timeout=60) as answer,
    ):
        pieces = answer.iter_bytes(100)
        next(pieces)
        wait_for(lambda: gate.steps == 15)
        small_files(600_001)
        gate.open.set()
        with pytest.raises(httpx.RemoteProtocolError):
            b"".join(pieces)


def test_an_answer_tells_its_warnings(client: Any) -> None:
    silence = recording(np.zeros((RATE // 10, 1)))
    for ending in ("wav", "flac"):
        answer = client.post("/v1/separate", **form(silence), data=QUERY | {"format": ending})
        assert json.loads(answer.headers["flowsep-warnings"]) == ["The audio is silent: so is the result."]
    answer = client.post("/v1/separate", **form(silence), data={"query": ["dog", "rain"]})
    assert json.loads(answer.headers["flowsep-warnings"]) == ["The audio is silent: so is the result."]
    assert json.loads(client.post("/v1/separate", **form(), data=QUERY).headers["flowsep-warnings"]) == []


def test_a_server_that_ends_breaks_uploads_off_and_says_what_it_waits_for(serve: Serve, gate: Gate) -> None:
    served = serve()
    told: list[str] = []
    served.tell = told.append
    with listening(served) as address, connected(address) as upload:
        gate.open.clear()
        place = httpx.post(f"{address}/v1/jobs", **form(), data=QUERY).headers["location"]
        wait_for(lambda: gate.steps == 1)
        upload.sendall(asking(address, "/v1/jobs", recording())[:-100])
        wait_for(lambda: served.worker._admitted == 2)
        served.asked_to_end = True
        upload.settimeout(60)
        assert upload.recv(12) == b"HTTP/1.1 503"
        wait_for(lambda: len(told) == 1)
        gate.open.set()
        wait_for(lambda: len(told) == 2)
        assert httpx.get(f"{address}{place}/stems/rain.wav").status_code == 200
        wait_for(lambda: not any(thread.name == "flowsep-http" for thread in threading.enumerate()))
    assert told[0].startswith("What runs is finished")
    assert told[1].startswith("The results can be fetched for 30 s")


def test_a_job_that_nobody_knows_is_dropped(serve: Serve, gate: Gate) -> None:
    """A page that is left in the middle of its upload never learns the job's name."""
    served = serve()
    gate.open.clear()
    with listening(served) as address:
        with connected(address) as client:
            client.sendall(asking(address, "/v1/jobs", recording()))
        wait_for(lambda: b'status="499"' in served.metrics.text())
        assert served.store.all() == []
        gate.open.set()
        wait_for(lambda: served.worker.is_idle)
    assert [path.name for path in served.store.root.iterdir()] == [".lock"]


def test_a_result_that_is_being_sent_goes_with_its_job(serve: Serve) -> None:
    served = serve()
    large = recording(np.repeat(sound(3, 192_000, 1), 8, axis=1), 192_000)
    with listening(served) as address, httpx.Client(base_url=address, timeout=60) as client:
        job = client.post("/v1/jobs", files={"recording": large}, data=QUERY).json()["id"]
        wait_for(lambda: served.store.get(job).state == "done")
        stem = served.store.get(job).stems[0]
        size = stem.path.stat().st_size
        with client.stream("GET", f"/v1/jobs/{job}/stems/{stem.name}") as answer:
            assert int(answer.headers["content-length"]) == size > 1 << 24
            content = answer.iter_raw(1 << 16)
            received = len(next(content))
            assert httpx.delete(f"{address}/v1/jobs/{job}").status_code == 204
            with pytest.raises(httpx.RemoteProtocolError):
                received += sum(map(len, content))
        assert received < size


def test_a_client_is_not_cut_off_that_reads_two_kilobytes_a_second(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers = []
    made = server.Connection.connection_made

    def noted(self: server.Connection, transport: asyncio.Transport) -> None:
        made(self, transport)
        connection = transport.get_extra_info("socket")
        buffers.append(connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))

    monkeypatch.setattr(server.Connection, "connection_made", noted)
    with listening(serve()) as address:
        assert httpx.get(f"{address}/healthz").status_code == 200
    # the system takes more when a third of its buffer has been read
    assert max(buffers) / 3 / Limits().stall_time < 2000
