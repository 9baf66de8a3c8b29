"""`benchmarks.latency` on a GPU, as far as it can be seen without one.

The driver and TensorRT are doubles, ONNX Runtime's CUDA backend computes on the CPU, and PyTorch's code path
runs on its `meta` device, which has shapes and no numbers. No speed is seen here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.common import contestants, gpu, peak
from benchmarks.common.contestants import BASELINES, Contestant, chosen, of_this_project
from benchmarks.common.inputs import STAGE_INPUTS, make_inputs, write_inputs
from benchmarks.common.models import ROOT, Model
from benchmarks.common.peak import Peak
from benchmarks.common.processes import WorkerError, task_of
from benchmarks.common.runners import CLIP, CUDA_GRAPHS, FEATURES, BundleRunner, TorchRunner, open_runner
from benchmarks.common.spread import Summary
from benchmarks.common.standin import write_stand_in
from benchmarks.common.worker import Worker
from benchmarks.latency import cli as latency
from benchmarks.latency import comparison
from benchmarks.latency.comparison import ComparisonSettings, Result, compare
from benchmarks.latency.limits import Limit, clip_seconds, limit_table, limits, shares
from benchmarks.latency.report import Findings, as_json, report
from flowsep_export.tensorrt.engines import build_engines
from flowsep_ref import FlowSepConfig
from flowsep_runtime import OptionError
from flowsep_runtime.arrays import snr_db
from flowsep_runtime.backends import nvidia_driver
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.onnxruntime import cuda
from tests.gpu.doubles import VERSIONS, installed
from tests.gpu.test_cuda import session_on_the_cpu
from tests.runtime.toy_bundle import MODEL, WIDTH, write_toy_bundle

MB = 1 << 20
ON_GPU = {contestant.name: contestant for contestant in (*BASELINES["cuda"], *of_this_project("cuda"))}


class Driver:
    """Double of the functions of libcuda that are used: a GPU with `taken` bytes in use."""

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.taken = 500 * MB
        self.current: object = None

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 7
        return 0 if ordinal < self.devices else 101

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        context._obj.value = 0x5000 + device.value
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        self.current = context.value
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"NVIDIA Double 1"
        return 0 if size == len(name) and device.value == 7 else 1

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:  # noqa: N802
        return 0 if device.value == 7 else 101

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        if self.current != 0x5007:
            return 201  # no context is current
        total._obj.value = 80_000 * MB
        free._obj.value = 80_000 * MB - self.taken
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(nvidia_driver, "load", lambda library: found)
    return found


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


def toy_inputs(batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    latent = (batch, 8, MODEL.clip_frames // 4, 16)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    mel = normal(batch, MODEL.clip_frames, MODEL.mel_bins)
    return {
        "waveform": 0.1 * normal(batch, MODEL.clip_samples),
        "input_ids": np.full((batch, 50), 3, np.int64),
        "attention_mask": (np.arange(50) < 5).astype(np.int64)[None].repeat(batch, axis=0),
        "log_mel": mel,
        "target_log_mel": mel,
        "x": normal(*latent),
        "t": np.full(batch, 0.3, np.float32),
        "mixture_latent": normal(*latent),
        "latent": normal(*latent),
        "text": normal(batch, 50, WIDTH),
        "noise": normal(*latent),
        "posterior_noise": normal(*latent),
    }


# --- which device, which contestants


def test_without_a_driver_all_contestants_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(library: str) -> None:
        raise OSError(library)

    monkeypatch.setattr(nvidia_driver, "load", load)
    assert gpu.device_for("auto") == gpu.device_for("cpu") == "cpu"
    with pytest.raises(OptionError, match=r"^There is no GPU to measure on: there is no NVIDIA driver here"):
        gpu.device_for("cuda")


def test_a_gpu_that_pytorch_cannot_use_is_refused(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(OptionError, match="this PyTorch is built for CPUs"):
        gpu.device_for("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="PyTorch cannot use the GPU"):
        gpu.device_for("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.device_for("auto") == gpu.device_for("cuda") == "cuda"
    driver.devices = 0
    assert gpu.device_for("auto") == "cpu"


def test_on_a_gpu_the_default_contestants_are_eager_half_precision_and_this_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contestants, "why_absent", lambda contestant: None)
    names = [contestant.name for contestant in chosen(None, "cuda")[0]]
    assert names == ["eager", "eager-fp16", "compile-fp16", "tensorrt-fast", "cuda-fast"]
    asked = chosen("cuda,compile-autotune-fp16", "cuda")[0]
    assert [contestant.name for contestant in asked] == ["eager", "cuda", "compile-autotune-fp16"]
    assert all(contestant.device == "cuda" for contestant in asked)
    with pytest.raises(OptionError, match="no contestant 'openvino' on a GPU: choose from eager, eager-fp16"):
        chosen("openvino", "cuda")
    assert not any(contestant.device == "cuda" for contestant in chosen(None)[0])


def test_contestants_that_cannot_run_are_left_out_with_a_reason() -> None:
    taking_part, left_out = chosen(None, "cuda")
    assert taking_part[0].name == "eager"
    assert any(sentence.startswith("cuda-fast: this onnxruntime is for CPUs") for sentence in left_out)


def test_fast_contestants_on_a_gpu_get_the_half_precision_bundle(tmp_path: Path) -> None:
    model = Model("m", tmp_path, bundle=tmp_path / "float32", half_bundle=tmp_path / "half")
    bundles = {name: task_of(each, model, 1, tmp_path).bundle for name, each in ON_GPU.items()}
    assert bundles["cuda-fast"] == bundles["tensorrt-fast"] == str(tmp_path / "half")
    assert bundles["cuda"] == str(tmp_path / "float32")
    (on_cpu,) = (each for each in of_this_project("cpu") if each.name == "cpu-fast")
    assert task_of(on_cpu, model, 1, tmp_path).bundle == str(tmp_path / "float32")


# --- memory


def test_gpu_memory_is_read_from_the_driver(driver: Driver) -> None:
    found = gpu.Gpu()
    assert (found.name, found.used_bytes()) == ("NVIDIA Double 1", 500 * MB)
    driver.current = None  # as in another thread
    driver.taken += 3 * MB
    assert found.used_bytes() == 503 * MB


def test_a_driver_that_fails_says_where(driver: Driver) -> None:
    driver.devices = 0
    with pytest.raises(Exception, match=r"^The NVIDIA driver failed \(cuDeviceGet: CUDA error 101\)\.$"):
        gpu.Gpu()


# --- this project's engines


@pytest.fixture
def on_doubles(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Both engines of this project, by name; TensorRT's with its double installed."""

    @contextmanager
    def engine(name: str) -> Iterator[BundleRunner]:
        if name == "cuda":
            monkeypatch.setattr(cuda, "open_session", session_on_the_cpu)
            monkeypatch.setattr(cuda, "DEVICE", "cpu")
            monkeypatch.setattr(cuda, "why_not", lambda: None)
            yield _engine(ON_GPU["cuda"], toy)
            return
        bundle = Path(shutil.copytree(toy, tmp_path / "engines"))
        frames = Range(MODEL.clip_frames, MODEL.clip_frames, MODEL.clip_frames)
        with installed(VERSIONS[-1]) as machine:
            build_engines(bundle, Range(1, 1, 2), frames)
            found = _engine(ON_GPU["tensorrt"], bundle)
            yield found
            found.pipeline.backend.close()  # type: ignore[attr-defined]
            assert machine.faults() == []

    return engine


