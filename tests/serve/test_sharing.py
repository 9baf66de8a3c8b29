"""Requests that share a GPU, on a double: the `cuda` backend with sessions on the CPU."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from flowsep_runtime import BackendError, OptionError, Pipeline
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.onnxruntime import cuda
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_serve import cli, sharing
from flowsep_serve.models import Models, Settings
from flowsep_serve.service import Service
from tests.gpu.cpu_sessions import session_on_the_cpu
from tests.serve.conftest import Gate, Serve, client_of, form, heard, recording, sound, wait_for


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Pipeline]:
    monkeypatch.setattr(cuda, "open_session", session_on_the_cpu)
    monkeypatch.setattr(cuda, "DEVICE", "cpu")

    def load(bundle: Path) -> Pipeline:
        manifest = Manifest.read(bundle)
        return Pipeline(bundle, manifest, cuda.open(bundle, manifest, "exact", None, False))

    return load


class Shared:
    """A server on the double whose device can be held in a request's run."""

    def __init__(self, service: Service, client: TestClient, gate: Gate) -> None:
        self.service, self.client, self.gate = service, client, gate
        models: Any = service.models
        self._device = models._device
        self.backend = models._open[next(iter(models))].pipeline.backend

    def post(self, content: bytes | None = None, **data: Any) -> str:
        """The address of a new job."""
        answer = self.client.post("/v1/jobs", **form(content), data={"query": "rain", **data})
        assert answer.status_code == 202, answer.text
        return str(answer.headers["location"])

    def hold(self) -> str:
        """Holds the device in the first step of a job; its address."""
        self.gate.only = self.gate.steps + 1
        place = self.post(mono(1))
        wait_for(lambda: not self.gate.open.is_set())
        return place

    def wait_behind(self, *requests: dict[str, Any]) -> list[str]:
        """The addresses of jobs that wait for the device, one behind the other."""
        places = []
        for number, request in enumerate(requests, 1):
            places.append(self.post(**request))
            wait_for(partial(self._has, number))
        return places

    def _has(self, number: int) -> bool:
        return len(self._device._waiting) == number

    def go_on(self, only: int | None = None) -> None:
        """Lets the device go, or go on for some steps."""
        self.gate.only = None if only is None else self.gate.steps + only
        self.gate.open.set()

    def state(self, place: str) -> str:
        return str(self.client.get(place).json()["state"])

    def result(self, place: str) -> np.ndarray[Any, Any]:
        """A job's first stem, when it is done."""
        wait_for(lambda: self.state(place) not in ("queued", "running"))
        job = self.client.get(place).json()
        assert job["state"] == "done", job
        return heard(self.client.get(job["stems"][0]["url"]).content)

    @property
    def rows(self) -> tuple[int, int]:
        """Runs so far, and their rows together."""
        text = self.service.metrics.text().decode()
        count, total = (re.search(rf"^flowsep_rows_{each} (.*)", text, re.M) for each in ("count", "sum"))
        assert count is not None and total is not None
        return int(float(count[1])), int(float(total[1]))


@pytest.fixture
def shared(serve: Serve, on_cuda: Callable[[Path], Pipeline], gate: Gate) -> Iterator[Shared]:
    service = serve(load=on_cuda)
    with client_of(service) as client:
        yield Shared(service, client, gate)
        gate.open.set()


def mono(seed: int) -> bytes:
    return recording(sound(channels=1, seed=seed))


REQUESTS: list[dict[str, Any]] = [
    {"content": mono(2), "seed": "2"},
    {"content": recording(sound(seed=3)), "query": "dog barking " * 30},  # stereo: two rows
    {"content": mono(4), "steps": "2"},  # not beside those of three steps
    {"content": mono(5), "query": "a bell"},
    {"content": mono(6), "query": ["a drum", "rain"], "kind": "masked"},  # without the vocoder
    {"content": mono(7), "query": ["a", "b"], "kind": "masked", "solver": "ab2"},
    {"content": mono(8), "query": "c", "kind": "masked"},
]


