"""Description of the machine that measures; `python -m benchmarks.common.machine` prints it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from flowsep_runtime.backends import BACKENDS, why_not
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


def driver() -> str:
    """GPU, driver and clocks in the words of `nvidia-smi`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "There is no nvidia-smi here."
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def main() -> None:
    """Prints the machine, its driver, and which backends can run, in Markdown."""
    print(sentence(machine()), "", "```", driver(), "```", "", sep="\n")
    for name in BACKENDS:
        print(f"- {name}: {why_not(name) or 'can run'}")


if __name__ == "__main__":
    main()
