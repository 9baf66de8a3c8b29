"""The owner of replicas and Ray's errors, on doubles of Ray."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flowsep_batch.cluster import Device
from flowsep_runtime import __version__
from flowsep_runtime.errors import BackendError, FlowSepWarning, OutputError
from flowsep_serve.errors import CancelledError
from flowsep_serve.models import Settings

pytest.importorskip("ray.serve", reason="replicas need Ray Serve: pip install '.[cluster]'")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def owner(told: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    from flowsep_serve import replicas

    monkeypatch.setattr(
        replicas, "ray", SimpleNamespace(is_initialized=lambda: True, put=lambda block: block)
    )
    monkeypatch.setattr(replicas, "read_samples", lambda *_: [])
    settings = Settings(None, None, "cpu", "exact", 1)
    return replicas.Replicas("flowsep-serve-test", settings, Device(1, 0), 1, 1, told.append)


def test_an_end_before_ray_serve_has_begun_is_an_end(owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    asked = []

    def delete(name: str) -> None:
        asked.append(name)
        raise RayServeException("There is no Serve instance running on this Ray cluster.")

    monkeypatch.setattr(serve, "delete", delete)
    owner.close()
    assert asked == ["flowsep-serve-test"]


def test_an_end_while_replicas_are_deployed_waits_for_that(
    owner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve

    steps = []
    has_begun, may_end = threading.Event(), threading.Event()

    def start(**_: Any) -> None:
        has_begun.set()
        assert may_end.wait(10)
        steps.append("deployed")
        raise BackendError("No replica starts.")

    monkeypatch.setattr(serve, "start", start)
    monkeypatch.setattr(serve, "delete", lambda _: steps.append("deleted"))
    with ThreadPoolExecutor(1) as thread:
        opened = thread.submit(owner.open)
        assert has_begun.wait(10)
        threading.Timer(0.2, may_end.set).start()
        owner.close()
        assert isinstance(opened.exception(), BackendError)
    assert steps == ["deployed", "deleted"]


@pytest.mark.parametrize("fails", ["put", "answer"])
def test_a_full_store_is_a_full_disk_and_no_death(
    owner: Any, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    from ray.exceptions import ObjectStoreFullError, OutOfDiskError

    from flowsep_serve import replicas

    asked = []

    def put(_: object) -> None:
        if fails == "put":
            raise ObjectStoreFullError("Failed to put object.")

    def answer(*_: object) -> None:
        asked.append("a replica")
        raise OutOfDiskError("Local disk is full.")

    monkeypatch.setattr(replicas, "read_samples", lambda *_: [np.zeros((1, 1), np.float32)])
    monkeypatch.setattr(replicas, "ray", SimpleNamespace(put=put))
    monkeypatch.setattr(owner, "_computed", answer)
    job: Any = SimpleNamespace(folder=Path(), sound=None)
    with pytest.raises(OutputError):
        list(owner.blocks(job))
    assert len(asked) == (fails == "answer")


def test_a_replica_whose_news_nobody_takes_waits_and_ends_when_it_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flowsep_serve import replicas

    made: list[None] = []
    has_ended = threading.Event()

    def talk() -> None:
        with suppress(CancelledError):
            while not has_ended.is_set():
                warnings.warn("A thread that loads a graph says something.", FlowSepWarning, stacklevel=1)

    loading = threading.Thread(target=talk, daemon=True)

    class Endless:
        def open(self) -> None:
            pass

        def separated(self, *_: object) -> Iterator[list[Any]]:
            loading.start()
            try:
                while True:
                    made.append(None)
                    yield []
            finally:
                has_ended.set()

    async def take(replica: Any) -> None:
        course = replica.separate(None, None, [], [])
        first, *_ = [await anext(course) for _ in range(3)]
        assert first == replicas.News()
        await asyncio.sleep(0.2)
        assert len(made) <= 3 + replicas.AHEAD
        await course.aclose()

    settings: Any = SimpleNamespace(models=Endless)
    asyncio.run(take(replicas.Replica(settings, __version__)))
    assert has_ended.wait(10)
    loading.join(10)
    assert not loading.is_alive()


def test_without_ray_serve_no_replica_is_ready(owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    def status() -> None:
        raise RayServeException("The controller has gone.")

    monkeypatch.setattr(serve, "status", status)
    assert owner.ready() == 0


def test_replicas_of_a_killed_server_are_waited_for(
    owner: Any, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve

    answers = iter([TimeoutError("not deleted after 60s"), None])

    def delete(_: str) -> None:
        if (error := next(answers)) is not None:
            raise error

    monkeypatch.setattr(serve, "delete", delete)
    owner._delete_former()
    assert next(answers, "all asked") == "all asked" and len(told) == 1


def test_a_job_that_is_computed_again_says_and_gives_everything_once(owner: Any) -> None:
    from ray.exceptions import ActorDiedError

    from flowsep_serve.replicas import News

    samples = np.arange(6, dtype=np.float32)[:, None]

    class Answer:
        """The news of a replica that may die before its last block."""

        def __init__(self, *cuts: int, dies: bool) -> None:
            self.cuts, self.dies = cuts, dies

        def __iter__(self) -> Iterator[News]:
            yield News()
            yield News(warning="It is short.")
            for block in np.split(samples, self.cuts)[: -1 if self.dies else None]:
                yield News(blocks=[block])
            if self.dies:
                raise ActorDiedError

        def cancel(self) -> None:
            pass

    answers = iter([Answer(2, dies=True), Answer(1, 3, dies=False)])
    owner._handle = SimpleNamespace(separate=SimpleNamespace(remote=lambda *_: next(answers)))
    job: Any = SimpleNamespace(
        folder=Path(), sound=None, order=None, wanted=[0], warnings=[], has_begun=False
    )
    steps: list[str] = []

    def begin() -> None:
        steps.append("begun")
        job.has_begun = True

    def wait_again() -> None:
        steps.append("waits")
        job.has_begun = False

    job.go_on, job.begin, job.wait_again = lambda: None, begin, wait_again
    with warnings.catch_warnings():
        warnings.simplefilter("always", FlowSepWarning)
        warnings.showwarning = lambda message, *_, **__: job.warnings.append(str(message))
        given = [block for (block,) in owner.blocks(job)]
    assert np.array_equal(np.concatenate(given), samples)
    assert job.warnings == ["It is short."]
    assert steps == ["begun", "waits", "begun"]
