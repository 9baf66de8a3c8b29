from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowsep_export.tensorrt.engines import build_engines
from flowsep_runtime import Pipeline
from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.tensorrt.backend import TensorRt
from flowsep_runtime.device_pipeline import Clip
from flowsep_runtime.solvers import SOLVERS
from tests.gpu.doubles import VERSIONS, Machine, installed
from tests.runtime.toy_bundle import MODEL, WIDTH, write_toy_bundle

FRAMES = Range(MODEL.clip_frames, MODEL.clip_frames, MODEL.clip_frames)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle; must not be changed."""
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="session")
def on_cpu(toy: Path) -> Pipeline:
    """The reference for every other backend."""
    return Pipeline.load(toy, "cpu", threads=1)


@pytest.fixture(scope="session")
def built(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with engines for both versions of TensorRT; must not be changed."""
    bundle = Path(shutil.copytree(toy, tmp_path_factory.mktemp("engines") / "toy"))
    for version in VERSIONS:
        with installed(version) as machine:
            build_engines(bundle, Range(1, 1, 3), FRAMES)
            assert machine.faults() == []
    return bundle


@pytest.fixture(params=VERSIONS)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with installed(request.param) as machine:
        yield machine


@pytest.fixture
def pipeline(built: Path, machine: Machine) -> Iterator[Pipeline]:
    """A backend on the double; after every test nothing may be left unchecked or not freed."""
    pipeline = Pipeline.load(built, "tensorrt")
    yield pipeline
    assert isinstance(pipeline.backend, TensorRt)
    pipeline.backend.close()
    assert machine.faults() == []


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def clip(batch: int = 1, seed: int = 0) -> Clip:
    """A whole clip of noise with a query of five tokens."""
    latent = (1, 8, MODEL.clip_frames // 4, 16)
    mask = (np.arange(50) < 5).astype(np.float32)[None]
    return Clip(
        0.1 * normal(seed, batch, MODEL.clip_samples),
        normal(seed + 1, *latent),
        normal(seed + 2, *latent),
        normal(seed + 3, 1, 50, WIDTH),
        mask,
    )


def assert_clips_are_equal(pipeline: Pipeline, on_cpu: Pipeline, solver: str) -> None:
    """Check that clips are the CPU's, and that every stage and step is done and reported once."""
    steps = SOLVERS[solver].only_steps or 4
    stages: list[str] = []
    seen: list[tuple[int, int]] = []

    def stage(name: str) -> Any:
        stages.append(name)
        return nullcontext()

    for seed in (0, 10):
        given = clip(2, seed)
        found = pipeline.generate(given, steps, solver, lambda *done: seen.append(done), stage)
        assert np.allclose(found, on_cpu.generate(given, steps, solver), atol=1e-5)
    assert seen == 2 * [(step, steps) for step in range(1, steps + 1)]
    assert stages == 2 * ["log_mel", "encode_mixture", "solve", "decode_latent", "vocode"]
