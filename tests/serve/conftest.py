"""A server on the toy model, and recordings to send it."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient

from flowsep_runtime import Pipeline, Separator
from flowsep_serve import decoding
from flowsep_serve.api import create_app
from flowsep_serve.guard import Rules
from flowsep_serve.limits import Limits
from flowsep_serve.models import Models
from flowsep_serve.server import Server
from flowsep_serve.service import Service
from tests.runtime.toy_bundle import write_toy_bundle

RATE = 22050


class Gate:
    """Lets solver steps through; shut, it holds the worker in the step."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.steps = 0
        #: Steps after which it shuts by itself.
        self.only: int | None = None


class GatedSeparator(Separator):
    """A separator that waits at a gate after every step."""

    gate: Gate

    def stream(self, *arguments: Any, progress: Any = None, **options: Any) -> Any:
        def told(done: int, steps: int | None) -> None:
            self.gate.steps += 1
            if self.gate.steps == self.gate.only:
                self.gate.open.clear()
            self.gate.open.wait(60)
            progress(done, steps)

        return super().stream(*arguments, progress=told, **options)


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="session")
def separator(toy_bundle: Path) -> Separator:
    return Separator.load(toy_bundle, "cpu", threads=1)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


Serve = Callable[..., Service]


@pytest.fixture
def serve(toy_bundle: Path, gate: Gate) -> Iterator[Serve]:
    """Starts services with limits and rules of the test's own."""
    services = []

    def on_cpu(path: Path) -> Pipeline:
        return Pipeline.load(path, "cpu", threads=1)

    def gated(pipeline: Pipeline) -> Separator:
        separator = GatedSeparator(pipeline)
        separator.gate = gate
        return separator

    def start(
        rules: Rules | None = None,
        bundle_dir: Path | None = None,
        load: Callable[[Path], Pipeline] = on_cpu,
        alone: bool = False,
        **limits: int,
    ) -> Service:
        decoding.prepare()
        models = Models(None if bundle_dir else toy_bundle, bundle_dir, load, alone, gated)
        rules = rules or Rules(hosts=("testserver", "127.0.0.1"))
        service = Service(models, Limits(**limits), rules)
        services.append(service)
        service.worker.start()
        service.worker.wait_until_ready()
        return service

    yield start
    gate.open.set()
    for service in services:
        service.close()
        assert not service.store.root.exists()


@pytest.fixture
def client(serve: Serve) -> Iterator[TestClient]:
    with client_of(serve()) as client:
        yield client


def client_of(service: Service) -> TestClient:
    return TestClient(create_app(service), raise_server_exceptions=False)


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """The address of a real server, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(create_app(service), service)
    thread = threading.Thread(target=server.run, args=([listener],), name="flowsep-http")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def connected(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    from tests.serve.pages import CHROMIUM, SWITCHES

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not happen")


def sound(seconds: float = 0.5, rate: int = RATE, channels: int = 2, seed: int = 1) -> np.ndarray[Any, Any]:
    samples = np.random.default_rng(seed).uniform(-0.4, 0.4, (round(seconds * rate), channels))
    return samples.astype(np.float32)


def recording(samples: np.ndarray[Any, Any] | None = None, rate: int = RATE, subtype: str = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound() if samples is None else samples, rate, subtype, format="WAV")
    return file.getvalue()


def form(content: bytes | None = None, name: str = "mix.wav") -> dict[str, Any]:
    return {"files": {"recording": (name, recording() if content is None else content)}}


def heard(content: bytes) -> np.ndarray[Any, Any]:
    samples, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return np.asarray(samples)