def _engine(contestant: Contestant, bundle: Path) -> BundleRunner:
    found = open_runner(task_of(contestant, Model("toy", bundle, bundle=bundle), 1, bundle))
    assert isinstance(found, BundleRunner)
    return found


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
@pytest.mark.parametrize("batch", [1, 2])
def test_every_stage_is_timed_on_the_device_and_a_clip_is_the_cpus(
    on_doubles: Callable[[str], Any], toy: Path, name: str, batch: int
) -> None:
    inputs = toy_inputs(batch)
    on_cpu = BundleRunner(task_of(of_this_project("cpu")[-1], Model("toy", toy, bundle=toy), 1, toy))
    with on_doubles(name) as engine:
        for stage, names in STAGE_INPUTS.items():
            found = engine.timed(stage, [inputs[n] for n in names])
            assert set(found) == ({"velocity", FEATURES} if stage == "velocity" else {stage})
            assert all(seconds > 0 for seconds in found.values())
        wanted, actual = (each.clip(inputs, 3, "euler") for each in (on_cpu, engine))
        assert actual.shape == (batch, MODEL.clip_samples + MODEL.vocoder_tail)
        assert snr_db([wanted], [actual]) > 90


@pytest.mark.slow
def test_a_worker_measures_stages_clip_and_memory(
    on_doubles: Callable[[str], Any], driver: Driver, toy: Path, tmp_path: Path
) -> None:
    inputs = write_inputs(tmp_path / "inputs.npz", toy_inputs(1))
    with on_doubles("cuda") as engine:
        model = Model("toy", toy, bundle=toy)
        worker = Worker(task_of(ON_GPU["cuda"], model, 1, inputs))
        worker.open("vocode", str(tmp_path / "out.npz"))
        with np.load(tmp_path / "out.npz") as arrays:
            assert snr_db(engine.call("vocode", [toy_inputs(1)["target_log_mel"]]), [arrays["arr_0"]]) > 90
        assert set(worker.measure()) == {"vocode"}
        worker.close()
        worker.open_clip(2, "euler")
        assert set(worker.measure()) == {CLIP}
        worker.close()
        driver.taken += 42 * MB
        assert worker.gpu_bytes(2, "euler") == {"gpu_bytes": 42 * MB}


