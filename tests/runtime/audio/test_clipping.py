"""Samples beyond full scale are reported, and need not be lost."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flowsep_runtime import FlowSepWarning
from flowsep_runtime.audio.clipping import CLIP_MODES
from flowsep_runtime.audio.reading import AudioReader
from flowsep_runtime.audio.writing import AudioWriter, encoding_for
from tests.runtime.app.test_batch import piped
from tests.runtime.command import Run

RATE = 16000


def loud() -> Any:
    """Two channels that peak at 1.5, 100 samples of them beyond full scale."""
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, (200_000, 2)).astype(np.float32)
    samples[1000:150_000:1490, 1] = 1.5
    return samples


def written(
    tmp_path: Path, suffix: str, mode: Any, samples: Any, subtype: str = "PCM_16"
) -> tuple[Path, Any]:
    source, result = tmp_path / "a.wav", tmp_path / f"result{suffix}"
    soundfile.write(source, np.zeros((RATE, 2)), RATE, "PCM_16")
    with AudioReader(source) as reader:
        encoding = encoding_for(result, reader, mode)
    with AudioWriter(result, RATE, 2, encoding, clip_mode=mode) as writer:
        for first in range(0, len(samples), 70_000):
            writer.write(samples[first : first + 70_000])
    return result, soundfile.read(result, dtype="float32")[0]


def test_clipped_samples_are_counted_and_said(tmp_path: Path) -> None:
    with pytest.warns(
        FlowSepWarning, match=r"result.wav has 100 samples beyond full scale \(peak 1.50\)"
    ) as w:
        _, found = written(tmp_path, ".wav", "clamp", loud())
    assert len(w) == 1
    assert np.allclose(found, np.clip(loud(), -1, 1), atol=1e-4)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_rescaled_nothing_clips_and_proportions_stay(tmp_path: Path, suffix: str) -> None:
    with pytest.warns(FlowSepWarning, match="was made 3.5 dB quieter, so that nothing clips"):
        _, found = written(tmp_path, suffix, "rescale", loud())
    assert np.allclose(found * 1.5, loud(), atol=1e-4)


def test_in_floating_point_nothing_is_lost(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path, found = written(tmp_path, ".wav", "float", loud())
    assert soundfile.info(path).subtype == "FLOAT"
    assert np.array_equal(found, loud())


def test_a_container_without_floating_point_says_that_it_clips(tmp_path: Path) -> None:
    with pytest.warns(FlowSepWarning, match="which are clipped"):
        path, _ = written(tmp_path, ".flac", "float", loud())
    assert soundfile.info(path).subtype == "PCM_16"


@pytest.mark.parametrize("mode", CLIP_MODES)
def test_what_is_within_full_scale_is_left_as_it_is(tmp_path: Path, mode: Any) -> None:
    samples = loud() / 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, found = written(tmp_path, ".wav", mode, samples)
    assert np.allclose(found, samples, atol=1e-4)


def full_scale(path: Path) -> Path:
    samples = np.sign(np.random.default_rng(0).standard_normal((RATE, 1))) * 0.9999
    soundfile.write(path, samples, RATE)
    return path


def test_the_command_says_it_and_has_both_ways_out(run: Run, tmp_path: Path, toy_bundle: Path) -> None:
    mixture = full_scale(tmp_path / "mix.wav")
    options = (
        mixture,
        "rain",
        "--bundle",
        toy_bundle,
        "--steps",
        1,
        "--force",
        "--kind",
        "masked",
        "--output",
        tmp_path / "out.wav",
    )
    code, _, err = run(*options)
    assert code == 0 and "samples beyond full scale" in err and "the clip mode rescale or float" in err
    clipped = soundfile.read(tmp_path / "out.wav")[0]
    code, _, err = run(*options, "--clip-mode", "rescale")
    assert code == 0 and "dB quieter, so that nothing clips" in err
    rescaled = soundfile.read(tmp_path / "out.wav")[0]
    code, _, err = run(*options, "--clip-mode", "float")
    assert (code, err) == (0, "")
    whole = soundfile.read(tmp_path / "out.wav")[0]
    assert np.abs(whole).max() > 1 and np.allclose(clipped, np.clip(whole, -1, 1), atol=1e-4)
    assert np.allclose(rescaled * np.abs(whole).max(), whole, atol=1e-4)


def test_a_pipe_has_them_too(tmp_path: Path, toy_bundle: Path) -> None:
    audio = full_scale(tmp_path / "mix.wav").read_bytes()
    arguments = ("-", "rain", "--bundle", toy_bundle, "--steps", 1, "--clip-mode")
    found = {
        mode: soundfile.read(io.BytesIO(piped(*arguments, mode, audio=audio)[0]))[0] for mode in CLIP_MODES
    }
    peak = max(1.0, np.abs(found["float"]).max())
    assert np.allclose(found["rescale"] * peak, found["float"], atol=1e-4)
    assert np.allclose(found["clamp"], np.clip(found["float"], -1, 1), atol=1e-4)
