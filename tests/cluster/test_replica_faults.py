"""The owner of replicas and Ray's errors, on doubles of Ray."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flowsep_batch.cluster import Device
from flowsep_runtime.errors import FlowSepWarning
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
