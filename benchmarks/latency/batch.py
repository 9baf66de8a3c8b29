"""Files a minute of flowsep-batch beside one flowsep-run on the same processors.

    python -m benchmarks.latency.batch --files 64 --cpus 1,2

Both separate copies of one recording, in turn, each as a whole command with its start. The start is the time
for one copy, less that of a copy among many.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.common import tables
from benchmarks.common.inputs import EXAMPLE
from benchmarks.common.machine import machine, sentence
from benchmarks.common.options import Outputs, numbers, output_options
from benchmarks.common.progress import say
from benchmarks.common.spread import Summary, ratio
from flowsep_runtime import BackendError
from flowsep_runtime.app.console import FILE, SETTINGS, backend_option, bundle_option, run

PROGRAM = "benchmarks.latency.batch"
QUERY = "dog barking"
RUN = "flowsep-run"


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.option("--files", type=click.IntRange(2), default=64, help="Number of recordings.")
@click.option("--cpus", default="1", help="Processors of a worker of flowsep-batch; several with commas.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Rounds, in each of which all run in turn.")
@click.option(
    "--recording", type=FILE, default=EXAMPLE, show_default=False, help="Recording.  [default: the example]"
)
@bundle_option
@backend_option
@output_options()
def command(
    files: int,
    cpus: str,
    rounds: int,
    recording: Path,
    bundle: str | None,
    backend: str,
    outputs: Outputs,
) -> None:
    """Measure flowsep-batch beside flowsep-run."""
    options = ["--query", QUERY, "--backend", backend, *([] if bundle is None else ["--bundle", bundle])]
    run_words = ["flowsep_runtime.app.cli", *options]
    programs = {RUN: (run_words, "--output-dir")}
    for each in numbers(cpus, "--cpus", int):
        words = ["flowsep_batch.cli", *options, "--cpus", f"{each}"]
        programs[f"flowsep-batch, --cpus {each}"] = (words, "--output")
    ones: dict[str, list[float]] = {name: [] for name in programs}
    alls: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as work:
        for count in (1, files):
            folder = Path(work, f"{count}")
            folder.mkdir()
            for number in range(count):
                shutil.copyfile(recording, folder / f"{number}{recording.suffix}")
        for name, (words, option) in programs.items():
            say(f"{name}, unmeasured")  # what is compiled at a first start is then in the cache
            _seconds(words, option, Path(work, "1"), 1)
        for number in range(rounds):
            for name, (words, option) in programs.items():
                say(f"{name}, round {number + 1} of {rounds}")
                ones[name].append(_seconds(words, option, Path(work, "1"), 1))
                alls[name].append(_seconds(words, option, Path(work, f"{files}"), files))
    facts = machine()
    rows = [
        {"program": name, "one": ones[name], "all": alls[name], "files": files, "rounds": rounds}
        for name in programs
    ]
    outputs.write(
        f"{report(ones, alls, files)}\n\n{sentence(facts)}",
        {"format": 1, "benchmark": "batch", "machine": facts, "rows": rows},
    )


def report(ones: dict[str, list[float]], alls: dict[str, list[float]], files: int) -> str:
    """A table, a row a program: files a minute, and their ratio to those of flowsep-run, round by round.

    Args:
        ones: Seconds for one file, round by round.
        alls: Seconds for all of them.
        files: Their number.
    """
    head = ["program", "s for 1 file", f"s for {files}", "files a minute", "without the start", "ratio"]
    head += ["ratio without the start"]
    bare = {
        name: Summary(tuple(max(many - one, 1e-9) for one, many in zip(ones[name], alls[name], strict=True)))
        for name in alls
    }
    whole = {name: Summary(tuple(seconds)) for name, seconds in alls.items()}
    body = [
        [
            name,
            tables.digits(Summary(tuple(ones[name])).median),
            tables.digits(whole[name].median),
            tables.digits(60 * files / whole[name].median),
            tables.digits(60 * (files - 1) / bare[name].median),
            tables.spread(ratio(whole[RUN], whole[name])),
            tables.spread(ratio(bare[RUN], bare[name])),
        ]
        for name in alls
    ]
    return tables.table(head, body)


def _seconds(words: list[str], option: str, source: Path, files: int) -> float:
    """Seconds of a command that separates a folder into a new one.

    Raises:
        BackendError: If it fails, or makes fewer results than there are recordings.
    """
    with tempfile.TemporaryDirectory() as output:
        module, *options = words
        line = [sys.executable, "-m", module, str(source), *options, option, output]
        began = time.perf_counter()
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        made = len([path for path in Path(output).iterdir() if not path.name.startswith(".")])
    if done.returncode != 0 or made != files:
        raise BackendError(f"{module} fails: {done.stderr.strip() or f'{made} of {files} results'}")
    return seconds


def main() -> None:
    """Entry point of the program."""
    run(command, PROGRAM, "There is not enough memory for this measurement.")


if __name__ == "__main__":
    main()