# --- the baselines


@pytest.fixture(scope="module")
def tiny(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FlowSepConfig, Path]:
    config = FlowSepConfig.from_yaml(data / "configs" / "tiny.yaml")
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    write_stand_in(config, folder)
    return config, folder


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["", "fp16"])
def test_no_stage_of_a_baseline_mixes_devices_or_types(
    tiny: tuple[FlowSepConfig, Path], tmp_path: Path, precision: str
) -> None:
    config, weights = tiny
    arrays = make_inputs(config, 32, 2, 0)
    task = replace(task_of(ON_GPU["eager"], Model("tiny", weights), 1, tmp_path), precision=precision)
    meta, on_cpu = (TorchRunner(replace(task, device=device)) for device in ("meta", "cpu"))
    for stage, names in STAGE_INPUTS.items():
        outputs = meta.run(stage, [meta.put(arrays[name]) for name in names])
        assert all(tensor.is_meta and tensor.dtype == torch.float32 for tensor in outputs)
        if stage == "vocode":
            assert [tuple(tensor.shape) for tensor in outputs] == [(2, 160 * 32 + 32)]
    if precision:
        exact = TorchRunner(replace(task, device="cpu", precision="")).call(
            "decode_latent", [arrays["latent"]]
        )
        assert 20 < snr_db(exact, on_cpu.call("decode_latent", [arrays["latent"]])) < 90


def test_float32_on_a_gpu_is_float32_for_the_judge_only() -> None:
    from benchmarks.common.runners import settle_gpu

    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32, convolutions.benchmark
    try:
        for is_exact in (False, True):
            settle_gpu(is_exact)
            assert products.allow_tf32 == convolutions.allow_tf32 == (not is_exact)
    finally:
        products.allow_tf32, convolutions.allow_tf32, convolutions.benchmark = before


@pytest.mark.slow
def test_compiled_baselines_on_a_gpu_are_launched_as_cuda_graphs(
    tiny: tuple[FlowSepConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, weights = tiny
    asked: list[dict[str, Any]] = []

    def compile_(method: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        asked.append(options)
        return method

    monkeypatch.setattr(torch, "compile", compile_)
    for name in ("compile-fp16", "compile-autotune-fp16"):
        task = task_of(ON_GPU[name], Model("tiny", weights), 1, tmp_path)
        engine = TorchRunner(replace(task, device="meta"))
        engine.run("log_mel", [torch.zeros(1, 32 * 160, device="meta")])
    assert asked == [{"dynamic": False, "mode": mode} for mode in CUDA_GRAPHS]


# --- the chip's limit


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
        "choose": lambda *arguments: model,
        "with_half_bundle": lambda model, work: model,
        "config_of": lambda model: config,
        "make_inputs": lambda *arguments: {},
        "build_engines": no_engines,
    }.items():
        monkeypatch.setattr(latency, name, value)
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
