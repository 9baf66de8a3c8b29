"""The GPU's limits, and how the report of `benchmarks.latency` has them: on doubles, without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.common import contestants, peak
from benchmarks.common.inputs import STAGE_INPUTS
from benchmarks.common.models import ROOT, Model
from benchmarks.common.peak import Peak
from benchmarks.common.processes import WorkerError
from benchmarks.common.runners import CLIP, FEATURES
from benchmarks.common.spread import Summary
from benchmarks.latency import cli as latency
from benchmarks.latency import comparison
from benchmarks.latency.comparison import ComparisonSettings, Result, compare
from benchmarks.latency.limits import Limit, clip_seconds, limit_table, limits, shares
from benchmarks.latency.report import Findings, as_json, report
from flowsep_ref import FlowSepConfig
from tests.benchmarks.latency.conftest import MB, ON_GPU
from tests.runtime.toy_bundle import MODEL


def test_a_limit_is_the_longer_of_computing_and_moving() -> None:
    chip = Peak(operations=1e12, bandwidth=1e9)
    assert Limit.of(2e12, 1e9, chip) == Limit(2e12, 1e9, 2.0, False)
    assert Limit.of(1e12, 3e9, chip) == Limit(1e12, 3e9, 3.0, True)


def result_of(name: str, seconds: Mapping[str, float], whole: float | None = None) -> Result:
    found = Result(ON_GPU[name], stages={stage: Summary((s, s)) for stage, s in seconds.items()})
    found.whole = None if whole is None else Summary((whole, whole))
    found.cold = (1.0, 0.5)
    found.clip_snr = 40.0
    found.gpu_bytes = 900 * MB
    return found


def test_a_share_is_the_limit_over_the_measured_time() -> None:
    found = {
        FEATURES: Limit(0, 0, 0.5, False),
        "velocity": Limit(0, 0, 1.0, False),
        "vocode": Limit(0, 0, 2.0, True),
    }
    assert clip_seconds(found, 10) == 12.5
    ours = result_of("cuda-fast", {FEATURES: 1.0, "velocity": 4.0, "vocode": 4.0}, whole=25.0)
    assert shares(ours, found, 10) == {FEATURES: 0.5, "velocity": 0.25, "vocode": 0.5, CLIP: 0.5}
    eager = result_of("eager", {"velocity": 10.0, "vocode": 25.0})
    assert shares(eager, found, 10) == {"velocity": 0.1, "vocode": 0.08, CLIP: 0.1}
    eager.stages["vocode"] = Summary((1.0, 10.0))
    assert "vocode" not in shares(eager, found, 10), "a disturbed measurement has no share"
    lines = limit_table([eager, ours], found, 10).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [*found, CLIP]
    assert lines[4].endswith("| bytes |  | 50.0 % |")
    assert lines[0].endswith("| eager | cuda-fast |")


def test_limits_are_counted_from_the_bundle_with_a_query_a_clip(toy: Path) -> None:
    chip = Peak(1e12, 1e9)
    one, four = (limits(toy, batch, MODEL.clip_frames, chip) for batch in (1, 4))
    assert set(one) == {*STAGE_INPUTS, FEATURES}
    for name in ("log_mel", "encode_mixture", "velocity"):
        assert four[name].operations == 4 * one[name].operations
    assert all(four[name].seconds > one[name].seconds for name in one)
    assert sum(limit.operations for limit in one.values()) > 0


def test_peaks_are_measured_on_the_device() -> None:
    found = peak.measured("cpu", side=16, copied=4096)
    assert found.operations > 0 and found.bandwidth > 0


# --- everything together


class Scripted:
    """A worker's process that needs no GPU: it answers, and notes what it was asked."""

    asked: list[tuple[str, str]]
    fails: tuple[str, str] = ("", "")

    def __init__(self, name: str, task: Any, cache: Path) -> None:
        self.name, self.task = name, task
        self.open = ""

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        Scripted.asked.append((self.name, command))
        if (self.name, command) == Scripted.fails:
            raise WorkerError(f"{self.name} failed: out of memory")
        if command in ("open", "first"):
            # a file that is written over waits for the disk
            Path(arguments["output"]).unlink(missing_ok=True)
            np.savez(arguments["output"], np.ones((1, 32), np.float32))
        if command == "open":
            self.open = arguments["stage"]
        if command == "open_clip":
            self.open = CLIP
            assert (arguments["steps"], arguments["solver"]) == (4, "euler")
        speed = {"eager": 1.0, "eager-fp16": 2.0, "tensorrt-fast": 8.0, "cuda-fast": 8.0}[self.name]
        names = [self.open, *([FEATURES] if self.open == "velocity" else [])]
        answers: dict[str, dict[str, Any]] = {
            "first": {"remarks": [], "peak_bytes": 9 * MB},
            "gpu_bytes": {"gpu_bytes": 700 * MB},
            "measure": dict.fromkeys(names, 1.0 / speed),
        }
        return answers.get(command, {})

    def age(self) -> float:
        return 3.0

    def end(self) -> None:
        pass


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    @contextmanager
    def running(*arguments: Any) -> Iterator[Scripted]:
        yield Scripted(*arguments)

    Scripted.asked, Scripted.fails = [], ("", "")
    monkeypatch.setattr(comparison, "Process", Scripted)
    monkeypatch.setattr(comparison, "running", running)
    return Scripted


