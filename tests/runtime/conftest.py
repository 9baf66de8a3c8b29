from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from flowsep_runtime import Pipeline, Separator
from flowsep_runtime.app import cli
from tests.conftest import Ended
from tests.runtime.command import Run
from tests.runtime.toy_bundle import Reference, write_toy_bundle


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that must not be changed: a test double of a model (see `toy_bundle.py`)."""
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture
def own_bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the toy bundle, for tests that damage it."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def pipeline(toy_bundle: Path) -> Pipeline:
    return Pipeline.load(toy_bundle, "cpu", threads=1)


@pytest.fixture(scope="session")
def separator(pipeline: Pipeline) -> Separator:
    return Separator(pipeline)


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder in which this test is the first; the package's part of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flowsep"


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """A second of stereo noise at 22 050 Hz, 24 bit."""
    path = tmp_path / "mix.wav"
    samples = np.random.default_rng(1).uniform(-0.4, 0.4, (22050, 2))
    soundfile.write(path, samples, 22050, "PCM_24")
    return path


@pytest.fixture
def run(ended: Ended) -> Run:
    """The console script's entry point, called in this process."""
    return partial(ended, cli.main)