@pytest.fixture
def alone(serve: Serve, on_cuda: Callable[[Path], Pipeline]) -> list[np.ndarray[Any, Any]]:
    """Answers of a server that computes one request after the other."""
    service = serve(load=on_cuda, alone=True)
    with client_of(service) as client:
        server = Shared(service, client, Gate())
        results = [server.result(server.post(**request)) for request in REQUESTS]
    assert (service.models.side_by_side, server.rows) == (1, (0, 0))
    return results


def test_what_waits_goes_together_and_gives_each_what_it_gives_alone(
    alone: list[np.ndarray[Any, Any]], shared: Shared
) -> None:
    assert shared.rows == (0, 0), "a warm-up is no request's"
    first = shared.hold()
    places = shared.wait_behind(*REQUESTS)
    assert {shared.state(place) for place in places} == {"running"}
    shared.go_on()
    for place, expected in zip(places, alone, strict=True):
        assert np.allclose(shared.result(place), expected, atol=1e-6)
    # 1 held; 1 + 2 + 1 of three steps, 1 of two, 2 + 1 masked, 2 of another solver
    assert shared.rows == (5, 1 + 4 + 1 + 3 + 2)
    warned = [place for place in (first, *places) if shared.client.get(place).json()["warnings"]]
    assert warned == [places[1]], "its query is cut, and no other"


def test_a_request_that_is_cancelled_goes_at_once_and_leaves_its_neighbours_whole(
    alone: list[np.ndarray[Any, Any]], shared: Shared
) -> None:
    def cancel(place: str) -> None:
        (job,) = [job for job in shared.service.worker.running if place.endswith(job.id)]
        assert shared.client.delete(place).status_code == 204
        wait_for(lambda: job.state == "cancelled")

    shared.hold()
    waits, beside, runs, last = shared.wait_behind(REQUESTS[4], REQUESTS[0], REQUESTS[3], REQUESTS[6])
    cancel(waits)  # while the device is held
    shared.go_on(only=2 + 1)  # into the first step of the two that go together
    wait_for(lambda: not shared.gate.open.is_set())
    cancel(runs)
    assert shared.state(beside) == shared.state(last) == "running"
    shared.go_on()
    assert np.allclose(shared.result(beside), alone[0], atol=1e-6)
    assert np.allclose(shared.result(last), alone[6], atol=1e-6)
    assert shared.rows == (3, 1 + 2 + 1)


