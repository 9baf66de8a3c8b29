"""Load, limits, and doors that stay shut."""

from __future__ import annotations

import io
import os
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient

from flowsep_runtime.audio import media
from flowsep_runtime.audio.reading import AudioReader
from flowsep_runtime.errors import AudioError
from flowsep_serve import cli, decoding
from flowsep_serve.addresses import hosts_for
from flowsep_serve.errors import ServeError
from flowsep_serve.guard import HEADERS, Rules, read_keys
from flowsep_serve.jobs import PREFIX, Store
from flowsep_serve.limits import Limits
from tests.serve.conftest import (
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


def post(client: TestClient, content: bytes | None = None, **data: Any) -> Any:
    return client.post("/v1/jobs", **form(content), data={"query": "rain", **data})


def test_a_full_queue_tells_when_to_come_back(serve: Serve, gate: Gate) -> None:
    service = serve(queue=1)
    with client_of(service) as client:
        gate.open.clear()
        running, waiting = post(client), post(client)
        assert (running.status_code, waiting.status_code) == (202, 202)
        assert client.get(waiting.headers["location"]).json()["position"] == 1
        refused = post(client)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        gate.open.set()
        wait_for(lambda: service.worker.is_idle)
        assert post(client).status_code == 202


def test_a_job_that_waits_too_long_is_ended(serve: Serve, gate: Gate) -> None:
    service = serve(max_wait=10)
    with client_of(service) as client:
        gate.open.clear()
        post(client)
        late = post(client).json()["id"]
        service.store.get(late).queued_at -= 11
        service.worker.drop_late()
        job = client.get(f"/v1/jobs/{late}").json()
        assert (job["state"], job["error"]) == ("failed", "The job has waited more than 10 s.")
        assert client.get(f"/v1/jobs/{late}/stems/rain.wav").status_code == 503


def test_a_deleted_job_stops_within_a_step(serve: Serve, gate: Gate) -> None:
    service = serve()
    with client_of(service) as client:
        gate.open.clear()
        place = post(client, steps="100").headers["location"]
        wait_for(lambda: gate.steps == 1)
        assert client.delete(place).status_code == 204
        gate.open.set()
        wait_for(lambda: service.worker.is_idle)
    assert gate.steps == 1
    assert [path.name for path in service.store.root.iterdir()] == [".lock"]


def test_a_client_that_goes_away_stops_its_work_within_a_step(serve: Serve, gate: Gate) -> None:
    service = serve()
    gate.open.clear()
    with listening(service) as address:
        files, data = {"recording": recording()}, {"query": "rain", "steps": "100"}
        request = httpx.Request("POST", f"{address}/v1/separate", files=files, data=data)
        headers = [f"{name}: {value}" for name, value in request.headers.items()]
        with connected(address) as connection:
            connection.sendall(
                "\r\n".join(["POST /v1/separate HTTP/1.1", *headers, "", ""]).encode() + request.read()
            )
            wait_for(lambda: gate.steps == 1)
        wait_for(lambda: service.worker.running and service.worker.running[0].is_cancelled)
        gate.open.set()
        wait_for(lambda: service.worker.is_idle)
    assert gate.steps == 1
    assert [path.name for path in service.store.root.iterdir()] == [".lock"]


def test_a_client_that_goes_away_while_its_sound_comes_stops_its_work(serve: Serve, gate: Gate) -> None:
    service = serve()
    gate.only = 15  # of 33; the first part is known after 3
    long = recording(sound(20, 16000, 1), 16000, "PCM_16")
    with listening(service) as address:
        files, data = {"recording": long}, {"query": "rain"}
        with httpx.stream("POST", f"{address}/v1/separate", files=files, data=data, timeout=60) as answer:
            pieces = answer.iter_bytes(100)  # held: without its reader the answer closes
            assert len(next(pieces)) == 100
            wait_for(lambda: gate.steps == 15)
        wait_for(lambda: service.worker.running and service.worker.running[0].is_cancelled)
        gate.open.set()
        wait_for(lambda: service.worker.is_idle)
    assert gate.steps == 15
    assert [path.name for path in service.store.root.iterdir()] == [".lock"]


def test_a_client_that_goes_away_in_the_middle_of_its_upload_leaves_nothing(serve: Serve) -> None:
    service = serve()
    with listening(service) as address:
        with connected(address) as connection:
            connection.sendall(
                b"POST /v1/separate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            wait_for(lambda: not service.worker.is_idle)
        wait_for(lambda: service.worker.is_idle)
    assert [path.name for path in service.store.root.iterdir()] == [".lock"]


def test_an_upload_that_takes_too_long_is_ended(serve: Serve) -> None:
    service = serve(upload_time=1)

    def slowly() -> Any:
        yield b"--x\r\n"
        time.sleep(2)
        yield b"--x--\r\n"

    with listening(service) as address, httpx.Client() as client:
        answer = client.post(
            f"{address}/v1/jobs",
            content=slowly(),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
    assert answer.status_code == 408
    assert service.worker.is_idle


def test_an_upload_that_is_too_large_is_refused_with_and_without_its_length(serve: Serve) -> None:
    service = serve(max_upload=1)
    large = recording(sound(10, 44100))
    with client_of(service) as client:
        refused = post(client, large)
        assert (refused.status_code, refused.json()["error"]) == (413, "The upload is larger than 1 MiB.")

    def chunks() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="recording"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield bytes(1 << 17)

    with listening(service) as address, httpx.Client() as plain:
        kind = {"content-type": "multipart/form-data; boundary=x"}
        assert plain.post(f"{address}/v1/jobs", content=chunks(), headers=kind).status_code == 413
    assert service.worker.is_idle


@pytest.mark.parametrize(
    ("limits", "content", "status", "words"),
    [
        ({"max_length": 1}, recording(sound(1.5)), 413, "longer than 1 s"),
        ({"max_channels": 1}, recording(), 413, "has 2 channels: give at most 1"),
        ({"max_disk": 1}, recording(sound(3)), 413, "more than the 1 MiB of this server"),
        ({}, b"RIFF", 422, "The recording is not audio"),
        ({}, b"", 422, "The recording is empty: it holds no bytes."),
        ({}, recording(np.full((100, 1), np.nan)), 422, "NaN"),
        ({}, recording(sound(0.1))[:60], 422, "The recording"),
    ],
    ids=["length", "channels", "disk", "no audio", "empty", "nan", "cut"],
)
def test_a_recording_beyond_a_limit_is_refused(
    serve: Serve, limits: dict[str, int], content: bytes, status: int, words: str
) -> None:
    service = serve(**limits)
    with client_of(service) as client:
        answer = post(client, content)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert str(service.store.root) not in answer.text
    assert service.worker.is_idle and service.store.used == 0


def test_a_decoder_that_wants_too_much_memory_costs_its_request_alone(serve: Serve) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((2_000_000, 8)), 44100, format="FLAC")
    with client_of(serve(decoder_memory=1)) as client:
        refused = post(client, file.getvalue())
        assert refused.status_code == 422
        assert "cannot be decoded within 1 MiB of memory" in refused.json()["error"]
        assert client.get("/healthz").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_hostile_uploads_are_refused_in_a_sentence_or_separated(serve: Serve, kind: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, sound(0.2, 16000, 1), 16000, format=kind)
    random = np.random.default_rng(len(kind))
    service = serve()
    with client_of(service) as client:
        for _ in range(12):
            content = bytearray(file.getvalue())
            for place in random.integers(0, min(200, len(content)), 4):
                content[place] = random.integers(256)
            cut = int(random.integers(1, len(content) + 1))
            answer = client.post("/v1/separate", **form(bytes(content[:cut])), data={"query": "rain"})
            assert answer.status_code in (200, 413, 422), answer.text
            assert answer.status_code == 200 or answer.json()["error"].endswith(".")
    assert [path.name for path in service.store.root.iterdir()] == [".lock"]


def test_a_client_is_not_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    upload = Path(decoding.UPLOAD)
    upload.write_bytes(b"no audio")
    with pytest.raises(AudioError, match="pip install") as raised:
        AudioReader(upload)
    assert decoding.sentence_for_client(raised.value) == (
        "The recording is not audio that can be read: give a file such as WAV, FLAC, OGG or MP3."
    )


def test_a_decoder_that_hangs_is_ended(tmp_path: Path) -> None:
    decoding.prepare()
    os.mkfifo(tmp_path / decoding.UPLOAD)
    with pytest.raises(ServeError, match="takes more than 1 s to decode"):
        decoding.decode(tmp_path, Limits(decoder_time=1), lambda _: None)


KEY = "a-key-of-more-than-16-letters"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    # as an editor on Windows writes it
    text = f"{KEY}\r\n  # a comment that is long enough\r\n\tanother-key-of-the-same-kind\r\n"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_comments_are_no_keys(key_file: Path) -> None:
    assert len(read_keys(key_file)) == 2


@pytest.mark.parametrize("address", ["/v1/models", "/v1/jobs/x", "/metrics", "/v1/jobs/x/stems.zip"])
def test_a_key_is_asked_for_and_taken(serve: Serve, key_file: Path, address: str) -> None:
    with client_of(serve(Rules(read_keys(key_file), None))) as client:
        for wrong in (
            {},
            {"authorization": "Bearer "},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": KEY},
        ):
            refused = client.get(address, headers=wrong)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for right in (KEY, "another-key-of-the-same-kind"):
            assert client.get(address, headers={"authorization": f"Bearer {right}"}).status_code in (200, 404)
        assert client.post("/v1/separate", **form(), data={"query": "rain"}).status_code == 401
        assert client.get("/healthz").status_code == client.get("/").status_code == 200


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n"])
def test_a_file_without_a_good_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(Exception, match="holds no key, or one below 16 characters"):
        read_keys(path)


def test_pages_of_other_sites_are_kept_out(client: TestClient) -> None:
    """A browser sends forms across sites without asking, and a name may be bent to this machine."""
    data = {"query": "rain"}
    foreign = client.post("/v1/jobs", **form(), data=data, headers={"origin": "http://evil.example"})
    assert foreign.status_code == 403
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 421
    own = client.post("/v1/jobs", **form(), data=data, headers={"origin": "http://testserver"})
    assert own.status_code == 202
    assert not [name for name in own.headers if name.startswith("access-control")]


def test_a_server_for_all_may_have_any_name() -> None:
    assert hosts_for("0.0.0.0", ()) is None
    assert hosts_for("127.0.0.1", (b"key",)) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost", "LOCALHOST"])
def test_on_every_address_of_this_machine_alone_the_name_is_held_to_it(host: str) -> None:
    names = hosts_for(host, ())
    assert names is not None and {"localhost", host.lower()} <= set(names)


@pytest.mark.parametrize("address", ["/", "/healthz", "/v1/models", "/nothing", "/page/nothing.js"])
def test_every_answer_has_the_security_headers(client: TestClient, address: str) -> None:
    answer = client.get(address)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value


def test_no_path_leads_out_of_the_page(client: TestClient) -> None:
    for path in ("/page/../api.py", "/page/%2e%2e/api.py", "/page//etc/passwd"):
        assert client.get(path).status_code == 404


def test_a_server_that_ends_takes_nothing_new_and_finishes_what_runs(serve: Serve, gate: Gate) -> None:
    service = serve()
    with client_of(service) as client:
        gate.open.clear()
        running, waiting = post(client).json()["id"], post(client).json()["id"]
        wait_for(lambda: gate.steps == 1)
        ended = threading.Event()
        service.on_drained = ended.set
        service.asked_to_end = True
        wait_for(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/healthz").status_code == 200
        refused = post(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        assert client.get(f"/v1/jobs/{waiting}").json()["state"] == "failed"
        gate.open.set()
        wait_for(lambda: client.get(f"/v1/jobs/{running}").json()["state"] == "done")
        assert not ended.is_set()  # somebody wants the result
        assert client.get(f"/v1/jobs/{running}/stems/rain.wav").status_code == 200
        assert not ended.wait(0.2)  # all of it
        assert client.get(f"/v1/jobs/{running}/stems/rest.wav").status_code == 200
        assert ended.wait(10)


def test_what_a_killed_server_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    abandoned = tmp_path / f"{PREFIX}dead"
    abandoned.mkdir()
    (abandoned / ".lock").touch()
    (abandoned / "samples.f32").touch()
    living = Store(Limits())
    other = Store(Limits())
    assert not abandoned.exists()
    assert living.root.exists()
    living.close()
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_every_limit_is_a_switch_with_its_default() -> None:
    given = cli.command.make_context("test", []).params
    assert {limit.name: given[limit.name] for limit in fields(Limits)} == {
        limit.name: limit.default for limit in fields(Limits)
    }
