"""All that a GPU can tell of this project, in one file to send back.

    make gpu-report

Every step is a program of its own, whose output goes into the report as it is: a step that fails leaves the
others alone, and its last words are in the report. What is done is kept: the next call goes on behind it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.common import tables
from benchmarks.common.models import ROOT, Sizes, default_work
from benchmarks.common.options import sizes_option, work_option, write_text
from benchmarks.common.progress import say
from flowsep_runtime.app.console import FILE, SETTINGS, run
from flowsep_runtime.errors import shown

PROGRAM = "benchmarks.latency.gpu_report"
CONTESTANTS = ("eager-fp16", "tensorrt-fast", "cuda-fast")
LAST_LINES = 30
#: For a program that is stopped, before it is killed.
SECONDS_TO_END = 20
#: Folders of code that a step's result depends on.
CODE = ("benchmarks", "export", "flowsep_ref", "runtime")


@dataclass(frozen=True)
class Step:
    """One part of the report: a module and its arguments."""

    name: str
    title: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The end of a step; `reason` is empty if it went well."""

    key: str
    seconds: float
    reason: str
    output: str


def steps_of(sizes: Sizes, work: Path) -> list[Step]:
    """The steps, in order: each finds what those before it made below `work`."""
    model = ("--sizes", sizes, "--work", str(work))
    bundle = str(work / sizes / "bundle-fp16")
    engines = ("flowsep_export.cli", "--tensorrt", "--bundle", bundle)
    latency = ("benchmarks.latency", "--device", "cuda", "--rounds", "3", "--backends", ",".join(CONTESTANTS))
    return [
        Step("machine", "Machine", ("benchmarks.common.machine",)),
        Step("export", "Export in half precision", ("benchmarks.common.models", *model)),
        *(
            Step(f"counts-{name}", f"Counted from the graphs: {name}", (*_COUNT, bundle, "--backend", name))
            for name in ("tensorrt", "cuda")
        ),
        Step("engines", "TensorRT engines, built and verified", engines),
        Step("latency", "Time and accuracy", (*latency, *model)),
        *(
            Step(
                f"profile-{name}", f"Kernels of a clip: {name}", ("benchmarks.latency.profile", name, *model)
            )
            for name in CONTESTANTS
        ),
    ]


_COUNT = ("benchmarks.cost.graphs", "--bundle")


def carry_out(steps: Sequence[Step], folder: Path, minutes: float, report: Path) -> dict[str, Outcome]:
    """Runs what is not done yet; the report is whole after every step.

    Args:
        steps: In their order.
        folder: Where their outcomes are kept.
        minutes: The longest that a step may take.
        report: The file to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = _digest_of_code()
    outcomes: dict[str, Outcome] = {}
    for step in steps:
        kept = folder / f"{step.name}.json"
        key = hashlib.sha256(" ".join((code, *step.command)).encode()).hexdigest()
        outcome = _read(kept)
        if outcome is None or outcome.key != key or outcome.reason:
            say(step.title)
            outcome = _run(step, key, minutes)
            write_text(kept, json.dumps(asdict(outcome)))
        outcomes[step.name] = outcome
        write_text(report, assembled(steps, outcomes))
    return outcomes


def assembled(steps: Sequence[Step], outcomes: dict[str, Outcome]) -> str:
    """The report in Markdown: what ran and what did not, then every step's output."""
    rows = []
    for step in steps:
        outcome = outcomes.get(step.name)
        said = "not begun" if outcome is None else outcome.reason or "done"
        rows.append([step.title, said, "" if outcome is None else f"{outcome.seconds:.0f}"])
    lines = ["# FlowSep Engine on this machine", "", tables.table(["step", "result", "seconds"], rows)]
    for step in steps:
        outcome = outcomes.get(step.name)
        if outcome is None:
            continue
        lines += ["", f"## {step.title}", "", f"`python -m {' '.join(step.command)}`", ""]
        if outcome.reason:
            last = "\n".join(outcome.output.strip().splitlines()[-LAST_LINES:])
            lines += [f"Did not run to its end: {outcome.reason}.", "", "```", last, "```"]
        else:
            lines.append(outcome.output.strip())
    return "\n".join(lines) + "\n"


def _run(step: Step, key: str, minutes: float) -> Outcome:
    start = time.monotonic()
    reason = ""
    with subprocess.Popen(
        [sys.executable, "-m", *step.command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # to end it with all that it started
    ) as process:
        try:
            output, errors = process.communicate(timeout=60 * minutes)
        except subprocess.TimeoutExpired:
            output, errors = _stopped(process)
            reason = f"stopped after {minutes:g} minutes"
        except BaseException:
            _stopped(process)
            raise
    seconds = time.monotonic() - start
    if process.returncode == 0 and not reason:
        return Outcome(key, seconds, "", output)
    said = (errors.strip() or output.strip() or "no message").splitlines()
    reason = reason or f"exit code {process.returncode}: {said[-1].rstrip('.')}"
    return Outcome(key, seconds, reason, f"{output}\n{errors}")


def _stopped(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ends a program and all that it started, which may first take away what is half written."""
    for end in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if sys.platform == "win32":
            process.kill()
        else:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, end)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=SECONDS_TO_END)
    return "", ""


def _read(path: Path) -> Outcome | None:
    try:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@click.command(name=PROGRAM, context_settings=SETTINGS)
@sizes_option
@work_option
@click.option("--minutes", type=click.FloatRange(0.1), default=30, help="The longest for a step.")
@click.option("-o", "--output", type=FILE, default=Path("gpu-report.md"), help="The report.")
def command(sizes: Sizes, work: Path | None, minutes: float, output: Path) -> None:
    """Export, build, verify, time and profile on this machine's GPU, and write one file to send back.

    A call that was interrupted, or whose steps failed, goes on where it stopped.
    """
    work = (work or default_work()).resolve()
    steps = steps_of(sizes, work)
    outcomes = carry_out(steps, work / f"gpu-report-{sizes}", minutes, output)
    for step in steps:
        if outcomes[step.name].reason:
            say(f"{step.title}: {outcomes[step.name].reason}")
    click.echo(f"{shown(output)} is ready to be sent.")


def main() -> None:
    """Entry point of `python -m benchmarks.latency.gpu_report`."""
    run(command, PROGRAM, "There is not enough memory for the report.")


if __name__ == "__main__":
    main()
