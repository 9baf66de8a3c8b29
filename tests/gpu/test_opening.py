"""GPU backends that open, sentences about those that do not, and "auto", which goes on to the next."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

from flowsep_runtime import BackendError, OptionError, Pipeline
from flowsep_runtime.backends import BACKENDS, nvidia_driver, open_backend, open_chosen, why_not
from flowsep_runtime.backends.onnxruntime import cuda
from flowsep_runtime.backends.onnxruntime.bound import failure
from flowsep_runtime.backends.tensorrt import backend as tensorrt_backend
from flowsep_runtime.bundle.manifest import Manifest
from tests.gpu.conftest import clip
from tests.gpu.cpu_sessions import session_on_the_cpu
from tests.gpu.doubles import VERSIONS, installed

GIB = 1 << 30
CPU = ("openvino", "cpu")


class Driver:
    """The functions of libcuda that are called, of a driver for some version of CUDA."""

    def __init__(self, version: int = 13020, devices: int = 1, free: int = 80 * GIB) -> None:
        self.version, self.devices, self.free = version, devices, free
        self.retained = 0

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.devices
        return 0 if self.devices else 100

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 5
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        self.retained += 1
        context._obj.value = 0x5007
        return 0 if device.value == 5 else 101

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:  # noqa: N802
        self.retained -= 1
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        return 0 if context.value == 0x5007 else 201

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value, total._obj.value = self.free, 80 * GIB
        return 0


class Libraries:
    """Libraries that can be loaded: the driver, and everything that is not missing."""

    def __init__(self, driver: Driver) -> None:
        self.driver: Driver | None = driver
        self.missing: set[str] = set()
        self.loaded: list[str] = []

    def load(self, library: str) -> Any:
        if any(name in library for name in self.missing):
            raise OSError(f"{library}: cannot open shared object file")
        self.loaded.append(library)
        return self.driver


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Libraries:
    """A machine whose ONNX Runtime has the CUDA provider, for CUDA 13, with sessions on the CPU."""
    found = Libraries(Driver())
    built = ModuleType("onnxruntime.capi.build_and_package_info")
    built.cuda_version = "13.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, built.__name__, built)
    monkeypatch.setattr(nvidia_driver, "load", found.load)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda.PROVIDER])
    monkeypatch.setattr(cuda, "open_session", session_on_the_cpu)
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    return found


def test_what_the_cuda_backend_lacks_is_named(libraries: Libraries) -> None:
    libraries.missing.add("libcuda.so")
    assert why_not("cuda") == "there is no NVIDIA driver here (libcuda.so.1)"
    libraries.missing = {"libcudnn"}
    assert str(why_not("cuda")).startswith("a library is missing (libcudnn.so.9")
    libraries.missing = {"providers_cuda"}
    assert "libonnxruntime_providers_cuda.so" in str(why_not("cuda"))
    libraries.missing.clear()
    assert why_not("cuda") is None


@pytest.mark.parametrize(
    ("version", "built_for", "said"),
    [
        (13000, "13.0", None),
        (13020, "13.0", None),
        (13000, "12.8", None),
        (12020, "12.8", None),  # a minor version more: CUDA allows that
        (12080, "13.0", "CUDA 12.8, and this onnxruntime-gpu for CUDA 13.0; update the driver, or run: "),
        (11080, "12.8", "CUDA 11.8, and this onnxruntime-gpu for CUDA 12.8; update the driver"),
        (12080, "", None),  # a build of somebody's own
    ],
)
def test_an_old_driver_is_said_before_anything_is_loaded(
    libraries: Libraries, version: int, built_for: str, said: str | None
) -> None:
    libraries.driver = Driver(version)
    sys.modules["onnxruntime.capi.build_and_package_info"].cuda_version = built_for  # type: ignore[attr-defined]
    reason = why_not("cuda")
    if said is None:
        assert reason is None
    else:
        assert said in str(reason) and set(libraries.loaded) == {nvidia_driver.DRIVER}
        assert ("flowsep-engine[gpu-cu12]" in str(reason)) == (version == 12080)


def test_a_gpu_is_counted_by_the_driver(libraries: Libraries) -> None:
    libraries.driver = Driver(devices=0)
    assert why_not("cuda") == "the NVIDIA driver does not start (CUDA error 100)"


def test_the_first_stage_runs_before_the_backend_is_taken(toy: Path, libraries: Libraries) -> None:
    assert Pipeline.load(toy, "cuda").backend.name == "cuda"
    assert libraries.driver is not None and libraries.driver.retained == 0
    assert open_chosen("auto", toy, Manifest.read(toy))[0].name == "cuda"


def refuses_to_load(path: Path, sizes: Any, options: Any) -> Any:
    raise failure("ONNX Runtime cannot load x.onnx", RuntimeError("CUDA failure 35: too old\nmore"))


def has_no_memory(path: Path, sizes: Any, options: Any) -> Any:
    raise failure("ONNX Runtime cannot load x.onnx", RuntimeError("CUDA failure 2: out of memory ; GPU"))


@pytest.mark.parametrize(
    ("opened", "said"),
    [
        (
            refuses_to_load,
            "cannot be used here: ONNX Runtime cannot load x.onnx: CUDA failure 35: too old.",
        ),
        (has_no_memory, "The GPU has not enough memory (ONNX Runtime cannot load x.onnx): close what"),
    ],
)
def test_auto_goes_on_where_the_first_stage_fails(
    toy: Path,
    libraries: Libraries,
    monkeypatch: pytest.MonkeyPatch,
    opened: Callable[..., Any],
    said: str,
) -> None:
    monkeypatch.setattr(cuda, "open_session", opened)
    with pytest.raises(OptionError) as raised:
        open_backend("cuda", toy, Manifest.read(toy))
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert open_chosen("auto", toy, Manifest.read(toy))[0].name in CPU


def test_auto_goes_on_where_others_fill_the_gpu(toy: Path, libraries: Libraries) -> None:
    libraries.driver = Driver(free=100)
    with pytest.raises(OptionError, match=r"has 0\.0 GiB of memory free and .* close what else uses it\.$"):
        open_backend("cuda", toy, Manifest.read(toy))
    assert open_chosen("auto", toy, Manifest.read(toy))[0].name in CPU


def test_a_run_that_finds_no_memory_says_so(toy: Path, libraries: Libraries) -> None:
    backend: Any = open_backend("cuda", toy, Manifest.read(toy))

    class Full:
        def io_binding(self) -> Any:
            return self

        def bind_ortvalue_input(self, *arguments: Any) -> None: ...

        bind_ortvalue_output = bind_ortvalue_input

        def run_with_iobinding(self, *arguments: Any) -> None:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 9")

    backend._session = lambda *arguments: Full()
    with pytest.raises(BackendError, match=r"^The GPU has not enough memory .*graph vocode.*: close"):
        backend.run("vocode", {"log_mel": np.zeros((1, 32, 64), np.float32)})


def test_all_threads_work_goes_through_one(toy: Path, libraries: Libraries, on_cpu: Pipeline) -> None:
    """ONNX Runtime has handles and captured runs for each thread."""
    used: set[int] = set()

    def watched(*arguments: Any) -> Any:
        session = session_on_the_cpu(*arguments)

        class Watched:
            def io_binding(self) -> Any:
                return session.io_binding()

            def run_with_iobinding(self, *arguments: Any) -> Any:
                used.add(threading.get_ident())
                return session.run_with_iobinding(*arguments)

        used.add(threading.get_ident())
        return Watched()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "open_session", watched)
        pipeline = Pipeline.load(toy, "cuda")
        results: dict[int, Any] = {}
        threads = [
            threading.Thread(
                target=lambda seed=seed: results.update({seed: pipeline.generate(clip(seed=seed), 2)})
            )
            for seed in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(used) == 1 and threading.get_ident() not in used
    for seed in range(3):
        assert np.allclose(results[seed], on_cpu.generate(clip(seed=seed), 2), atol=1e-5)


def test_auto_asks_no_further_than_it_has_to(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TensorRT at work nobody loads the CUDA provider."""
    asked: list[str] = []

    class Backend:
        def __init__(self, name: str, missing: str | None, fast: str = "float16") -> None:
            self.name, self.missing, self.fast = name, missing, fast

        def why_not(self) -> str | None:
            asked.append(self.name)
            return self.missing

        def arithmetic(self, precision: str) -> str:
            return "float32" if precision == "exact" else self.fast

        def open(self, *arguments: Any) -> Any:
            return self

    machine: dict[str, Any] = {
        "tensorrt": Backend("tensorrt", None),
        "cuda": Backend("cuda", None),
        "openvino": Backend("openvino", "not installed"),
        "cpu": Backend("cpu", None, fast="float32"),
    }
    assert list(machine) == list(BACKENDS)
    monkeypatch.setattr("flowsep_runtime.backends._module", machine.__getitem__)
    for precision, arithmetic in (("exact", "exact"), ("fast", "fast"), ("auto", "fast")):
        asked.clear()
        chosen: Any = open_chosen("auto", toy, Manifest.read(toy), precision)  # type: ignore[arg-type]
        assert (chosen[0].name, chosen[1], asked) == ("tensorrt", arithmetic, ["tensorrt"])
    # one that has no quicker arithmetic waits until all others were asked, and computes exactly
    machine["tensorrt"].fast = "float32"
    machine["cuda"].missing = "not installed"
    asked.clear()
    assert open_chosen("auto", toy, Manifest.read(toy), "auto") == (machine["tensorrt"], "exact")
    assert asked == list(machine)