@pytest.mark.usefixtures("alone")  # its queries are encoded: only runs wait for the device
def test_a_run_that_nobody_wants_stops_at_its_next_step(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[str] = []
    keep = shared.backend.keep

    def watched(graph: str, inputs: Any) -> Any:
        graphs.append(graph)
        return keep(graph, inputs)

    monkeypatch.setattr(shared.backend, "keep", watched)
    shared.hold()
    places = shared.wait_behind(REQUESTS[0], REQUESTS[3])
    shared.go_on(only=2 + 1)
    wait_for(lambda: not shared.gate.open.is_set())
    graphs.clear()
    for place in places:
        assert shared.client.delete(place).status_code == 204
    wait_for(lambda: shared.service.worker.is_idle)
    steps = shared.gate.steps
    shared.go_on()
    shared.result(shared.post())
    assert shared.gate.steps == steps + 3
    assert graphs.count("decode_latent") == graphs.count("vocode") == 1, "of the last job alone"


def test_a_fault_costs_one_request_and_not_those_beside_it(
    alone: list[np.ndarray[Any, Any]], shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = shared.backend.keep

    def faulty(graph: str, inputs: Any) -> Any:
        if graph == "decode_latent" and faulty_query in asked:
            raise BackendError("The GPU failed.")
        if graph == "velocity_text":
            asked.clear()
            asked.update(int(row.sum()) for row in inputs["mask"])
        return keep(graph, inputs)

    asked: set[int] = set()
    query = "one two three four"
    faulty_query = len(query.split()) + 1
    shared.result(shared.post(query=query))  # from then on its text waits for no device
    shared.hold()
    places = shared.wait_behind(REQUESTS[0], {"content": mono(9), "query": query}, REQUESTS[3])
    steps = shared.gate.steps
    monkeypatch.setattr(shared.backend, "keep", faulty)
    shared.go_on()
    for place, number in ((places[0], 0), (places[2], 3)):
        assert np.allclose(shared.result(place), alone[number], atol=1e-6)
        job = shared.client.get(place).json()
        assert (job["steps_done"], job["steps"]) == (3, 3), "told once"
    failed = shared.client.get(places[1]).json()
    assert (failed["state"], failed["error"]) == ("failed", "The GPU failed.")
    assert shared.gate.steps == steps + 2 + 3 * 3


def test_one_thread_computes_for_all_requests_and_models(
    serve: Serve, on_cuda: Callable[[Path], Pipeline], gate: Gate, toy_bundle: Path, tmp_path: Path
) -> None:
    """Also for a recording whose windows are solved together, step by step from its own thread."""
    threads: set[str] = set()

    def load(bundle: Path) -> Pipeline:
        pipeline = on_cuda(bundle)
        backend: Any = pipeline.backend
        session = backend.session

        @contextmanager
        def watched() -> Iterator[None]:
            threads.add(threading.current_thread().name)
            with session():
                yield

        backend.session = watched
        return pipeline

    for name in ("toy", "other"):
        (tmp_path / name).symlink_to(toy_bundle, target_is_directory=True)
    long = recording(sound(2, channels=1))
    service = serve(bundle_dir=tmp_path, load=load)
    with client_of(service) as client:
        server = Shared(service, client, gate)
        places = [server.post(long, model=name) for name in ("toy", "other", "toy")]
        for place in places:
            server.result(place)
    assert threads == {"flowsep-device_0"}


@pytest.mark.usefixtures("alone")  # its queries are encoded: only runs wait for the device
def test_a_server_that_ends_waits_for_what_the_device_computes(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "PATIENCE", 0.01)
    worker = shared.service.worker
    first = shared.hold()
    (second,) = shared.wait_behind(REQUESTS[0])
    worker.drain()
    assert shared.client.post("/v1/jobs", **form(), data={"query": "rain"}).status_code == 503
    shared.go_on(only=2 + 1)
    shared.result(first)
    wait_for(lambda: not shared.gate.open.is_set())
    worker.stop()
    assert shared.state(second) == "cancelled"
    assert worker.is_alive, "the device is in a step"
    shared.gate.open.set()
    wait_for(lambda: not worker.is_alive)


@pytest.mark.parametrize(("mixtures", "rows", "threads"), [(64, 64, 8), (1, 2, 1), (2, 4, 4), (4, 1, 1)])
def test_as_many_requests_go_side_by_side_as_the_device_takes(
    serve: Serve,
    on_cuda: Callable[[Path], Pipeline],
    monkeypatch: pytest.MonkeyPatch,
    mixtures: int,
    rows: int,
    threads: int,
) -> None:
    monkeypatch.setattr(cuda.OnnxRuntimeCuda, "batches", Range(1, 1, mixtures))
    monkeypatch.setattr(cuda.OnnxRuntimeCuda, "loop_batches", Range(1, 1, rows))
    service = serve(load=on_cuda)
    assert service.models.side_by_side == threads
    assert len([each for each in threading.enumerate() if each.name == "flowsep-worker"]) == threads


def test_on_a_processor_one_thread_computes(serve: Serve) -> None:
    service = serve()
    assert service.models.side_by_side == 1
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("flowsep-worker") == 1
    assert not [name for name in names if name.startswith("flowsep-device")]


@pytest.mark.parametrize("switches", [[], ["--alone"]])
def test_the_switch_reaches_the_models(monkeypatch: pytest.MonkeyPatch, switches: list[str]) -> None:
    def opened(self: Settings) -> Models:
        raise OptionError(f"alone is {self.alone}")

    monkeypatch.setattr(Settings, "models", opened)
    with pytest.raises(OptionError, match=f"^alone is {bool(switches)}$"):
        cli.command.main(["--port", "0", *switches], standalone_mode=False)
