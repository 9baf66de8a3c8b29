"""Number of processors for this process."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """Those that this process may use, where the system says, else all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
