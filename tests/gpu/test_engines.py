"""`flowsep-export --tensorrt` on the strict double."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile

from flowsep_export import verify
from flowsep_export.errors import EngineError
from flowsep_export.tensorrt.engines import TIMING_CACHE, build_engines
from flowsep_export.tensorrt.verify import verify_engines
from flowsep_runtime import BackendError, OptionError, Pipeline
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.loop_parts import CONSTANTS, STEP
from flowsep_runtime.backends.tensorrt.engines import BETWEEN_STAGES, SIDECAR, EngineSet
from flowsep_runtime.bundle.manifest import GRAPHS, FileEntry, Manifest
from flowsep_runtime.caches import read_checked, write_checked
from tests.export.conftest import run_export
from tests.gpu.conftest import normal
from tests.gpu.doubles import VERSIONS, Machine, installed
from tests.runtime.toy_bundle import MODEL, write_toy_bundle

ONE = Range(1, 1, 1)
FRAMES = Range(MODEL.clip_frames, MODEL.clip_frames, MODEL.clip_frames)
NAMES = {*GRAPHS, *BETWEEN_STAGES, CONSTANTS, STEP} - {"velocity"}  # which has two engines
ENGINES = len(NAMES)


@pytest.fixture
def bundle(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "toy"))


@pytest.fixture
def machine() -> Iterator[Machine]:
    with installed(VERSIONS[-1]) as machine:
        yield machine
        assert machine.faults() == []


def header(plan: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(plan.read_bytes().split(b"\0")[1])
    return content


def test_a_folder_is_named_after_gpu_and_version(bundle: Path, machine: Machine) -> None:
    folder, engines = build_engines(bundle, ONE, FRAMES)
    assert folder == bundle / "engines" / "nvidia-double-1-sm90-trt11.4.0.106"
    assert EngineSet.read(folder) == engines
    assert set(engines.engines) == NAMES
    assert len(list(folder.glob("*.plan"))) == ENGINES
    assert {path.suffix for path in folder.iterdir()} == {".plan", ".cache", ".json"}
    assert engines.activation_bytes == max(header(plan)["scratch"] for plan in folder.glob("*.plan"))


def test_nothing_is_built_twice(bundle: Path, machine: Machine) -> None:
    folder, engines = build_engines(bundle, ONE, FRAMES)
    assert machine.trt.builds == ENGINES
    content = {path: path.read_bytes() for path in folder.iterdir()}
    assert build_engines(bundle, ONE, FRAMES) == (folder, engines)
    assert machine.trt.builds == ENGINES
    assert {path: path.read_bytes() for path in folder.iterdir()} == content


def test_what_changed_is_built_again_and_the_rest_is_not(bundle: Path, machine: Machine) -> None:
    folder, before = build_engines(bundle, ONE, FRAMES)
    path = bundle / "vocode.onnx"
    model = onnx.load(path)
    model.doc_string = "another graph"
    onnx.save(model, path)
    content = json.loads((bundle / "manifest.json").read_text())
    entry = FileEntry.of(path)
    content["graphs"]["vocode"]["files"] = [
        {"name": entry.name, "bytes": entry.bytes, "sha256": entry.sha256}
    ]
    (bundle / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(OptionError, match="built from another vocode"):
        Pipeline.load(bundle, "tensorrt")
    _, after = build_engines(bundle, ONE, FRAMES)
    assert machine.trt.builds == ENGINES + 1
    assert {name for name in NAMES if after.engines[name] != before.engines[name]} == {"vocode"}
    assert len(list(folder.glob("*.plan"))) == ENGINES, "the stale plan is gone"


@pytest.mark.parametrize(
    "settings", [{"level": 5}, {"workspace": 1 << 30}, {"batch": Range(1, 2, 4)}, {"driver": 14000}]
)
def test_other_settings_are_other_engines(
    bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    build_engines(bundle, ONE, FRAMES)
    settings = {"batch": ONE, "frames": FRAMES} | settings
    driver = settings.pop("driver", None)
    if driver is not None:
        monkeypatch.setattr(type(machine.cuda), "cudaDriverGetVersion", lambda self: driver)
    _, engines = build_engines(bundle, **settings)
    # velocity_time has no batch
    assert machine.trt.builds in (2 * ENGINES, 2 * ENGINES - 1)
    assert engines.batch == settings["batch"]


def test_fixed_sizes_are_in_the_network_and_ranges_in_a_profile(bundle: Path, machine: Machine) -> None:
    folder, engines = build_engines(bundle, Range(1, 2, 4), FRAMES)
    shapes = {name: header(folder / entry.plan.name)["shapes"] for name, entry in engines.engines.items()}
    assert shapes["vocode"] == {"log_mel": [[1, 64, 64], [2, 64, 64], [4, 64, 64]]}
    assert shapes["encode_text"]["input_ids"] == [[1, 50], [1, 50], [4, 50]]
    assert shapes["velocity_time"]["t"][1] == [MODEL.default_steps]
    folder, engines = build_engines(bundle, ONE, FRAMES)
    plan = (folder / engines.engines["vocode"].plan.name).read_bytes()
    (value,) = onnx.load_from_string(plan.split(b"\0", 2)[2]).graph.input
    assert [axis.dim_value for axis in value.type.tensor_type.shape.dim] == [1, 64, 64]


def test_tf32_is_off_where_float32_is_the_promise(bundle: Path, machine: Machine) -> None:
    folder, engines = build_engines(bundle, ONE, FRAMES)
    assert all(header(plan)["flags"] == [] for plan in folder.glob("*.plan"))
    assert engines.settings["tf32"] == "off"


def test_a_build_that_stops_goes_on_where_it_stopped(bundle: Path, machine: Machine) -> None:
    machine.trt.unsupported = {"Tanh"}  # only in the vocoder, the last graph of the contract
    with pytest.raises(EngineError, match=r"cannot read graph vocode: no importer for Tanh \(node , Tanh\)"):
        build_engines(bundle, ONE, FRAMES)
    built = machine.trt.builds
    with pytest.raises(OptionError, match="built from another vocode"):
        Pipeline.load(bundle, "tensorrt")
    machine.trt.unsupported = set()
    build_engines(bundle, ONE, FRAMES)
    assert machine.trt.builds == ENGINES and built == ENGINES - 1
    assert not list(bundle.rglob(".*")), "no temporary files"


def test_the_timing_cache_grows_and_a_foreign_one_is_replaced(bundle: Path, machine: Machine) -> None:
    folder, _ = build_engines(bundle, ONE, FRAMES)
    cache = read_checked(folder / TIMING_CACHE)
    assert cache is not None and cache.startswith(b"11.4") and b"vocode" in cache
    write_checked(folder / TIMING_CACHE, b"of another version")
    build_engines(bundle, ONE, FRAMES, level=4)
    cache = read_checked(folder / TIMING_CACHE)
    assert cache is not None and cache.startswith(b"11.4")


@pytest.mark.parametrize(
    ("batch", "frames", "message"),
    [
        (Range(2, 1, 2), FRAMES, "--batch must be N or MIN:OPT:MAX in order"),
        (Range(0, 1, 2), FRAMES, "--batch must be"),
        (ONE, Range(40, 40, 40), "--frames must be multiples of 32"),
    ],
)
def test_impossible_shapes_are_refused(
    bundle: Path, machine: Machine, batch: Range, frames: Range, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        build_engines(bundle, batch, frames)
    assert machine.trt.builds == 0


def test_engines_are_verified_like_every_export(bundle: Path, machine: Machine) -> None:
    folder, engines = build_engines(bundle, Range(1, 2, 2), FRAMES)
    verified = verify_engines(bundle, folder, engines, normal(0, 12000)[:, ...])
    assert set(verified.stages) == set(verify.checks())
    for stage, entry in verified.stages.items():
        assert 0 <= (entry.error.relative or 0) <= entry.error.tolerance, stage
        assert entry.error.real_relative is not None
    assert EngineSet.read(folder) == verified
    _, again = build_engines(bundle, Range(1, 2, 2), FRAMES)
    assert again == verified, "what was measured stays while the engines do"


def test_engines_beyond_tolerance_are_removed(
    bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, engines = build_engines(bundle, ONE, FRAMES)
    monkeypatch.setitem(verify.TOLERANCE, "float32", -1.0)
    with pytest.raises(
        Exception, match=r"engines were removed: The exported log_mel differs .*of -1e\+00\.$"
    ):
        verify_engines(bundle, folder, engines, None)
    assert not (folder / SIDECAR).exists()
    with pytest.raises(OptionError, match="no engines"):
        Pipeline.load(bundle, "tensorrt")


# --- the command line


def test_a_bundle_gets_engines_without_its_checkpoint(
    bundle: Path,
    machine: Machine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soundfile.write(tmp_path / "mix.wav", 0.3 * np.sin(np.arange(30000) / 9), 16000)
    arguments = ("--tensorrt", f"--bundle={bundle}", f"--recording={tmp_path / 'mix.wav'}", "--batch=1:1:2")
    code, out, err = run_export(capsys, monkeypatch, *arguments)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:9]] == list(verify.checks())
    assert "12 engines for NVIDIA Double 1, TensorRT 11.4.0.106, batch 1:1:2, 64 frames" in out
    code, out, _ = run_export(capsys, monkeypatch, *arguments, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["machine"]["gpu"] == "NVIDIA Double 1"
    assert answer["stages"]["chain"]["error"]["real_relative"] < 1e-5
    assert machine.trt.builds == ENGINES


def test_by_default_a_query_and_its_complement_fit_into_the_loop(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = replace(MODEL, default_kind="masked", complement="all but {query}")
    bundle = write_toy_bundle(tmp_path / "masked", model=masked)
    code, out, _ = run_export(capsys, monkeypatch, "--tensorrt", f"--bundle={bundle}", "--json")
    answer = json.loads(out)
    assert code == 0 and set(answer["stages"]) == set(verify.checks()), "verified at one row and at two"
    folder, engines = build_engines(bundle, ONE, FRAMES, loop_batch=Range(1, 2, 2))
    assert machine.trt.builds == ENGINES, "that is the default"
    profiles = {
        name: [shape[0] for shape in next(iter(header(folder / entry.plan.name)["shapes"].values()))]
        for name, entry in engines.engines.items()
    }
    assert profiles.pop("velocity_time")[0] == 1
    assert {name for name, rows in profiles.items() if rows == [1, 2, 2]} == {
        *(CONSTANTS, STEP, "guide", "velocity_text", "decode_latent")
    }
    assert {name for name, rows in profiles.items() if rows == [1, 1, 1]} == {
        *("log_mel", "encode_mixture", "posterior")
    }
    code, out, _ = run_export(capsys, monkeypatch, "--tensorrt", f"--bundle={bundle}")
    assert code == 0 and "batch 1 (1:2:2 in the loop), 64 frames" in out


def test_misuse_is_one_sentence(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run_export(capsys, monkeypatch, f"--bundle={bundle}")
    assert code == 2 and "give it with --tensorrt alone" in err
    code, _, err = run_export(capsys, monkeypatch, "--tensorrt", f"--bundle={bundle}")
    assert code == 2 and "cannot be built here: tensorrt is not installed" in err
    assert len(err.splitlines()) == 1
    code, _, err = run_export(capsys, monkeypatch, "--tensorrt", "--batch=1:2")
    assert code == 2 and "neither N nor MIN:OPT:MAX" in err


def test_a_damaged_set_is_built_again(bundle: Path, machine: Machine) -> None:
    folder, engines = build_engines(bundle, ONE, FRAMES)
    (folder / SIDECAR).write_text("{", encoding="utf-8")
    with pytest.raises(BackendError, match="is damaged"):
        Pipeline.load(bundle, "tensorrt")
    assert build_engines(bundle, ONE, FRAMES) == (folder, engines)
    assert Manifest.read(bundle).name == "toy"
