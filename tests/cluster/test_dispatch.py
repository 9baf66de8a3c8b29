"""Tasks over workers, which are at once done here with what they are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from flowsep_batch.cluster import Device
from flowsep_batch.tasks import Task
from flowsep_batch.work import Row, Settings
from flowsep_runtime import OptionError, __version__

pytest.importorskip("ray", reason="batches need Ray: pip install '.[cluster]'")


class AtOnce:
    """Ray's calls, on values in the place of references."""

    def remote(self, **_: Any) -> Any:
        def row(task: Task, again: bool) -> tuple[Row, ...]:
            return (Row(task.name, "dog", "out", "done"),)

        actor = SimpleNamespace(
            prepare=SimpleNamespace(remote=lambda _: __version__), work=SimpleNamespace(remote=row)
        )
        return lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: actor))

    def wait(self, answers: Sequence[Any], **_: Any) -> tuple[Sequence[Any], list[Any]]:
        return answers, []

    def get(self, answer: Any) -> Any:
        return answer

    def kill(self, _: Any) -> None:
        pass


def test_names_that_cannot_be_read_any_more_end_the_run_when_what_was_in_hand_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flowsep_batch import dispatch

    def tasks() -> Iterator[Task]:
        yield Task("/in", "a.wav", (("dog", "a.dog.wav"),))
        raise OptionError("/in/x cannot be read: it has gone.")

    monkeypatch.setattr(dispatch, "ray", AtOnce())
    done = []
    with pytest.raises(OptionError, match="it has gone"):
        for rows in dispatch.Dispatch(Settings("/out"), [Device(1, 0)], pytest.fail).rows(tasks()):
            done += rows
    assert [row.file for row in done] == ["a.wav"]
