"""A worker's task, sent as a line of JSON."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Task of a worker: a contestant (see `contestants.Contestant`) and the place of its model."""

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
