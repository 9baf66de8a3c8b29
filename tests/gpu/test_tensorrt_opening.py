"""Opening the `tensorrt` backend on the strict double: what is taken, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from flowsep_export.tensorrt.engines import build_engines
from flowsep_runtime import BackendError, OptionError, Pipeline
from flowsep_runtime.backends import open_backend, open_chosen, why_not
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.tensorrt.engines import SIDECAR
from flowsep_runtime.bundle.manifest import Manifest
from tests.gpu.conftest import FRAMES, clip
from tests.gpu.doubles import Machine


def test_too_little_memory_is_one_sentence(built: Path, machine: Machine) -> None:
    pipeline = Pipeline.load(built, "tensorrt")
    machine.cuda.free_bytes = 20000  # taken by others meanwhile
    with pytest.raises(BackendError, match=r"not enough memory .cudaMalloc: cudaErrorMemoryAllocation"):
        pipeline.generate(clip(), 2)
    machine.trt.truths.clear()


def test_auto_takes_it_where_the_bundle_has_engines(built: Path, toy: Path, machine: Machine) -> None:
    on_this_cpu = next(name for name in ("openvino", "cpu") if why_not(name) is None)
    assert Pipeline.load(toy).backend.name == on_this_cpu
    backend = Pipeline.load(built).backend
    assert backend.name == "tensorrt"
    backend.close()  # type: ignore[attr-defined]
    assert machine.faults() == []


def test_auto_leaves_half_precision_to_another_engine_where_exact_is_asked_for(
    built: Path, machine: Machine
) -> None:
    half = dataclasses.replace(Manifest.read(built), precision="float16")
    backend, precision = open_chosen("auto", built, half, "exact")
    assert (backend.name in ("openvino", "cpu"), precision) == (True, "exact")
    backend, precision = open_chosen("auto", built, half, "auto")
    assert (backend.name, precision) == ("tensorrt", "fast")
    assert backend.description.startswith("tensorrt ") and "NVIDIA Double 1" in backend.description
    backend.close()  # type: ignore[attr-defined]
    assert machine.faults() == []


def test_what_is_missing_is_said(toy: Path, machine: Machine) -> None:
    with pytest.raises(OptionError, match=r"no engines for NVIDIA Double 1 .* run flowsep-export --tensorrt"):
        Pipeline.load(toy, "tensorrt")
    machine.cuda.devices = 0
    assert why_not("tensorrt") == "there is no NVIDIA driver here (libcuda.so.1)"


def test_without_the_libraries_the_reason_is_said() -> None:
    assert "flowsep-engine[tensorrt]" in str(why_not("tensorrt"))


def test_another_gpu_has_no_engines(built: Path, machine: Machine) -> None:
    machine.cuda.name = b"NVIDIA Double 2"
    with pytest.raises(OptionError, match="no engines for NVIDIA Double 2"):
        Pipeline.load(built, "tensorrt")
    assert machine.faults() == []


def test_half_precision_is_not_exact(built: Path, machine: Machine) -> None:
    half = dataclasses.replace(Manifest.read(built), precision="float16")
    with pytest.raises(OptionError, match="add --precision fast"):
        open_backend("tensorrt", built, half, "exact")


def _damaged(bundle: Path, machine: Machine, how: str) -> None:
    (folder,) = bundle.glob(f"engines/*{machine.trt.version}")
    (plan,) = folder.glob("vocode-*.plan")
    if how == "plan":
        plan.write_bytes(plan.read_bytes()[:-1])
    elif how == "no plan":
        plan.unlink()
    elif how == "no json":
        (folder / SIDECAR).write_text("{", encoding="utf-8")
    else:
        (folder / SIDECAR).write_text('{"format": 99}', encoding="utf-8")


@pytest.mark.parametrize("how", ["plan", "no plan", "no json"])
def test_damaged_engines_are_refused(built: Path, tmp_path: Path, machine: Machine, how: str) -> None:
    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    _damaged(bundle, machine, how)
    with pytest.raises(BackendError, match=r"engines\.json is damaged"):
        Pipeline.load(bundle, "tensorrt")
    assert machine.faults() == []


def test_engines_of_another_version_are_refused_and_built_again(
    built: Path, tmp_path: Path, machine: Machine
) -> None:
    """An option, so that "auto" takes the next backend."""
    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    _damaged(bundle, machine, "format")
    with pytest.raises(OptionError, match="another version of FlowSep: run flowsep-export --tensorrt"):
        Pipeline.load(bundle, "tensorrt")
    build_engines(bundle, Range(1, 1, 3), FRAMES)
    Pipeline.load(bundle, "tensorrt").backend.close()  # type: ignore[attr-defined]
    assert machine.faults() == []


def test_engines_of_other_graphs_are_refused(built: Path, machine: Machine) -> None:
    manifest = Manifest.read(built)
    files = (dataclasses.replace(manifest.graphs["vocode"].files[0], sha256="0" * 64),)
    other = dataclasses.replace(manifest.graphs["vocode"], files=files)
    manifest = dataclasses.replace(manifest, graphs=manifest.graphs | {"vocode": other})
    with pytest.raises(OptionError, match="built from another vocode"):
        open_backend("tensorrt", built, manifest)
    assert machine.faults() == []
