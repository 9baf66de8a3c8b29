"""Description of the machine that measures."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from flowsep_runtime.processors import usable_processors
from flowsep_runtime.versions import installed

LIBRARIES = (
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "cuda-python",
)


def machine() -> dict[str, object]:
    """Processor, cores, load, versions and time."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": processor(),
        "cores": usable_processors(),
        "load_before": load,
        "system": platform.system(),
        "versions": {"python": platform.python_version()} | installed(LIBRARIES),
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Name of the processor, from the system."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sentence(facts: Mapping[str, object]) -> str:
    """The description in one line, for below a table."""
    found = facts["versions"]
    assert isinstance(found, Mapping)
    libraries = ", ".join(f"{name} {number}" for name, number in found.items())
    gpu = f"{facts['gpu']}, " if "gpu" in facts else ""
    return f"{gpu}{facts['processor']}, {facts['cores']} cores; {libraries}; {facts['measured']}"
