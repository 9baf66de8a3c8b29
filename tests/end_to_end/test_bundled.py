"""The bundled model on the example: one command separates two real sounds that it was not trained on."""

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

from flowsep_eval.metrics import si_sdr

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float32]
EXAMPLE = Path(__file__).parents[2] / "examples" / "mix.wav"
RATE = 16000
SOUNDS = {"dog barking": "dog", "rain": "rain"}


def read(path: Path) -> Floats:
    """A mono file at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32")
    resampled: Floats = soxr.resample(samples, rate, RATE).astype(np.float32)
    return resampled


@pytest.fixture(scope="session")
def stems(data: Path) -> dict[str, Floats]:
    """Each sound of the mixture, alone."""
    return {query: read(data / "example" / f"{name}.flac") for query, name in SOUNDS.items()}


@pytest.fixture(scope="session", params=SOUNDS)
def separated(
    request: pytest.FixtureRequest, scripts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Floats, Floats]:
    """A query, and the target and the residual that `flowsep-run` writes for it."""
    folder = tmp_path_factory.mktemp("example")
    mixture = folder / "mix.wav"
    shutil.copyfile(EXAMPLE, mixture)
    command = [scripts / "flowsep-run", mixture, request.param, "--residual", folder / "rest.wav", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    output = Path(json.loads(run.stdout)["output"])
    assert output == folder / f"mix.{request.param.replace(' ', '-')}.wav"
    mixed, rate = soundfile.read(mixture, dtype="float32")
    target, target_rate = soundfile.read(output, dtype="float32")
    residual, _ = soundfile.read(folder / "rest.wav", dtype="float32")
    assert target_rate == rate and target.shape == mixed.shape
    np.testing.assert_allclose(target + residual, mixed, atol=2e-4)  # three files of 16-bit samples
    return request.param, read(output), read(folder / "rest.wav")


def amplitudes(samples: Floats, stems: dict[str, Floats]) -> dict[str, float]:
    """The amplitude in dB with which each sound is heard in a waveform, by least squares."""
    length = min(len(samples), *map(len, stems.values()))
    columns = np.stack([stem[:length] for stem in stems.values()], axis=1)
    found, *_ = np.linalg.lstsq(columns, samples[:length], rcond=None)
    return dict(zip(stems, 20 * np.log10(np.abs(found) + 1e-9), strict=True))


def test_the_mixture_holds_both_sounds_in_full(stems: dict[str, Floats]) -> None:
    assert all(abs(level) < 0.1 for level in amplitudes(read(EXAMPLE), stems).values())


def test_the_target_is_the_sound_of_the_query(
    separated: tuple[str, Floats, Floats], stems: dict[str, Floats]
) -> None:
    query, target, _ = separated
    wanted, mixture = stems[query], read(EXAMPLE)
    length = min(len(target), len(wanted))
    gain = si_sdr(target[:length], wanted[:length]) - si_sdr(mixture[:length], wanted[:length])
    assert gain > 6, gain


def test_the_residual_has_lost_the_sound_of_the_query_and_nothing_else(
    separated: tuple[str, Floats, Floats], stems: dict[str, Floats]
) -> None:
    query, _, residual = separated
    levels = amplitudes(residual, stems)
    other = next(name for name in stems if name != query)
    assert levels[query] < -10 and levels[other] > -2, levels


def test_a_sound_that_the_model_does_not_know_is_said(scripts: Path, tmp_path: Path) -> None:
    command = [
        str(scripts / "flowsep-run"),
        str(EXAMPLE),
        "--backend",
        "cpu",
        "--output",
        str(tmp_path / "out.wav"),
    ]
    run = subprocess.run([*command, "a baby laughing"], capture_output=True, text=True, check=True)
    assert 'not trained on the words "baby", "laughing"' in run.stderr
    assert 'Hardly anything in the recording is like "a baby laughing"' in run.stderr
    known = [*command, "--force", "everything but a dog barking"]
    assert "warning" not in subprocess.run(known, capture_output=True, text=True, check=True).stderr
