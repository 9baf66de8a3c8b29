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

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float32]
EXAMPLE = Path(__file__).parents[2] / "examples" / "mix.wav"
SOUNDS = {"dog barking": "dog", "rain": "rain"}


def log_mel(pipeline: Pipeline, waveform: Floats) -> Floats:
    """Samples in a whole number of frame groups, cut to the shortest file."""
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


@pytest.fixture(scope="session")
def outputs(pipeline: Pipeline, scripts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Floats]:
    """The log-mel spectrogram of what `flowsep-run` makes of the mixture for each query."""
    folder = tmp_path_factory.mktemp("example")
    mixture = folder / "mix.wav"
    shutil.copyfile(EXAMPLE, mixture)
    mixed, mixed_rate = soundfile.read(mixture, dtype="float32")
    spectrograms = {}
    for query in SOUNDS:
        run = subprocess.run(
            [scripts / "flowsep-run", mixture, query, "--json"], capture_output=True, text=True, check=True
        )
        output = Path(json.loads(run.stdout)["output"])
        assert output == folder / f"mix.{query.replace(' ', '-')}.wav"
        target, rate = soundfile.read(output, dtype="float32")
        assert rate == mixed_rate and target.shape == mixed.shape
        waveform = soxr.resample(target, rate, 16000).astype(np.float32)
        spectrograms[query] = log_mel(pipeline, waveform)
    return spectrograms


@pytest.mark.parametrize("query", SOUNDS)
def test_the_query_steers_what_comes_out(
    query: str, outputs: dict[str, Floats], targets: dict[str, Floats]
) -> None:
    distances = {name: float(np.abs(outputs[query] - wanted).mean()) for name, wanted in targets.items()}
    # nearer to the sound that was asked for than to the other one
    assert min(distances, key=lambda name: distances[name]) == query, distances


def test_asking_for_a_sound_brings_the_output_nearer_to_it(
    outputs: dict[str, Floats], targets: dict[str, Floats]
) -> None:
    for query, wanted in targets.items():
        distances = {asked: float(np.abs(output - wanted).mean()) for asked, output in outputs.items()}
        assert min(distances, key=lambda asked: distances[asked]) == query, distances
