"""Answers of the API, and what they have in common with those of `Separator`."""

from __future__ import annotations

import io
import json
import time
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient

from flowsep_runtime import Separator
from flowsep_runtime.options import Options
from flowsep_serve import documents
from flowsep_serve.api import _short
from flowsep_serve.orders import FORMATS
from flowsep_serve.service import Service
from tests.serve.conftest import (
    RATE,
    Gate,
    Serve,
    client_of,
    form,
    heard,
    listening,
    recording,
    sound,
    wait_for,
)


def job_of(client: TestClient, **data: Any) -> dict[str, Any]:
    """A job that has come to its end."""
    answer = client.post("/v1/jobs", **form(), data={"query": "rain", **data})
    assert answer.status_code == 202, answer.text
    place = answer.headers["location"]
    for _ in range(400):
        job: dict[str, Any] = client.get(place).json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.02)
    raise AssertionError("the job does not end")


@pytest.mark.parametrize("kind", ["masked", "generated"])
def test_one_query_is_answered_with_its_sound(client: TestClient, separator: Separator, kind: str) -> None:
    data = {"query": "dog barking", "kind": kind, "steps": "2", "seed": "3"}
    answer = client.post("/v1/separate", **form(), data=data)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav"), answer.text
    expected = separator.separate(sound(), RATE, "dog barking", kind=kind, steps=2, seed=3)  # type: ignore[arg-type]
    np.testing.assert_array_equal(heard(answer.content), expected.target)


def test_remove_gives_the_rest(client: TestClient, separator: Separator) -> None:
    answer = client.post("/v1/separate", **form(), data={"query": "rain", "kind": "masked", "remove": "true"})
    expected = separator.separate(sound(), RATE, "rain", kind="masked")
    np.testing.assert_array_equal(heard(answer.content), expected.residual)


def test_several_queries_are_answered_with_a_zip_whose_stems_add_up(client: TestClient) -> None:
    data = {"query": ["dog barking", "rain", "Rain!"], "kind": "masked"}
    answer = client.post("/v1/separate", **form(), data=data)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["dog-barking.wav", "rain.wav", "rain-2.wav", "rest.wav"]
        stems = [heard(archive.read(name)) for name in archive.namelist()]
    np.testing.assert_allclose(sum(stems), sound(), atol=1e-6)


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_of_the_command_line_is_written(client: TestClient, ending: str) -> None:
    content = recording(sound(0.3, 48000), 48000)
    answer = client.post("/v1/separate", **form(content), data={"query": "rain", "format": ending})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("audio/")
    assert abs(len(heard(answer.content)) - 14400) <= (2500 if ending == "mp3" else 0)


def test_a_job_tells_its_progress_and_gives_the_bytes_of_a_request_that_waits(
    client: TestClient,
) -> None:
    data = {"query": "rain", "steps": "5", "format": "flac"}
    place = client.post("/v1/jobs", **form(), data=data).headers["location"]
    with client.stream("GET", f"{place}/events") as stream:
        events = [line for line in stream.iter_lines() if line]
    assert events[-2] == "event: end"
    job = json.loads(events[-1].removeprefix("data: "))
    assert job["state"] == "done" and job["steps_done"] == job["steps"] == 5
    assert [stem["query"] for stem in job["stems"]] == ["rain", None]
    stem = client.get(job["stems"][0]["url"])
    assert stem.headers["content-disposition"] == 'attachment; filename="rain.flac"'
    assert stem.content == client.post("/v1/separate", **form(), data=data).content
    with zipfile.ZipFile(io.BytesIO(client.get(f"{place}/stems.zip").content)) as archive:
        assert archive.read("rain.flac") == stem.content


def test_a_job_that_is_deleted_leaves_nothing(serve: Serve) -> None:
    service = serve()
    with client_of(service) as client:
        job = job_of(client)
        assert (service.store.root / job["id"]).is_dir()
        assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
        assert client.get(f"/v1/jobs/{job['id']}").status_code == 404
        assert client.get(job["stems"][0]["url"]).status_code == 404
    assert [path.name for path in service.store.root.iterdir()] == [".lock"]


