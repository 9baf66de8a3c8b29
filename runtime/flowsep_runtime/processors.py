"""Number of processors for this process."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIPS = Path("/proc/self/cgroup")
LEAST_LIMIT = 64  # threads that may be asked for on the smallest machine


def usable_processors() -> int:
    """Those that this process may use: by its affinity, and by the quota of its control group, which is how a
    container is limited; all there are where the system does not say."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, *(math.ceil(quota) for quota in _quotas()), allowed))


def default_threads() -> int | None:
    """Threads for a backend on the CPU that would not see by itself that it may use only some processors;
    None where it may use all."""
    usable = usable_processors()
    return usable if usable < (os.cpu_count() or 1) else None


def most_threads() -> int:
    """Threads of a backend that make sense: one for every processor; on a small machine some more."""
    return max(LEAST_LIMIT, os.cpu_count() or 1)


def _quotas() -> Iterator[float]:
    """Processors by the quota of every control group that this process is in, and of those above it."""
    with suppress(OSError, ValueError):
        for line in MEMBERSHIPS.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            for folder in _folders(controllers, place):
                with suppress(OSError, ValueError, ZeroDivisionError):
                    quota, period = _limit(folder, bool(controllers))
                    if quota > 0:
                        yield quota / period


def _folders(controllers: str, place: str) -> Iterator[Path]:
    """Version 2 has one tree, version 1 one for each set of controllers. Inside a container the place may be
    that of the host, and the tree begin at the container."""
    for root in (CGROUPS / controllers, CGROUPS / "cpu") if controllers else (CGROUPS, CGROUPS / "unified"):
        inner = PurePosixPath(place.lstrip("/"))
        for part in dict.fromkeys((inner, *inner.parents)):
            yield root / part


def _limit(folder: Path, is_version_1: bool) -> tuple[int, int]:
    """Microseconds of work in a period, and of the period; 0 or less without a limit."""
    if is_version_1:
        quota, period = (
            (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
        )
    else:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    return (0 if quota == "max" else int(quota)), int(period)
