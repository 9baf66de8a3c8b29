"""Results of `latency` as tables in Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from benchmarks.common import tables
from benchmarks.common.inputs import STAGE_INPUTS
from benchmarks.common.machine import sentence
from benchmarks.common.peak import Peak
from benchmarks.common.runners import FEATURES, VELOCITY
from benchmarks.common.spread import DISTURBED_ABOVE, ratio
from benchmarks.latency.comparison import ComparisonSettings, Result
from benchmarks.latency.limits import Limit, limit_table, shares

ORDER = [name for stage in STAGE_INPUTS for name in ((FEATURES, stage) if stage == VELOCITY else (stage,))]


@dataclass(frozen=True)
class Findings:
    """All of one run.

    Attributes:
        model: Its name.
        results: The reference first.
        settings: What was measured.
        facts: Where.
        left_out: A sentence for each who was not there.
        peak: Of the GPU; None without one.
        limits: The least time of every stage at that peak.
    """

    model: str
    results: list[Result]
    settings: ComparisonSettings
    facts: Mapping[str, object]
    left_out: list[str]
    peak: Peak | None = None
    limits: Mapping[str, Limit] = field(default_factory=dict)

    @property
    def measured(self) -> list[Result]:
        """Results of the contestants that could be measured."""
        return [result for result in self.results if result.left_out is None]


def report(findings: Findings) -> str:
    """The report in Markdown."""
    settings, measured = findings.settings, findings.measured
    reference = measured[0]
    evaluations = settings.evaluations
    where = f"{settings.threads} threads" if settings.device == "cpu" else "on the GPU"
    lines = [
        f"One clip of {settings.seconds:g} s, the {findings.model} model, batch {settings.batch}, {where}, "
        f"{settings.rounds} interleaved rounds, {settings.solver}, {settings.steps} steps "
        f"({evaluations} network evaluations).",
        _clip_table(measured, reference, settings),
    ]
    blocks: dict[str, Callable[[Result, str], str]] = {
        "Seconds a call, median / 95th percentile; the velocity's for one step:": (
            lambda result, stage: tables.seconds(result.stages.get(stage))
        ),
        f"Times faster than {reference.contestant.name}, median (range over rounds):": (
            lambda result, stage: tables.spread(result.ratios(reference).get(stage))
        ),
        f"SNR against {reference.contestant.name} on the same inputs, dB:": (
            lambda result, stage: tables.decibels(result.snr[stage]) if stage in result.snr else ""
        ),
    }
    for title, cell in blocks.items():
        stages = [stage for stage in ORDER if any(cell(result, stage) for result in measured)]
        rows = [[r.contestant.name, *(cell(r, stage) for stage in stages)] for r in measured]
        lines += [title, tables.table(["", *stages], rows)]
    if findings.peak is not None and findings.limits:
        lines += [_peak_sentence(findings.peak), limit_table(measured, findings.limits, evaluations)]
    lines += [f"{r.contestant.name}: {remark}" for r in measured for remark in r.remarks]
    failed = [result.left_out for result in findings.results if result.left_out is not None]
    lines += [f"Left out: {remark}." for remark in [*findings.left_out, *failed]]
    lines.append(
        f"*disturbed*: the 95th percentile over rounds was more than {DISTURBED_ABOVE:g} times the median. "
        f"{sentence(findings.facts)}."
    )
    return "\n\n".join(lines)


def _peak_sentence(peak: Peak) -> str:
    return (
        f"Share of the chip's limit: {peak.operations / 1e12:.0f} TFLOP/s in half precision and "
        f"{peak.bandwidth / 1e9:.0f} GB/s, as measured here."
    )


def _clip_table(measured: list[Result], reference: Result, settings: ComparisonSettings) -> str:
    evaluations, on_gpu = settings.evaluations, settings.device == "cuda"
    head = [
        "",
        "clip, s (median / p95)",
        f"times faster than {reference.contestant.name}",
        "real-time factor",
        "SNR, dB",
        "cold start, s: first / second",
        "peak memory",
        *(["GPU memory"] if on_gpu else []),
        "on disk",
        "caches",
    ]
    rows = []
    for result in measured:
        clip = result.clip(evaluations)
        cold = result.cold or (float("nan"), float("nan"))
        rows.append(
            [
                f"{result.contestant.name}: {result.contestant.words}",
                tables.seconds(clip),
                tables.spread(ratio(reference.clip(evaluations), clip)),
                tables.DISTURBED if clip.is_disturbed else tables.digits(clip.median / settings.audio),
                tables.decibels(result.clip_snr),
                f"{tables.digits(cold[0])} / {tables.digits(cold[1])}",
                tables.size(result.peak_bytes),
                *([tables.size(result.gpu_bytes or 0)] if on_gpu else []),
                tables.size(result.disk_bytes),
                tables.size(result.cache_bytes),
            ]
        )
    return tables.table(head, rows)


def as_json(findings: Findings) -> dict[str, object]:
    """Everything that was measured, with every round."""
    settings = findings.settings
    return {
        "format": 1,
        "benchmark": "latency",
        "model": findings.model,
        "settings": vars(settings) | {"evaluations": settings.evaluations},
        "disturbed_above": DISTURBED_ABOVE,
        "machine": dict(findings.facts),
        "peak": None if findings.peak is None else asdict(findings.peak),
        "limits": {name: asdict(limit) for name, limit in findings.limits.items()},
        "left_out": findings.left_out,
        "contestants": {result.contestant.name: _contestant(result, findings) for result in findings.results},
    }


def _contestant(result: Result, findings: Findings) -> dict[str, object]:
    found: dict[str, object] = {"words": result.contestant.words}
    if result.left_out is not None:
        return found | {"left_out": result.left_out}
    settings, reference = findings.settings, findings.results[0]
    clip, ratios = result.clip(settings.evaluations), result.ratios(reference)
    reached = shares(result, findings.limits, settings.evaluations) if findings.limits else {}
    assert result.cold is not None
    return found | {
        "stages": {
            stage: {
                "seconds": summary.plain(),
                "times_faster": ratios[stage].plain() if stage in ratios else None,
                "snr_db": tables.plain_decibels(result.snr[stage]) if stage in result.snr else None,
            }
            for stage, summary in result.stages.items()
        },
        "clip": {
            "seconds": clip.plain(),
            "times_faster": ratio(reference.clip(settings.evaluations), clip).plain(),
            "snr_db": tables.plain_decibels(result.clip_snr),
            "real_time_factor": None if clip.is_disturbed else clip.median / settings.audio,
        },
        "share_of_limit": reached,
        "remarks": result.remarks,
        "cold_start_seconds": {"first": result.cold[0], "second": result.cold[1]},
        "peak_bytes": result.peak_bytes,
        "gpu_bytes": result.gpu_bytes,
        "disk_bytes": result.disk_bytes,
        "cache_bytes": result.cache_bytes,
    }
