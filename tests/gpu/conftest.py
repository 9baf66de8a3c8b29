from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowsep_runtime import Pipeline
from flowsep_runtime.arrays import Floats
from flowsep_runtime.device_pipeline import Clip
from tests.runtime.toy_bundle import MODEL, WIDTH, write_toy_bundle


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle; must not be changed."""
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture(scope="session")
def on_cpu(toy: Path) -> Pipeline:
    """The reference for every other backend."""
    return Pipeline.load(toy, "cpu", threads=1)


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