def test_a_job_expires(serve: Serve) -> None:
    service = serve(keep=100)
    with client_of(service) as client:
        kept, old = job_of(client), job_of(client)
        found = service.store.get(old["id"])
        assert found.finished is not None
        found.finished -= 101
        service.store.expire()
        assert client.get(f"/v1/jobs/{old['id']}").status_code == 404
        assert client.get(f"/v1/jobs/{kept['id']}").status_code == 200
    assert {path.name for path in service.store.root.iterdir()} == {".lock", kept["id"]}


def test_a_finished_job_keeps_its_results_and_not_the_recording(serve: Serve) -> None:
    service = serve()
    with client_of(service) as client:
        job = job_of(client)
    names = {path.name for path in (service.store.root / job["id"]).iterdir()}
    assert names == {"stem-0.wav", "stem-1.wav"}


def test_a_request_that_was_answered_leaves_nothing(serve: Serve) -> None:
    service = serve()
    with client_of(service) as client:
        client.post("/v1/separate", **form(), data={"query": ["dog", "rain"]})
        client.post("/v1/separate", **form(), data={"query": "dog"})
        client.post("/v1/separate", **form(b"no sound"), data={"query": "dog"})
    assert [path.name for path in service.store.root.iterdir()] == [".lock"]
    wait_for(lambda: service.worker.is_idle)
    assert service.store.used == 0


@pytest.mark.parametrize("name", ["../../escape.wav", "/etc/passwd", "recording", "a\0b", "x" * 500])
def test_the_name_of_an_upload_is_not_used(client: TestClient, name: str) -> None:
    answer = client.post("/v1/separate", **form(name=name), data={"query": "rain"})
    assert answer.status_code == 200, answer.text
    assert name not in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        ({}, 422, "There is no query: name a sound in the field 'query'."),
        ({"query": " "}, 422, "The query is empty"),
        ({"query": "x" * 501}, 413, "500 characters"),
        ({"query": ["a"] * 9}, 413, "9 queries: give at most 8"),
        ({"query": "a", "colour": "red"}, 422, "There is no field 'colour'"),
        ({"query": "a", "steps": "0"}, 422, "steps must be at least 1"),
        ({"query": "a", "steps": "many"}, 422, "steps: "),
        ({"query": "a", "steps": ["1", "2"]}, 422, "steps is given twice"),
        ({"query": "a", "steps": "201"}, 413, "more than 200"),
        ({"query": "a", "guidance": "nan"}, 422, "guidance"),
        ({"query": "a", "window": "11"}, 422, "window must be"),
        ({"query": "a", "negative": "wind"}, 422, "negative query"),
        ({"query": "a", "solver": "guess"}, 422, "solver"),
        ({"query": "a", "format": "exe"}, 422, "There is no format 'exe'"),
        ({"query": "a", "model": "../toy"}, 404, "There is no model '../toy'"),
        ({"query": ["a", "b"], "remove": "true"}, 422, "remove takes one query"),
        ({"query": "a", "seed": "9" * 5000}, 422, ""),
    ],
    ids=str,
)
def test_a_wrong_form_is_refused_in_a_sentence(
    client: TestClient, data: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post("/v1/separate", **form(), data=data)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]
    assert answer.json()["error"].endswith(".")


def test_a_format_that_does_not_take_the_recording_is_refused_at_once(client: TestClient) -> None:
    content = recording(sound(0.1, 16000, 3))
    answer = client.post("/v1/jobs", **form(content), data={"query": "rain", "format": "mp3"})
    assert answer.status_code == 422
    assert "cannot be written with 3 channels" in answer.json()["error"]


