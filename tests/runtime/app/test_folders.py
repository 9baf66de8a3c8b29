"""Folders as input, parts of recordings, and runs that are done again."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from flowsep_runtime import AudioError
from flowsep_runtime.app import file_runs
from flowsep_runtime.app.made import made_by
from flowsep_runtime.audio.reading import AudioReader, Span
from tests.runtime.command import Run, refused


@pytest.fixture
def tree(mixture: Path) -> Path:
    """A folder with a recording in it and one in a folder of it."""
    folder = mixture.parent / "in"
    (folder / "x").mkdir(parents=True)
    shutil.copy(mixture, folder / "a.wav")
    mixture.rename(folder / "x" / "a.wav")
    return folder


LEFT_OUT = (
    "flowsep-run: warning: Results of earlier runs are left out ({}): to separate them, name them alone.\n"
)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_separated_into_a_folder_of_the_same_shape(
    run: Run, tree: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, said, err = run(tree, "rain", "--output-dir", out, "--bundle", toy_bundle, "--steps", 1)
    assert (code, err, said.count("\n")) == (0, "", 2)
    assert files(out) == ["a.rain.wav", "x/a.rain.wav"]


def test_results_in_a_folder_are_no_recordings_the_second_time(
    run: Run, tree: Path, toy_bundle: Path
) -> None:
    options = ["--bundle", toy_bundle, "--steps", 1]
    assert run(tree, "rain", *options)[0] == 0
    code, _, err = run(tree, "dog", *options)
    assert code == 0
    assert err == LEFT_OUT.format(2)
    assert files(tree) == [f"{folder}a.{name}wav" for folder in ("", "x/") for name in ("dog.", "rain.", "")]
    # one that is named is a recording
    assert run(tree / "a.rain.wav", "dog", *options)[0] == 0


def test_results_that_a_pattern_finds_are_left_out_unless_it_finds_nothing_else(
    run: Run, mixture: Path, toy_bundle: Path
) -> None:
    folder = mixture.parent
    options = ["--bundle", toy_bundle, "--steps", 1, "--output-dir", folder]
    assert run(mixture, "rain", *options)[0] == 0
    code, out, err = run(*sorted(folder.glob("*.wav")), "--query", "dog", *options)
    assert (code, out.count("\n"), err) == (0, 1, LEFT_OUT.format(1))
    assert [path.name for path in sorted(folder.glob("*.wav"))] == ["mix.dog.wav", "mix.rain.wav", "mix.wav"]
    results = sorted(folder.glob("mix.*.wav"))
    code, out, err = run(*results, "--query", "bell", *options)
    assert (code, out.count("\n"), err) == (0, 2, "")


@pytest.mark.parametrize(
    "changed",
    [("--kind", "masked"), ("--seed", 1), ("--steps", 2), ("--start", 0.5), ("--clip-mode", "float")],
)
def test_a_result_of_other_options_is_not_called_done(
    run: Run, tree: Path, toy_bundle: Path, tmp_path: Path, changed: tuple[object, ...]
) -> None:
    options = ["rain", "--output-dir", tmp_path / "out", "--bundle", toy_bundle]
    assert run(tree, *options, "--kind", "generated", "--steps", 1)[0] == 0
    before = (tmp_path / "out" / "a.rain.wav").read_bytes()
    again = ["--kind", "generated", "--steps", 1, *changed]
    code, out, err = run(tree, *options, *again)
    assert (code, out) == (1, "")
    assert err.count("is there from a run with other options") == 2
    assert (tmp_path / "out" / "a.rain.wav").read_bytes() == before
    assert run(tree, *options, *again, "--force")[0] == 0
    code, out, _ = run(tree, *options, *again)
    assert code == 0 and out.count("done before") == 2


def test_masks_that_were_not_shared_with_the_other_queries_are_not_called_done(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    options = ["--output-dir", tmp_path / "out", "--bundle", toy_bundle, "--kind", "masked", "--steps", 1]
    assert run(mixture, "rain", *options)[0] == 0
    code, _, err = run(mixture, "rain", "dog", *options)
    assert (
        code == 1 and "is there from a run with fewer queries, and each sound depends on all of them: " in err
    )
    code, _, err = run(mixture, "rain", "dog", *options, "--seed", 1)
    assert code == 1 and "is there from a run with other options or queries" in err
    assert run(mixture, "rain", "dog", *options, "--force")[0] == 0
    code, out, _ = run(mixture, "dog", "rain", *options)
    assert code == 0 and out.count("done before") == 2


def test_one_result_is_done_before_if_its_mark_says_so(run: Run, mixture: Path, toy_bundle: Path) -> None:
    options = [mixture, "rain", "--bundle", toy_bundle, "--kind", "generated", "--steps", 1]
    result = mixture.with_name("mix.rain.wav")
    assert run(*options)[0] == 0
    before = result.read_bytes()
    assert run(*options) == (0, f"{result}: done before; --force does it again\n", "")
    refused(run(*options, "--seed", 1), "is there from a run with other options", code=1)
    # the name of its own may have been given to another recording's result
    refused(run(*options, "-o", result), "exists already")
    assert result.read_bytes() == before
    shutil.copy(mixture, result)
    refused(run(*options), "exists already")


def test_a_result_from_before_candidates_were_removed_is_done(
    run: Run, mixture: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [mixture, "rain", "--bundle", toy_bundle, "--steps", 1]
    with monkeypatch.context() as patch:
        patch.setattr(file_runs, "mark_of", partial(file_runs.mark_of, candidates=1))
        assert run(*options)[0] == 0
        former = made_by(mixture.with_name("mix.rain.wav"))
    assert "done before" in run(*options)[1]
    assert run(*options, "--force")[0] == 0
    assert former != made_by(mixture.with_name("mix.rain.wav"))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".aiff", ".caf", ".rf64"])
def test_a_result_bears_the_mark_of_its_options(
    run: Run, mixture: Path, toy_bundle: Path, suffix: str
) -> None:
    samples, _ = soundfile.read(mixture)
    soundfile.write(mixture, samples, 24000)
    output = mixture.with_name(f"out{suffix}")
    assert run(mixture, "rain", "-o", output, "--bundle", toy_bundle, "--steps", 1)[0] == 0
    mark = made_by(output)
    assert mark is not None and mark.startswith("flowsep-run generated ")
    assert made_by(mixture) is None


def test_a_part_of_a_recording_is_separated(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    part, whole = tmp_path / "part.wav", tmp_path / "whole.wav"
    samples, rate = soundfile.read(mixture)
    soundfile.write(whole, samples[5512:16537], rate, "PCM_24")
    options = ["rain", "--bundle", toy_bundle, "--steps", 1]
    assert run(mixture, *options, "--start", 0.25, "--duration", 0.5, "-o", part)[0] == 0
    assert run(whole, *options, "-o", tmp_path / "other.wav")[0] == 0
    assert np.array_equal(soundfile.read(part)[0], soundfile.read(tmp_path / "other.wav")[0])
    _, out, _ = run(mixture, *options, "--start", 0.25, "--duration", 0.5, "-o", part, "--force", "--json")
    assert (json.loads(out)["start"], json.loads(out)["seconds"]) == (0.25, 0.5)
    refused(run(mixture, *options, "--start", 1.5), "mix.wav is 1.00 s long: give a --start before its end")
    refused(run(mixture, *options, "--start", "nan"), "start must be a number")
    refused(run(mixture, *options, "--duration", 0), "--duration")


def test_a_part_that_goes_on_behind_the_end_ends_there(mixture: Path) -> None:
    with AudioReader(mixture, Span(0.75, 100)) as reader:
        assert reader.frames == 22050 - round(0.75 * 22050)
        read = np.concatenate(list(reader.blocks(1000)))
    assert np.array_equal(read, soundfile.read(mixture, dtype="float32")[0][-reader.frames :])


def test_a_part_may_span_recordings_that_were_joined(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 8000)).astype(np.float32)
    for number, each in enumerate(samples):
        soundfile.write(tmp_path / f"{number}.wav", each, 8000, "FLOAT")
    joined = tmp_path / "joined.wav"
    joined.write_bytes(b"".join((tmp_path / f"{number}.wav").read_bytes() for number in range(3)))
    with AudioReader(joined, Span(0.5, 2)) as reader:
        read = np.concatenate(list(reader.blocks(3000)))
    assert np.array_equal(read[:, 0], samples.reshape(-1)[4000:20000])


def test_what_is_wrong_outside_of_the_part_does_not_matter(tmp_path: Path) -> None:
    samples = np.zeros((3000, 1), np.float32)
    samples[[10, 2500]] = np.nan
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 1000, "FLOAT")
    with AudioReader(path, Span(0.5, 1.5)) as reader:
        assert reader.frames == 1500
    for span, place in ((Span(0.5), "2.500"), (Span(0, 1), "0.010")):
        with pytest.raises(AudioError, match=f"the first at {place} s"):
            AudioReader(path, span)
