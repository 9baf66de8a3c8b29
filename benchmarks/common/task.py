"""A worker's task, as a line of JSON carries it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What a worker is to be: a contestant (see `contestants.Contestant`) and where its model lies."""

    kind: str
    backend: str
    precision: str
    compilation: str
    is_low_memory: bool
    device: str
    threads: int
    weights: str
    config: str | None
    bundle: str | None
    plain: str | None
    inputs: str
