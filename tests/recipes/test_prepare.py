"""Preparation of the cache that training maps, from a package on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from recipes.nano import RecipeError, packages, prepare
from recipes.nano.cache import Clip, read_cache, write_cache
from recipes.nano.example import BARKS_AT, SAMPLE_RATE, SECONDS, mixture
from recipes.nano.packages import fetch
from recipes.nano.prepare import main, recorded_clips, summary
from recipes.nano.signals import Samples
from recipes.nano.tables import Recording

BARK = Recording("dog barking", "game", "dog.wav", 0.5, 22050, "train", "CC0")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working folder with the package `game`, which holds half a second of `dog.wav`, already unpacked."""
    folder = tmp_path / "root" / "game"
    folder.mkdir(parents=True)
    soundfile.write(folder / "dog.wav", noise(0.5, 22050), 22050)
    return tmp_path


def noise(seconds: float, rate: int, seed: int = 0) -> Samples:
    """Noise of a moderate level."""
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * rate))).astype(np.float32)


def test_a_recording_on_disk_becomes_a_clip_of_the_cache(work: Path) -> None:
    entries = write_cache(work / "sounds", recorded_clips([BARK, BARK], work / "debs", work / "root"))
    audio, read = read_cache(work / "sounds")
    assert read == entries
    assert audio.dtype == np.int16
    assert [entry.start for entry in entries] == [0, entries[0].length]
    assert len(audio) == sum(entry.length for entry in entries)
    assert entries[0].seconds == pytest.approx(0.5, abs=0.01)
    assert (entries[0].source, entries[0].licence, entries[0].kind) == ("game!dog.wav", "CC0", "recording")
    np.testing.assert_array_equal(audio[: entries[0].length], audio[entries[1].start :])
    assert "dog barking" in summary(entries)


def test_another_version_of_a_recording_is_refused(work: Path) -> None:
    longer = Recording("dog barking", "game", "dog.wav", 0.8, 22050, "train", "CC0")
    with pytest.raises(RecipeError, match=r"game!dog\.wav is 0\.50 s at 22050 Hz, not the 0\.80 s"):
        list(recorded_clips([longer], work / "debs", work / "root"))


def test_a_cache_is_never_written_over(tmp_path: Path) -> None:
    clip = Clip("dog barking", "train", np.ones(10, np.float32), "a", "CC0")
    write_cache(tmp_path / "sounds", [clip])
    with pytest.raises(RecipeError, match="exists already"):
        write_cache(tmp_path / "sounds", [clip])


def test_an_interrupted_cache_leaves_no_folder(tmp_path: Path) -> None:
    def interrupted() -> object:
        yield Clip("dog barking", "train", np.ones(10, np.float32), "a", "CC0")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "sounds", interrupted())  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="no sound cache"):
        read_cache(tmp_path / "sounds")


def test_an_unpacked_package_is_not_fetched_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert fetch("game", work / "debs", work / "root") == work / "root" / "game"


def test_a_machine_without_apt_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(main, ["--work", str(tmp_path), "--no-extra", "--no-synthesise"])
    assert result.exit_code == 1
    assert "apt-get is not here" in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "sounds").exists()


def test_missing_tools_are_named_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "fetch", pytest.fail)
    monkeypatch.setattr(prepare, "fetch", pytest.fail)
    result = CliRunner().invoke(main, ["--work", str(tmp_path)])
    assert result.exit_code == 1
    assert "apt-get install" in result.output and "espeak-ng" in result.output


def test_the_example_is_two_equally_strong_sounds_that_sum_to_it() -> None:
    mix, dog, rain = mixture(noise(1.8, SAMPLE_RATE), noise(5.0, SAMPLE_RATE, seed=1))
    assert len(mix) == SECONDS * SAMPLE_RATE
    np.testing.assert_allclose(mix, dog + rain, atol=1e-6)
    assert np.mean(dog**2) == pytest.approx(np.mean(rain**2), rel=1e-3)
    assert np.abs(mix).max() == pytest.approx(0.89, abs=1e-3)
    before_first = round(BARKS_AT[0] * SAMPLE_RATE)
    assert not dog[:before_first].any()
    # The loop leaves no hole and no bump.
    levels = [np.std(part) for part in np.array_split(rain, 18)]
    assert max(levels) < 1.3 * min(levels)
