"""The `cuda` backend on the real CUDA provider of ONNX Runtime, whose CUDA is a stand-in.

Where graphs are placed, what is captured, what is called meanwhile and what is copied are real; numbers and
times are not.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from flowsep_runtime.backends.onnxruntime.cuda_libraries import keeps_captures
from flowsep_runtime.bundle.manifest import FileEntry, GraphEntry, Manifest
from tests.export.conftest import *  # noqa: F403
from tests.export.conftest import Exported
from tests.gpu.operators import TABLES, table_lines
from tests.stand_in.conftest import SITE
from tests.stand_in.libraries import build
from tests.stand_in.without_convolutions import replace_convolutions

ROOT = Path(__file__).parents[2]
ONNXRUNTIME = "onnxruntime-gpu"


@dataclass(frozen=True)
class Run:
    """The output of the program, and what the stand-in saw after each mark.

    Attributes:
        answer: What the program printed.
        stderr: What it said besides.
        events: By mark.
        environment: Of a process on the stand-in.
    """

    answer: dict[str, Any]
    stderr: str
    events: dict[str, list[list[str]]]
    environment: dict[str, str]

    def of(self, mark: str, kind: str) -> list[list[str]]:
        """The events of a kind after a mark."""
        return [event for event in self.events[mark] if event[0] == kind]


def pruned(bundle: Path, destination: Path) -> Path:
    """A copy of a bundle without convolutions, for one clip at a time."""
    folder = Path(shutil.copytree(bundle, destination))
    manifest = Manifest.read(folder)
    model = manifest.model
    sizes = {"batch": 1, "frames": model.clip_frames, "samples": model.clip_samples, "steps": 4}
    sizes["t"] = model.clip_frames // model.latent_stride

    def rewritten(entry: GraphEntry) -> GraphEntry:
        path = folder / entry.files[0].name
        replace_convolutions(path, sizes)
        return replace(entry, files=(FileEntry.of(path), *entry.files[1:]))

    graphs = {name: rewritten(entry) for name, entry in manifest.graphs.items()}
    own = {name: rewritten(entry) for name, entry in manifest.variants["cuda"].items()}
    replace(manifest, graphs=graphs, variants={"cuda": own}).write(folder)
    return folder


def cuda_of(site: Path) -> int:
    """The CUDA that an onnxruntime-gpu is made for, as CUDA counts: 13000."""
    info = runpy.run_path(str(site / "onnxruntime" / "capi" / "build_and_package_info.py"))
    major, minor = info["cuda_version"].split(".")
    return 1000 * int(major) + 10 * int(minor)


@pytest.fixture(scope="module")
def run(tiny_bundle: Exported, tiny_half_bundle: Exported, tmp_path_factory: pytest.TempPathFactory) -> Run:
    work = tmp_path_factory.mktemp("stand-in")
    site = Path(os.environ[SITE])
    libraries = work / "libraries"
    libraries.mkdir()
    build(site / ONNXRUNTIME, site / "headers", libraries, cuda_of(site / ONNXRUNTIME))
    folder = pruned(tiny_half_bundle.folder, work / "pruned")
    log = work / "log"
    (runtime,) = libraries.glob("libcudart.so.*")
    paths = [ROOT / name for name in ("runtime", "export", "evaluation", "training", ".")]
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(libraries),
        "STAND_IN_LOG": str(log),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    command = [sys.executable, "-m", "tests.stand_in.program", str(site / ONNXRUNTIME)]
    command += [f"{tiny_bundle.folder},{tiny_half_bundle.folder}", str(folder), str(runtime)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    events: dict[str, list[list[str]]] = {"loading": []}
    mark = "loading"
    for line in log.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[0] == "mark":
            mark = words[1]
            events[mark] = []
        else:
            events[mark].append(words)
    return Run(json.loads(done.stdout), done.stderr, events, environment)


def test_the_backend_is_there_and_says_nothing_on_stderr(run: Run) -> None:
    assert run.answer["why_not"] is None
    assert run.stderr == ""


def test_every_graph_lies_wholly_on_the_gpu(run: Run) -> None:
    assert run.answer["refused"] == []


def test_nothing_is_called_that_a_capture_refuses(run: Run) -> None:
    assert [event for mark in run.events for event in run.of(mark, "illegal")] == []


def test_every_run_is_captured_once_and_replayed(run: Run) -> None:
    if not keeps_captures(run.answer["version"]):
        assert not any(run.of(mark, kind) for mark in run.events for kind in ("capture", "replay"))
        return
    captures = run.of("first", "capture")
    # log_mel, encode_mixture, posterior, velocity_mixture, velocity_text, velocity_time, loop_constants, two
    # of the step, one of advance for every step, decode_latent, vocode
    assert len(captures) == 7 + 2 + 4 + 2
    assert run.of("second", "capture") == [] == run.of("threads", "capture"), "one thread captures for all"
    replays = len(run.of("second", "replay"))
    assert replays == 8 + 2 * 4 and len(run.of("threads", "replay")) == 3 * replays


def test_no_capture_reads_host_memory_that_changes(run: Run) -> None:
    assert [event for mark in run.events for event in run.of(mark, "stale")] == []
    # log_mel, the first, joins tensors of several sizes, once a clip; neither a step nor loop_constants does
    reading = [number for _, number, _, copies in run.of("first", "capture") if copies != "0"]
    assert reading == (["0"] if keeps_captures(run.answer["version"]) else [])


def test_a_second_clip_crosses_the_bus_at_its_ends_alone(run: Run) -> None:
    """Waveform, both noises, text, mask and the first step's times go up.

    The waveform comes down that is generated; of a masked clip, the log-mel spectrograms of mixture and
    target, of which masks are made.
    """
    if not keeps_captures(run.answer["version"]):
        pytest.skip("where nothing is captured, kernels' tables of sizes cross the bus too")
    assert len(run.of("second", "copy")) == 6 + 1
    assert len(run.of("masked", "copy")) == 6 + 2


def test_the_table_of_kernels_is_the_wheels(run: Run) -> None:
    """The table of the ordinary suite, where this version has one."""
    name = f"cuda-{run.answer['version']}"
    if not (TABLES / f"{name}.txt").is_file():
        pytest.skip(f"there is no table {name}.txt")
    table = table_lines(name)
    operators = sorted({line.split()[0] for line in table})
    site = Path(os.environ[SITE]) / ONNXRUNTIME
    command = [sys.executable, "-m", "tests.stand_in.kernels", str(site), *operators]
    done = subprocess.run(
        command, cwd=ROOT, env=run.environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines() == table
