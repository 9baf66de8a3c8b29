"""The report of a GPU: its assembly, what is kept, and that it ends on a machine without one."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.common.models import ROOT
from benchmarks.latency import gpu_report
from benchmarks.latency.gpu_report import Step, carry_out, steps_of
from benchmarks.latency.profile import Kernel, kernels, markdown

WORKS = Step("works", "What works", ("platform",))
FAILS = Step("fails", "What fails", ("no_such_module",))
SLEEPS = Step("sleeps", "What takes too long", ("timeit", "-n1", "-s", "import time", "time.sleep(60)"))


def test_a_step_that_fails_is_in_the_report_and_stops_no_other(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    outcomes = carry_out([FAILS, SLEEPS, WORKS], tmp_path / "kept", 0.05, report)
    assert "No module named no_such_module" in outcomes["fails"].reason
    assert outcomes["sleeps"].reason == "stopped after 0.05 minutes"
    assert outcomes["works"].reason == ""
    text = report.read_text(encoding="utf-8")
    assert "| What works | done |" in text
    assert "| What takes too long | stopped after 0.05 minutes |" in text
    assert "`python -m platform`\n\n" in text
    assert "Did not run to its end: exit code 1: " in text and "```\n" in text


def test_what_is_done_is_not_done_again_and_what_failed_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    run = gpu_report._run

    def counted(step: Step, key: str, minutes: float) -> Any:
        ran.append(step.name)
        return run(step, key, minutes)

    monkeypatch.setattr(gpu_report, "_run", counted)
    for _ in range(2):
        carry_out([WORKS, FAILS], tmp_path / "kept", 1, tmp_path / "report.md")
    assert ran == ["works", "fails", "fails"]
    (tmp_path / "kept" / "works.json").write_text("{", encoding="utf-8")
    carry_out([WORKS], tmp_path / "kept", 1, tmp_path / "report.md")
    other = Step("works", "What works", ("platform", "--terse"))
    carry_out([other], tmp_path / "kept", 1, tmp_path / "report.md")
    monkeypatch.setattr(gpu_report, "_digest_of_code", lambda: "other code")
    carry_out([other], tmp_path / "kept", 1, tmp_path / "report.md")
    assert ran[3:] == ["works"] * 3, "damaged, of another command, of other code"


def test_an_interrupted_report_says_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out([WORKS], tmp_path / "kept", 1, tmp_path / "report.md")

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        carry_out([WORKS, FAILS], tmp_path / "kept", 1, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| What works | done |" in text and "| What fails | not begun |" in text


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="it looks for the process there")
def test_what_a_step_started_is_stopped_with_it(tmp_path: Path) -> None:
    """An export that goes on would write and compute beside the steps that follow."""
    note = tmp_path / "started"
    program = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    step = Step("starts", "What starts another", ("timeit", "-n1", "-r1", starts))
    outcome = carry_out([step], tmp_path / "kept", 0.1, tmp_path / "report.md")["starts"]
    assert outcome.reason == "stopped after 0.1 minutes"
    state = Path(f"/proc/{note.read_text(encoding='utf-8')}/stat")
    for _ in range(100):
        # one whose parent is gone stays listed until somebody waits for it
        if not state.exists() or state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("it still runs")


def test_every_step_is_a_program_of_this_project() -> None:
    steps = steps_of("published", Path("work"))
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        module = step.command[0].replace(".", "/")
        places = [ROOT / module, ROOT / "export" / module]
        assert any(p.with_suffix(".py").is_file() or (p / "__main__.py").is_file() for p in places), module
    assert [step.name for step in steps[-3:]] == [
        "profile-eager-fp16",
        "profile-tensorrt-fast",
        "profile-cuda-fast",
    ]


@pytest.mark.slow
def test_without_a_gpu_it_ends_and_says_what_could_not_run(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    options = ["--sizes", "tiny", "--work", str(tmp_path / "work"), "-o", str(report)]
    result = CliRunner().invoke(gpu_report.command, options, catch_exceptions=False)
    assert result.exit_code == 0 and f"{report} is ready to be sent" in result.output
    text = report.read_text(encoding="utf-8")
    for title in ("Machine", "Export in half precision", "Counted from the graphs: cuda"):
        assert f"| {title} | done |" in text
    assert "| loop_step | 20 |" in text
    for title in (
        "TensorRT engines, built and verified",
        "Time and accuracy",
        "Kernels of a clip: cuda-fast",
    ):
        assert f"| {title} | exit code " in text
    assert "There is no GPU to measure on" in text


# --- the profile


class Multiplying:
    """A contestant that does two products a step."""

    def clip(self, inputs: Any, steps: int, solver: str) -> Any:
        x = torch.ones(64, 64)
        for _ in range(2 * steps):
            x = torch.mm(x, x)
        return np.zeros((1, 1), np.float32)


def test_a_profile_counts_the_launches_of_a_warm_clip() -> None:
    runner: Any = Multiplying()
    found = {kernel.name: kernel for kernel in kernels(runner, {}, 3, "euler", "cpu")}
    assert found["aten::mm"].launches == 6
    assert found["aten::mm"].seconds > 0


def test_a_profile_adds_up_what_has_no_row() -> None:
    found = [Kernel("long", 2, 0.003), Kernel("short", 5, 0.0008), Kernel("shorter", 1, 0.0002)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(found, 1).splitlines()[2:]]
    assert rows == [
        ["`long`", "2", "3.000", "75.0 %"],
        ["`2 others`", "6", "1.000", "25.0 %"],
        ["`clip`", "8", "4.000", "100 %"],
    ]