SETTINGS = ComparisonSettings(4, "euler", 2, 1, seconds=10.0, batch=4, device="cuda")


def compared(toy: Path, scratch: Path) -> list[Result]:
    model = Model("toy", toy, half_bundle=toy)
    taking_part = [ON_GPU[name] for name in ("eager", "eager-fp16", "cuda-fast")]
    return compare(taking_part, model, scratch / "inputs.npz", SETTINGS, scratch)


def test_on_a_gpu_the_clip_is_measured_in_one_piece_and_memory_is_asked_for(
    scripted: type[Scripted], toy: Path, tmp_path: Path
) -> None:
    results = compared(toy, tmp_path)
    clips = [result.clip(SETTINGS.evaluations).values for result in results]
    assert clips == [(1.0, 1.0), (0.5, 0.5), (0.125, 0.125)], "not the sum of the stages"
    assert [result.gpu_bytes for result in results] == 3 * [700 * MB]
    opened = [name for name, command in scripted.asked if command == "open_clip"]
    assert opened == ["eager", "eager-fp16", "cuda-fast"]
    measured = [name for name, command in scripted.asked if command == "measure"][-6:]
    assert measured == [*opened, *reversed(opened)]


def test_disturbed_rounds_are_repeated_and_the_quietest_kept(
    scripted: type[Scripted], toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, disturbed = Scripted.ask, [5.0, 1.0, 1.0]

    def ask(self: Scripted, command: str, **arguments: Any) -> dict[str, Any]:
        answer = calm(self, command, **arguments)
        if (command, self.name, self.open) == ("measure", "cuda-fast", CLIP):
            answer = {CLIP: answer[CLIP] * (disturbed.pop(0) if disturbed else 1.0)}
        return answer

    monkeypatch.setattr(Scripted, "ask", ask)
    whole = compared(toy, tmp_path)[2].whole
    assert whole is not None and whole.values == (0.125, 0.125)
    assert disturbed == [], "two rounds and one more"


def test_a_contestant_out_of_memory_is_left_out(scripted: type[Scripted], toy: Path, tmp_path: Path) -> None:
    scripted.fails = ("eager-fp16", "open_clip")
    results = compared(toy, tmp_path)
    assert results[1].left_out == "eager-fp16 failed: out of memory" and results[1].whole is None
    assert results[2].whole is not None


def test_the_report_has_gpu_memory_and_the_share_of_the_limit(
    scripted: type[Scripted], toy: Path, tmp_path: Path
) -> None:
    results = compared(toy, tmp_path)
    chip = Peak(600e12, 2e12)
    found = {stage: Limit(1e9, 1e6, 0.0125, False) for stage in (*STAGE_INPUTS, FEATURES)}
    facts = {"gpu": "NVIDIA Double 1", "processor": "p", "cores": 2, "versions": {}, "measured": "now"}
    findings = Findings("toy", results, SETTINGS, facts, [], chip, found)
    text = report(findings)
    assert "batch 4, on the GPU, 2 interleaved rounds" in text
    assert "| GPU memory | on disk |" in text and "| 734 MB |" in text
    assert "600 TFLOP/s in half precision and 2000 GB/s, as measured here." in text
    assert "NVIDIA Double 1, p, 2 cores" in text
    least = 0.0125 * (len(found) - 1 + SETTINGS.evaluations)
    assert shares(results[2], found, SETTINGS.evaluations)[CLIP] == pytest.approx(least / 0.125)
    content = json.loads(json.dumps(as_json(findings), allow_nan=False))
    ours = content["contestants"]["cuda-fast"]
    assert ours["clip"]["real_time_factor"] == pytest.approx(0.125 / 40)
    assert ours["share_of_limit"]["vocode"] == pytest.approx(0.1)
    assert ours["gpu_bytes"] == 700 * MB
    assert content["peak"] == {"operations": 600e12, "bandwidth": 2e12}
    assert content["settings"]["device"] == "cuda" and content["settings"]["batch"] == 4


def test_without_a_gpu_there_is_no_column_and_no_limit_for_one(
    scripted: type[Scripted], toy: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, device="cpu")
    taking_part = [ON_GPU["eager"]]
    results = compare(taking_part, Model("toy", toy), tmp_path / "inputs.npz", settings, tmp_path)
    assert not {"open_clip", "gpu_bytes"} & {command for _, command in scripted.asked}
    facts = {"processor": "p", "cores": 2, "versions": {}, "measured": "now"}
    text = report(Findings("toy", results, settings, facts, []))
    assert "GPU" not in text and "1 threads" in text


@pytest.mark.parametrize("is_own", [True, False])
def test_the_command_measures_peaks_and_counts_the_bundle(
    scripted: type[Scripted], toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    """TensorRT's engines are built in the command's own exports only; if that fails, it is left out."""
    taking_part = [ON_GPU[name] for name in ("eager", "tensorrt-fast", "cuda-fast")]
    model = Model("toy", toy, bundle=toy, half_bundle=toy)
    config = FlowSepConfig.from_yaml(ROOT / "flowsep_ref/configs/tiny.yaml")
    built: list[tuple[Path, int, int]] = []

    def no_engines(bundle: Path, batch: int, frames: int) -> None:
        built.append((bundle, batch, frames))
        raise WorkerError("no parser for this graph.")

    for name, value in {
        "device_for": lambda asked: "cuda",
        "_gpu": lambda *arguments: ("NVIDIA Double 1", Peak(1e12, 1e9)),
        "with_half_bundle": lambda model, work: model,
        "config_of": lambda model: config,
        "make_inputs": lambda *arguments: {},
        "build_engines": no_engines,
    }.items():
        monkeypatch.setattr(latency, name, value)
    monkeypatch.setattr("benchmarks.common.options.choose", lambda *arguments: model)
    monkeypatch.setattr(contestants, "chosen", lambda names, device: (taking_part, ["compile-fp16: no"]))
    options = [
        f"--work={toy.parent if is_own else tmp_path}",
        "--steps=4",
        "--rounds=2",
        "--batch=2",
        "--seconds=0.64",
    ]
    answer = CliRunner().invoke(latency.command, options, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    assert built == ([(toy, 2, 64)] if is_own else [])
    assert ("Left out: tensorrt-fast: no parser for this graph." in answer.output) == is_own
    assert "Left out: compile-fp16: no." in answer.output
    assert "Share of the chip's limit: 1 TFLOP/s" in answer.output
    assert "| velocity | " in answer.output and "batch 2, on the GPU" in answer.output


def test_without_a_gpu_nothing_of_cuda_is_imported() -> None:
    code = (
        "import sys, benchmarks.latency.cli, benchmarks.common.worker\n"
        "from benchmarks.common.gpu import device_for\n"
        "assert device_for('cpu') == 'cpu'\n"
        "assert {'torch', 'triton', 'tensorrt', 'cuda', 'onnx'}.isdisjoint(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
