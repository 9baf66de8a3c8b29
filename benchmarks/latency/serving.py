"""Requests a second and latencies of flowsep-serve under load, beside as many flowsep-run processes.

    python -m benchmarks.latency.serving --clients 1,4,16,64

A server of its own is started on loopback. Every client sends the example's recording, waits for its result,
and sends it again. A client that is told that the queue is full comes back when it is told to. Then as many
processes of flowsep-run as there were clients separate the same recording, each as often.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

from benchmarks.common import tables
from benchmarks.common.inputs import EXAMPLE
from benchmarks.common.machine import machine, sentence
from benchmarks.common.options import Outputs, numbers, output_options
from benchmarks.common.progress import say
from flowsep_runtime import BackendError
from flowsep_runtime.app.console import FILE, SETTINGS, backend_option, bundle_option, run

PROGRAM = "benchmarks.latency.serving"
QUERY = "dog barking"
PATIENCE = 3600.0  # seconds that a client waits for an answer


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.option("--clients", default="1,4,16,64", help="Numbers of clients.")
@click.option("--requests", type=click.IntRange(1), default=4, help="Requests of each client.")
@click.option(
    "--soak",
    type=click.IntRange(0),
    default=0,
    help="Number of further requests, before and after which the memory is compared.",
)
@click.option(
    "--recording", type=FILE, default=EXAMPLE, show_default=False, help="Recording.  [default: the example]"
)
@bundle_option
@backend_option
@output_options()
def command(
    clients: str,
    requests: int,
    soak: int,
    recording: Path,
    bundle: str | None,
    backend: str,
    outputs: Outputs,
) -> None:
    """Measure flowsep-serve under load, beside as many processes of flowsep-run."""
    counts = [int(count) for count in numbers(clients, "--clients", int)]
    options = ["--backend", backend, *([] if bundle is None else ["--bundle", bundle])]
    rows = []
    memory: dict[str, int] = {}
    with serving([*options, "--queue", str(max(counts))]) as (address, process):
        _separate(address, recording.read_bytes())
        for count in counts:
            say(f"flowsep-serve, {count} clients")
            rows.append(
                {
                    "program": "flowsep-serve",
                    **_load(count, requests, _asking(address, recording.read_bytes())),
                }
            )
        if soak:
            say(f"{soak} requests more")
            memory["before"] = resident(process.pid)
            for _ in range(soak):
                _separate(address, recording.read_bytes())
            memory["after"] = resident(process.pid)
    for count in counts:
        say(f"flowsep-run, {count} processes")
        rows.append({"program": "flowsep-run", **_load(count, requests, _running(recording, options))})
    facts = machine()
    text = report(rows, memory, sentence(facts))
    content = {"format": 1, "benchmark": "serving", "machine": facts, "rows": rows, "memory": memory}
    outputs.write(text, content)


@contextmanager
def serving(
    options: list[str], variables: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of a server, which ends with the block.

    Args:
        options: Of flowsep-serve.
        variables: Of its environment, besides those of this process.

    Raises:
        BackendError: If it does not start.
    """
    words = [sys.executable, "-m", "flowsep_serve.cli", "--port", "0", *options]
    # Its messages go into a file: a pipe that nobody reads would fill, and stop it.
    with tempfile.TemporaryFile("w+") as messages:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=messages, text=True, env=os.environ | dict(variables or {})
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                messages.seek(0)
                raise BackendError(f"flowsep-serve does not start: {messages.read().strip()}")
            yield line.split()[1], process
        finally:
            process.terminate()
            process.communicate()


def _separate(address: str, content: bytes) -> int:
    """One separation over HTTP; the number of times that the queue was full."""
    refusals = 0
    while True:
        answer = httpx.post(
            f"{address}/v1/separate", files={"recording": content}, data={"query": QUERY}, timeout=PATIENCE
        )
        if answer.status_code != 429:
            break
        refusals += 1
        time.sleep(int(answer.headers["retry-after"]))
    if answer.status_code != 200:
        raise BackendError(f"flowsep-serve answers {answer.status_code}: {answer.text}")
    return refusals


def _asking(address: str, content: bytes) -> Callable[[], int]:
    return lambda: _separate(address, content)


def _running(recording: Path, options: list[str]) -> Callable[[], int]:
    def separate() -> int:
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, "-m", "flowsep_runtime", str(recording), QUERY, *options]
            words += ["--output", str(Path(folder, "out.wav"))]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackendError(f"flowsep-run failed: {done.stderr.strip() or done.returncode}")
        return 0

    return separate


def _load(clients: int, requests: int, work: Callable[[], int]) -> dict[str, Any]:
    """Several clients at a time, each with several requests: latencies in seconds, and what came of them."""

    def client(_: int) -> list[tuple[float, int]]:
        found = []
        for _ in range(requests):
            begun = time.perf_counter()
            refusals = work()
            found.append((time.perf_counter() - begun, refusals))
        return found

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = [each for answers in pool.map(client, range(clients)) for each in answers]
    return {
        "clients": clients,
        "wall_seconds": time.perf_counter() - started,
        "seconds": [seconds for seconds, _ in found],
        "refusals": sum(refusals for _, refusals in found),
    }


def resident(process: int) -> int:
    """Bytes of memory that a process holds now."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BackendError("The memory of the server cannot be read on this system: leave --soak out.")


def report(rows: list[dict[str, Any]], memory: dict[str, int], about: str) -> str:
    """A table, a row a program and number of clients."""
    head = ["program", "clients", "requests a second", "p50, s", "p95, s", "p99, s", "told to come back"]
    body = []
    for row in rows:
        middle, high, highest = np.percentile(row["seconds"], [50, 95, 99])
        body.append(
            [
                row["program"],
                f"{row['clients']}",
                tables.digits(len(row["seconds"]) / row["wall_seconds"]),
                *(tables.digits(float(value)) for value in (middle, high, highest)),
                f"{row['refusals']}",
            ]
        )
    text = f"{tables.table(head, body)}\n\n{about}"
    if memory:
        text += f"\n\nMemory {tables.size(memory['before'])}, later {tables.size(memory['after'])}."
    return text


def main() -> None:
    """Entry point of the program."""
    run(command, PROGRAM, "There is not enough memory for this measurement.")


if __name__ == "__main__":
    main()
