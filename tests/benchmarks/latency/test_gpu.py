"""`benchmarks.latency` on a GPU, as far as it can be seen without one.

The driver and TensorRT are doubles, ONNX Runtime's CUDA backend computes on the CPU, and PyTorch's code path
runs on its `meta` device, which has shapes and no numbers. No speed is seen here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.common import contestants, gpu
from benchmarks.common.contestants import Contestant, chosen, of_this_project
from benchmarks.common.inputs import STAGE_INPUTS, make_inputs, write_inputs
from benchmarks.common.models import Model
from benchmarks.common.processes import task_of
from benchmarks.common.runners import CLIP, CUDA_GRAPHS, FEATURES, BundleRunner, TorchRunner, open_runner
from benchmarks.common.standin import write_stand_in
from benchmarks.common.worker import Worker
from flowsep_export.tensorrt.engines import build_engines
from flowsep_ref import FlowSepConfig
from flowsep_runtime import OptionError
from flowsep_runtime.arrays import snr_db
from flowsep_runtime.backends import nvidia_driver
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.onnxruntime import cuda
from tests.benchmarks.latency.conftest import MB, ON_GPU, Driver, toy_inputs
from tests.gpu.cpu_sessions import session_on_the_cpu
from tests.gpu.doubles import VERSIONS, installed
from tests.runtime.toy_bundle import MODEL

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
