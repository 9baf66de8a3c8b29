"""Share of the chip's limit: the least time of a stage's operations and bytes over the measured time.

The peaks are measured on the same chip. Operations and bytes are those of this project's graphs in half
precision (`cost/graphs.py`), after the fusion that `cost/operators.py` estimates, for all contestants. A
perfect backend computes and moves at once, each at its peak, so the least time is the longer of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import tables
from benchmarks.common.peak import Peak
from benchmarks.common.runners import CLIP, FEATURES, VELOCITY
from benchmarks.latency.comparison import Result, times_in_clip
from flowsep_runtime.bundle.manifest import Manifest

#: Graph -> what its time is measured as; the others carry their stage's name.
PART = {
    "velocity_text": FEATURES,
    "velocity_mixture": FEATURES,
    "velocity_time": FEATURES,
    "loop_constants": FEATURES,
    "loop_step": VELOCITY,
    "advance": VELOCITY,
}


@dataclass(frozen=True)
class Limit:
    """The least that one run of a stage takes; a velocity's is of one step."""

    operations: float
    bytes: float
    seconds: float
    is_bound_by_bytes: bool

    @classmethod
    def of(cls, operations: float, moved: float, peak: Peak) -> Limit:
        """The limit of a run with these operations and bytes."""
        computing, moving = operations / peak.operations, moved / peak.bandwidth
        return cls(operations, moved, max(computing, moving), moving > computing)


def limits(bundle: Path, batch: int, frames: int, peak: Peak) -> dict[str, Limit]:
    """The limit of every stage, and of `features`.

    Args:
        bundle: The graphs.
        batch, frames: Clips at a time, each with a query of its own, and their length.
        peak: Of the device.
    """
    from benchmarks.cost.graphs import rows  # needs the exporter

    backend = "tensorrt" if Manifest.read(bundle).precision == "float16" else "cuda"
    work: dict[str, list[float]] = {}
    for row in rows(bundle, backend, batch, frames, steps=1, queries=batch):
        total = work.setdefault(PART.get(row.graph, row.graph), [0.0, 0.0])
        total[0] += row.cost.flops
        total[1] += row.cost.fused_bytes
    return {name: Limit.of(operations, moved, peak) for name, (operations, moved) in work.items()}


def clip_seconds(found: Mapping[str, Limit], evaluations: int) -> float:
    """The least that a whole clip takes."""
    return sum(times_in_clip(name, evaluations) * limit.seconds for name, limit in found.items())


def shares(result: Result, found: Mapping[str, Limit], evaluations: int) -> dict[str, float]:
    """The limit over a contestant's median, by stage and for the clip; disturbed measurements have none.

    Who computes the features again in every step has them in its velocity's time.
    """
    measured = {name: (found[name].seconds, result.stages[name]) for name in found if name in result.stages}
    measured[CLIP] = (clip_seconds(found, evaluations), result.clip(evaluations))
    return {name: least / took.median for name, (least, took) in measured.items() if not took.is_disturbed}


def limit_table(results: list[Result], found: Mapping[str, Limit], evaluations: int) -> str:
    """A table with a row per stage and the share of the limit of every contestant."""
    reached = [shares(result, found, evaluations) for result in results]
    head = ["", "GFLOP", "GB moved, estimate", "least, ms", "bound by"]
    head += [result.contestant.name for result in results]
    body = [
        [
            name,
            tables.digits(limit.operations / 1e9),
            tables.digits(limit.bytes / 1e9),
            tables.digits(1e3 * limit.seconds),
            "bytes" if limit.is_bound_by_bytes else "operations",
            *(tables.percent(share.get(name)) for share in reached),
        ]
        for name, limit in found.items()
    ]
    times = {name: times_in_clip(name, evaluations) for name in found}
    operations, moved = (
        sum(times[name] * getattr(limit, what) for name, limit in found.items())
        for what in ("operations", "bytes")
    )
    least = clip_seconds(found, evaluations)
    cells = [tables.digits(value) for value in (operations / 1e9, moved / 1e9, 1e3 * least)]
    body.append([CLIP, *cells, "", *(tables.percent(share.get(CLIP)) for share in reached)])
    return tables.table(head, body)