def test_what_is_no_form_or_has_no_recording_is_refused(client: TestClient) -> None:
    assert client.post("/v1/separate", json={"query": "rain"}).status_code == 415
    assert client.post("/v1/separate", files={"other": b"x"}, data={"query": "rain"}).status_code == 422
    two = [("recording", b"x"), ("recording", b"y")]
    assert client.post("/v1/separate", files=two, data={"query": "rain"}).status_code in (400, 422)
    broken = client.post(
        "/v1/separate",
        content=b"--x\r\nnonsense",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert broken.status_code in (400, 422) and "error" in broken.json()


@pytest.mark.parametrize(
    ("address", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/v1/jobs/abc", "GET", 404),
        ("/v1/separate", "GET", 405),
        ("/docs", "GET", 404),
    ],
)
def test_other_addresses_are_refused_in_json(
    client: TestClient, address: str, method: str, status: int
) -> None:
    answer = client.request(method, address)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_silence_is_separated_with_a_warning(client: TestClient) -> None:
    answer = client.post("/v1/jobs", **form(recording(np.zeros((RATE, 1)))), data={"query": "rain"})
    place = answer.headers["location"]
    while (job := client.get(place).json())["state"] in ("queued", "running"):
        time.sleep(0.02)
    assert job["warnings"] == ["The audio is silent: so is the result."]


def test_models_are_those_of_the_folder_and_are_chosen_by_name(serve: Serve, toy_bundle: Path) -> None:
    with client_of(serve(bundle_dir=toy_bundle.parent)) as client:
        assert [model["name"] for model in client.get("/v1/models").json()["models"]] == ["toy"]
        assert (
            client.post("/v1/separate", **form(), data={"query": "rain", "model": "toy"}).status_code == 200
        )


def test_figures_count_requests_and_outcomes(client: TestClient) -> None:
    job_of(client)
    client.post("/v1/separate", **form(b"no sound"), data={"query": "rain"})
    text = client.get("/metrics").text
    assert 'flowsep_jobs_total{outcome="done"} 1.0' in text
    assert 'flowsep_requests_total{method="POST",route="/v1/separate",status="422"} 1.0' in text
    assert "flowsep_audio_seconds_total 0.5" in text


def test_an_error_of_ours_is_a_sentence_with_all_headers(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve()

    def broken(self: Service, *_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Service, "accept", broken)
    with client_of(service) as client:
        answer = client.post("/v1/separate", **form(), data={"query": "rain"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "Unexpected ZeroDivisionError: the server's log has the details."}
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_document_has_every_option_and_examples_that_are_true(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/separate"]["post"]["requestBody"]["content"]["multipart/form-data"]
    for option in fields(Options):
        described = body["schema"]["properties"][option.name]
        assert described.get("default") == option.default  # FastAPI leaves nulls out
        assert len(described["description"]) > 5
    assert set(body["example"]) <= set(body["schema"]["properties"])
    job = job_of(client, query="dog barking")
    assert set(documents._JOB_EXAMPLE) == set(job)
    example = document["paths"]["/v1/models"]["get"]["responses"]["200"]["content"]["application/json"][
        "example"
    ]
    assert set(example["models"][0]) == set(client.get("/v1/models").json()["models"][0])


def test_a_wav_is_sent_while_it_is_computed(serve: Serve, gate: Gate) -> None:
    service = serve()
    long = recording(sound(20, 16000, 1), 16000, "PCM_16")
    gate.only = 15  # of 33; the first part is known after 3
    files, data = {"recording": long}, {"query": "a"}
    with (
        listening(service) as address,
        httpx.stream("POST", f"{address}/v1/separate", files=files, data=data, timeout=60) as answer,
    ):
        pieces = answer.iter_bytes()
        content = b""
        while len(content) < 1000:
            content += next(pieces)
        wait_for(lambda: gate.steps == 15)
        assert service.worker.running
        gate.open.set()
        content += b"".join(pieces)
    assert soundfile.info(io.BytesIO(content)).frames == 20 * 16000


def test_warnings_fit_into_a_header() -> None:
    kept = json.loads(_short(["one", "二" * 400, *["three"] * 500]))
    assert kept[:2] == ["one", "二" * 200] and 2 < len(kept) < 400
    assert _short(["x"]) == '["x"]' and _short([]) == "[]"
