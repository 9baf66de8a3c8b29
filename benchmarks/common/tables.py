"""Tables in Markdown, and the cells that all of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.common.spread import Summary
from flowsep_eval.bootstrap import Estimate

DISTURBED = "disturbed"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def seconds(summary: Summary | None) -> str:
    """Median / 95th percentile, as in `0.436 / 0.441`."""
    if summary is None:
        return ""
    if summary.is_disturbed:
        return DISTURBED
    return f"{digits(summary.median)} / {digits(summary.p95)}"


def spread(summary: Summary | None) -> str:
    """Median and range, as in `2.10 (2.05–2.16)`."""
    if summary is None:
        return ""
    if summary.is_disturbed:
        return DISTURBED
    return f"{summary.median:.2f} ({summary.low:.2f}–{summary.high:.2f})"


def interval(estimate: Estimate | None, decimals: int) -> str:
    """A mean and its interval, as in `0.12 (−0.03…0.28)`; empty if there is none."""
    return "" if estimate is None or estimate.low is None else estimate.text(decimals)


def decibels(value: float) -> str:
    """A whole number; `equal` for equal arrays, `not finite` for NaN."""
    if math.isnan(value):
        return "not finite"
    return "equal" if math.isinf(value) and value > 0 else f"{value:.0f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share in percent, such as `12 %`; empty for None."""
    return "" if share is None else f"{digits(100 * share)} %"


def size(count: int) -> str:
    """Bytes in MB or GB."""
    return f"{digits(count / 1e9)} GB" if count >= 1e9 else f"{digits(count / 1e6)} MB"


def plain_decibels(value: float) -> float | str:
    """Decibels for JSON, which has no infinity: the words of `decibels` instead."""
    return value if math.isfinite(value) else decibels(value)
