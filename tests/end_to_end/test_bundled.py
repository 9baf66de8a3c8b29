"""The bundled model on the example that ships: the query decides which of two real sounds comes out."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr

from flowsep_runtime import Pipeline
from flowsep_runtime.separator import BUNDLED

Floats = npt.NDArray[np.float32]
EXAMPLE = Path(__file__).parents[2] / "examples" / "mix.wav"
SOUNDS = {"dog barking": "dog", "rain": "rain"}


def log_mel(pipeline: Pipeline, waveform: Floats) -> Floats:
    """Of a whole number of frame groups, cut to the shortest that all files have."""
    samples = 140_800
    assert len(waveform) >= samples
    mel: Floats = pipeline.log_mel(waveform[None, :samples])[0]
    return mel


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return Pipeline.load(BUNDLED)


@pytest.fixture(scope="session")
def targets(pipeline: Pipeline, data: Path) -> dict[str, Floats]:
    """The log-mel spectrogram of each sound of the mixture, alone."""
    return {
        query: log_mel(pipeline, soundfile.read(data / "example" / f"{name}.flac", dtype="float32")[0])
        for query, name in SOUNDS.items()
    }


@pytest.mark.parametrize("query", SOUNDS)
def test_the_query_steers_what_comes_out(
    query: str, pipeline: Pipeline, targets: dict[str, Floats], tmp_path: Path
) -> None:
    mixture = tmp_path / "mix.wav"
    shutil.copyfile(EXAMPLE, mixture)
    run = subprocess.run(
        ["flowsep-run", mixture, query, "--residual", tmp_path / "rest.wav", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(run.stdout)
    output = Path(report["output"])
    assert output == tmp_path / f"mix.{query.replace(' ', '-')}.wav"

    target, rate = soundfile.read(output, dtype="float32")
    mixed, mixed_rate = soundfile.read(mixture, dtype="float32")
    assert rate == mixed_rate and target.shape == mixed.shape
    waveform = soxr.resample(target, rate, 16000).astype(np.float32)
    distances = {
        name: float(np.abs(log_mel(pipeline, waveform) - wanted).mean()) for name, wanted in targets.items()
    }
    assert min(distances, key=lambda name: distances[name]) == query, distances