def test_tensorrt_tells_an_old_driver_from_none(libraries: Libraries) -> None:
    with installed(VERSIONS[-1]) as machine:
        sys.modules["cuda.bindings"].__version__ = "13.5.0"  # type: ignore[attr-defined]
        machine.cuda.devices = 0  # cudaErrorInsufficientDriver is what it says in all three cases
        libraries.driver = Driver(12080)
        assert str(why_not("tensorrt")) == (
            "the NVIDIA driver is too old: it is made for CUDA 12.8, and this cuda-python for CUDA 13.5.0; "
            "update the driver, or run: pip install 'flowsep-engine[tensorrt-cu12]'"
        )
        libraries.driver = Driver()
        assert why_not("tensorrt") == "CUDA does not start (cudaErrorInsufficientDriver)"
        libraries.missing.add("libcuda.so")
        assert why_not("tensorrt") == "there is no NVIDIA driver here (libcuda.so.1)"


def test_tensorrt_looks_at_the_free_memory(toy: Path, tmp_path: Path) -> None:
    import shutil

    from flowsep_export.tensorrt.engines import build_engines
    from tests.gpu.test_engines import FRAMES, ONE

    bundle = Path(shutil.copytree(toy, tmp_path / "toy"))
    with installed(VERSIONS[-1]) as machine:
        build_engines(bundle, ONE, FRAMES)
        machine.cuda.free_bytes = 1000
        with pytest.raises(OptionError, match=r"tensorrt backend cannot be used here: the GPU has 0\.0 GiB"):
            open_backend("tensorrt", bundle, Manifest.read(bundle))
        assert open_chosen("auto", bundle, Manifest.read(bundle))[0].name in CPU
        machine.cuda.fails.add("cudaStreamCreateWithFlags")
        with pytest.raises(OptionError, match=r"cannot be used here: The GPU failed .cudaStreamCreate"):
            open_backend("tensorrt", bundle, Manifest.read(bundle))
        assert tensorrt_backend.why_not() is None
        assert machine.faults() == []
