"""Recordings for batches, and the command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.runtime.toy_bundle import write_toy_bundle

ROOT = Path(__file__).parents[2]
RATE = 16000
SECONDS = 0.3


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


def write_sound(path: Path, seed: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.4, 0.4, round(SECONDS * RATE))
    soundfile.write(path, samples, RATE)


def environment() -> dict[str, str]:
    folders = [ROOT / "runtime", ROOT / "serve"]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flowsep_batch.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def finished(*arguments: object) -> tuple[int, str, str]:
    process = started(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def processes(token: str, name: str = "") -> list[int]:
    """The processes with the token, whose command begins with a name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = token.encode() in (process / "environ").read_bytes().split(b"\0")
            if is_ours and (process / "cmdline").read_bytes().startswith(name.encode()):
                found.append(int(process.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)
