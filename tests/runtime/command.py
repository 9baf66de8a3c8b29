"""`flowsep-run` in a process of its own, and what a refusal looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "runtime"
COMMAND = (sys.executable, "-m", "flowsep_runtime.app.cli")


def started(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, where signals, pipes and exit codes are real."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)} | options.pop("env", {})
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def in_process(*arguments: object, **options: Any) -> tuple[int, str, str]:
    process = started(*arguments, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


Run = Callable[..., tuple[int, str, str]]


def refused(answer: tuple[int, str, str], *words: object, code: int = 2) -> None:
    """One sentence on stderr, nothing on stdout, the right exit code."""
    found, out, err = answer
    assert found == code, err
    assert out == ""
    assert err.startswith("flowsep-run: ") and err.count("\n") == 1
    assert "Traceback" not in err
    assert not err.rstrip().endswith(".."), f"one sentence inside another: {err}"
    for word in words:
        assert str(word) in err, err
