"""Output files of flowsep-run: names, formats, what exists already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.runtime.command import Run, refused

pytestmark = pytest.mark.usefixtures("no_litter")


@pytest.mark.parametrize("name", ["mix.ogg", "mix.flac", "mix.FLAC", "mix.mp3", "mix.aiff"])
def test_the_result_is_in_the_mixtures_own_format(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path, name: str
) -> None:
    samples, rate = soundfile.read(mixture)
    file = tmp_path / name
    soundfile.write(file, samples, rate)
    assert run(file, "rain", "--bundle", toy_bundle, "--steps", 1)[0] == 0
    output = file.with_name(f"mix.rain{file.suffix}")
    assert soundfile.info(output).format == soundfile.info(file).format


@pytest.mark.parametrize("option", ["--output", "--residual", "--save-mixture"])
def test_an_output_folder_that_is_not_there(run: Run, mixture: Path, tmp_path: Path, option: str) -> None:
    refused(run(mixture, "rain", option, tmp_path / "no" / "out.wav"), "no folder", tmp_path / "no")


def test_an_output_folder_that_is_not_writable(run: Run, mixture: Path) -> None:
    refused(run(mixture, "rain", "-o", "/proc/out.wav"), "/proc is not writable")


@pytest.mark.parametrize("option", ["--output", "--residual", "--save-mixture"])
def test_an_output_that_exists_is_kept_without_force(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path, option: str
) -> None:
    file = tmp_path / "old.wav"
    file.write_text("precious")
    arguments = [mixture, "rain", "--bundle", toy_bundle, "--steps", 1, option, file]
    refused(run(*arguments), file, "exists already", "--force")
    assert file.read_text() == "precious"
    assert run(*arguments, "--force")[0] == 0
    assert soundfile.info(file).frames == 22050


def test_an_output_that_is_the_mixture(run: Run, mixture: Path, tmp_path: Path) -> None:
    before = mixture.read_bytes()
    link = tmp_path / "link.wav"
    link.hardlink_to(mixture)
    for path in (mixture, link, mixture.parent / "." / mixture.name):
        refused(run(mixture, "rain", "-o", path, "--force"), "is the mixture itself")
    assert mixture.read_bytes() == before


def test_an_output_that_is_a_folder(run: Run, mixture: Path, tmp_path: Path) -> None:
    (tmp_path / "out.wav").mkdir()
    refused(run(mixture, "rain", "-o", tmp_path / "out.wav"), "is a folder")


@pytest.mark.parametrize("name", ["out.txt", "out", "out.m4a", "out.raw"])
def test_an_extension_that_cannot_be_written(run: Run, mixture: Path, tmp_path: Path, name: str) -> None:
    refused(run(mixture, "rain", "-o", tmp_path / name), name, "extension", ".wav")


def test_a_format_that_does_not_take_the_rate(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "high.wav"
    soundfile.write(file, np.zeros((100, 2)), 96000)
    refused(run(file, "rain", "-o", tmp_path / "out.mp3"), "96000 Hz", "MP3")


def test_one_path_for_two_outputs(run: Run, mixture: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    refused(run(mixture, "rain", "-o", path, "--residual", tmp_path / "." / "out.wav"), "Two outputs")


def test_an_output_name_that_is_too_long(run: Run, mixture: Path, tmp_path: Path) -> None:
    refused(run(mixture, "rain", "-o", tmp_path / ("x" * 300 + ".wav")), "cannot be written")
