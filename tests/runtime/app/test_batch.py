"""Many recordings and queries in one run, pipes, the demo and pictures."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flowsep_runtime import Separator
from flowsep_runtime.app.demo import EXAMPLE
from flowsep_runtime.audio.reading import AudioReader
from flowsep_runtime.separation.streaming import Part, Parts
from tests.runtime.command import COMMAND, SOURCE, Run, refused
from tests.runtime.toy_bundle import MODEL, write_toy_bundle


@pytest.fixture(autouse=True)
def no_litter(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob(".*"))


@pytest.fixture
def several(mixture: Path) -> list[Path]:
    """Three recordings, the second of which is none."""
    names = ["a.wav", "b.wav", "c.wav"]
    files = [mixture.with_name(name) for name in names]
    mixture.rename(files[0])
    shutil.copy(files[0], files[2])
    files[1].write_text("no audio")
    return files


def piped(*arguments: object, audio: bytes, code: int = 0) -> tuple[bytes, str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=audio,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr.decode()


@pytest.mark.slow
def test_several_queries_write_a_file_each(run: Run, mixture: Path, toy_bundle: Path) -> None:
    code, out, err = run(mixture, "dog barking", "rain", "--bundle", toy_bundle, "--steps", 1)
    assert (code, err) == (0, "")
    files = [mixture.with_name(f"mix.{name}.wav") for name in ("dog-barking", "rain")]
    assert out.startswith(f"{files[0]}, {files[1]}: ") and out.count("\n") == 1
    assert all(soundfile.info(file).frames == 22050 for file in files)
    assert files[0].read_bytes() != files[1].read_bytes()


@pytest.mark.slow
def test_several_queries_give_what_each_gives_alone(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    run(mixture, "dog", "rain", "--bundle", toy_bundle, "--output-dir", tmp_path / "both")
    for query in ("dog", "rain"):
        alone = tmp_path / f"{query}.wav"
        assert run(mixture, query, "--bundle", toy_bundle, "-o", alone)[0] == 0
        together = soundfile.read(tmp_path / "both" / f"mix.{query}.wav")[0]
        assert np.allclose(together, soundfile.read(alone)[0], atol=1e-5)


def test_a_recording_that_fails_does_not_stop_the_others(
    run: Run, several: list[Path], toy_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "out"
    options = ["--query", "rain", "--output-dir", folder, "--bundle", toy_bundle, "--steps", 1]
    code, out, err = run(*several, *options)
    assert code == 1
    assert out.count("\n") == 2
    assert sorted(path.name for path in folder.iterdir()) == ["a.rain.wav", "c.rain.wav"]
    reason, summary = err.splitlines()
    assert reason.startswith(f"flowsep-run: {several[1]} is not audio that can be read: ")
    assert summary == "flowsep-run: 1 of 3 recordings failed."


@pytest.mark.slow
def test_running_again_does_only_what_is_missing(
    run: Run, several: list[Path], toy_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    options = ["--query", "rain", "--output-dir", folder, "--bundle", toy_bundle, "--steps", 1]
    run(several[0], *options)
    first = folder / "a.rain.wav"
    before = first.stat().st_mtime_ns
    code, out, err = run(several[0], several[2], *options, "--query", "dog")
    assert (code, err) == (0, "")
    assert first.stat().st_mtime_ns == before
    assert out.splitlines()[0] == f"{first}: done before; --force does it again"
    assert len(list(folder.iterdir())) == 4
    code, out, err = run(several[0], several[2], *options, "--query", "dog", "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 4 and all(answer["skipped"] for answer in answers)
    assert first.stat().st_mtime_ns == before
    assert run(several[0], *options, "--force")[0] == 0
    assert first.stat().st_mtime_ns != before


def test_a_second_run_over_everything_leaves_the_results_alone(
    run: Run, several: list[Path], toy_bundle: Path, tmp_path: Path
) -> None:
    several[1].unlink()
    options = ["--query", "rain", "--bundle", toy_bundle, "--steps", 1]
    for _ in range(2):
        assert run(*sorted(tmp_path.glob("*.wav")), *options)[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.wav")) == [
        "a.rain.wav",
        "a.wav",
        "c.rain.wav",
        "c.wav",
    ]


def test_an_unforeseen_error_in_one_recording_does_not_stop_the_others(
    run: Run, several: list[Path], toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowsep_runtime.app.file_runs import FileRun

    whole = FileRun.run

    def fail(self: FileRun, *arguments: Any) -> Any:
        if self.job.name.endswith("a.wav"):
            raise ZeroDivisionError("two\nlines")
        return whole(self, *arguments)

    monkeypatch.setattr(FileRun, "run", fail)
    options = ["--query", "rain", "--output-dir", tmp_path / "out", "--bundle", toy_bundle, "--steps", 1]
    code, _, err = run(several[0], several[2], *options)
    assert code == 1
    assert f"{several[0]}: Unexpected ZeroDivisionError (two lines)" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c.rain.wav"]


def test_a_warning_names_its_recording_among_several(
    run: Run, several: list[Path], toy_bundle: Path, tmp_path: Path
) -> None:
    soundfile.write(several[1], np.zeros(5000), 16000)
    code, _, err = run(*several, "--query", "rain", "--output-dir", tmp_path / "out", "--bundle", toy_bundle)
    assert (code, err) == (
        0,
        f"flowsep-run: warning: {several[1]}: The audio is silent: so is the result.\n",
    )


def test_a_bundle_that_cannot_be_loaded_stops_everything(
    run: Run, several: list[Path], tmp_path: Path
) -> None:
    options = ["--query", "rain", "--output-dir", tmp_path / "out", "--bundle", tmp_path / "none"]
    refused(run(*several, *options), "no bundle at")


def test_a_picture_is_of_one_result_and_a_file_beside_it_of_one_recording(run: Run, mixture: Path) -> None:
    refused(run(mixture, "dog", "rain", "--plot", "x.png"), "--plot shows one result")
    refused(run(mixture, "b.wav", "--query", "rain", "--residual", "x.wav"), "--residual names one file")


def test_stems_and_rest_are_the_mixture_also_when_one_of_them_was_there(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    rest = tmp_path / "rest.wav"
    options = ["dog", "rain", "--kind", "masked", "--residual", rest, "--bundle", toy_bundle]
    assert run(mixture, *options)[0] == 0
    stems = [mixture.with_name(f"mix.{name}.wav") for name in ("dog", "rain")]
    first = [soundfile.read(path)[0] for path in (*stems, rest)]
    assert all(np.abs(each).max() > 1e-3 for each in first)
    assert np.allclose(sum(first), soundfile.read(mixture)[0], atol=4 / 2**23)
    stems[1].unlink()
    rest.unlink()
    assert run(mixture, *options)[0] == 0
    again = [soundfile.read(path)[0] for path in (*stems, rest)]
    assert np.allclose(first, again, atol=2 / 2**23)


@pytest.mark.parametrize("complement", [None, "everything except {query}"])
@pytest.mark.parametrize("kind", ["masked", "generated"])
def test_what_is_removed_and_what_is_left_are_the_mixture(
    run: Run, mixture: Path, tmp_path: Path, kind: str, complement: str | None
) -> None:
    bundle = write_toy_bundle(tmp_path / "toy", model=replace(MODEL, complement=complement))
    options = ["--bundle", bundle, "--kind", kind]
    removed = tmp_path / "removed.wav"
    code, out, _ = run(mixture, "--remove", "rain", "--residual", removed, "--json", *options)
    answer = json.loads(out)
    assert code == 0 and (answer["query"], answer["removed"]) == ("rain", True)
    left = soundfile.read(mixture.with_name("mix.without-rain.wav"))[0]
    if kind == "generated" and complement is not None:
        assert run(mixture, "everything except rain", *options)[0] == 0
        expected = soundfile.read(mixture.with_name("mix.everything-except-rain.wav"))[0]
        assert np.array_equal(left, expected)
        return
    assert np.allclose(left + soundfile.read(removed)[0], soundfile.read(mixture)[0], atol=2 / 2**23)
    residual = tmp_path / "residual.wav"
    assert run(mixture, "rain", "--residual", residual, *options)[0] == 0
    assert np.allclose(left, soundfile.read(residual)[0], atol=2 / 2**23)


@pytest.mark.parametrize("kind", ["masked", "generated"])
def test_the_rest_is_written_though_the_result_is_there(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path, kind: str
) -> None:
    options = ["rain", "--output-dir", tmp_path / "out", "--bundle", toy_bundle, "--kind", kind]
    first, second = tmp_path / "first.wav", tmp_path / "second.wav"
    assert run(mixture, *options, "--residual", first)[0] == 0
    code, out, _ = run(mixture, *options, "--residual", second)
    assert code == 0 and "done before" in out and str(second) in out
    assert np.array_equal(soundfile.read(first)[0], soundfile.read(second)[0])
    assert run(mixture, *options, "--residual", second)[0] == 0


def test_a_sound_is_removed_from_several_recordings_and_not_asked_for_too(
    run: Run, several: list[Path], toy_bundle: Path, tmp_path: Path
) -> None:
    options = ["--remove", "rain", "--output-dir", tmp_path / "out", "--bundle", toy_bundle, "--steps", 1]
    assert run(several[0], several[2], *options)[0] == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.without-rain.wav", "c.without-rain.wav"]
    refused(run(several[0], "--query", "dog", *options), "--remove and --query")
    refused(run(several[0], "dog", *options), "--remove takes recordings alone, and 'dog' is no file")
    refused(run(several[0], "--remove", "dog", *options), "--remove takes one value")
    refused(run(several[0], "d" * 5000, *options), "is no file: leave it out")  # no OSError


def test_json_has_an_object_for_every_result(run: Run, mixture: Path, toy_bundle: Path) -> None:
    code, out, _ = run(mixture, "dog", "rain", "--bundle", toy_bundle, "--steps", 1, "--json", "--mono")
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 0
    assert (first["query"], second["query"]) == ("dog", "rain")
    assert first["input"] == second["input"] == str(mixture)
    assert (first["mono"], first["kind"], first["guidance"]) == (True, "generated", 1)
    assert first["peak_memory"] > 1 << 20
    assert first["real_time_factor"] > 0 and first["timings"]["solve"] > 0


def test_the_masked_kind_and_the_residual_are_the_mixture(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    target, residual = tmp_path / "t.wav", tmp_path / "r.wav"
    options = ["--kind", "masked", "-o", target, "--residual", residual, "--bundle", toy_bundle]
    assert run(mixture, "rain", *options)[0] == 0
    both = soundfile.read(target)[0] + soundfile.read(residual)[0]
    assert np.allclose(both, soundfile.read(mixture)[0], atol=2 / 2**23)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("WAV", "FLOAT")])
def test_a_pipe_gives_a_wav_with_the_recordings_length_and_subtype(
    mixture: Path, toy_bundle: Path, form: str, subtype: str
) -> None:
    samples, rate = soundfile.read(mixture)
    audio = io.BytesIO()
    soundfile.write(audio, samples, rate, subtype, format=form)
    out, err = piped("-", "rain", "--bundle", toy_bundle, "--steps", 1, audio=audio.getvalue())
    found = soundfile.info(io.BytesIO(out))
    assert (found.format, found.subtype, found.frames) == ("WAV", subtype, 22050)
    assert (found.samplerate, found.channels) == (rate, 2)
    assert err.startswith("standard output: ") and err.count("\n") == 1
    assert int.from_bytes(out[4:8], "little") == len(out) - 8


@pytest.mark.slow
def test_a_pipe_carries_the_bytes_that_a_file_gets(mixture: Path, toy_bundle: Path, tmp_path: Path) -> None:
    out, err = piped(mixture, "rain", "-o", "-", "--json", "--bundle", toy_bundle, audio=b"")
    file = tmp_path / "out.wav"
    piped("-", "rain", "-o", file, "--bundle", toy_bundle, audio=mixture.read_bytes())
    assert np.array_equal(soundfile.read(io.BytesIO(out))[0], soundfile.read(file)[0])
    assert json.loads(err)["output"] == "-"


@pytest.mark.slow
@pytest.mark.parametrize(("audio", "words"), [(b"", "is empty"), (b"no audio", "is not audio")])
def test_a_pipe_without_audio_is_refused(toy_bundle: Path, audio: bytes, words: str) -> None:
    out, err = piped("-", "rain", "--bundle", toy_bundle, audio=audio, code=2)
    assert out == b"" and err.startswith(f"flowsep-run: standard input {words}")


@pytest.mark.slow
def test_a_pipe_closed_by_its_reader_gives_no_traceback(mixture: Path, toy_bundle: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, str(mixture), "rain", "-o", "-", "--bundle", str(toy_bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=120) == 1
    assert err == "flowsep-run: Standard output cannot be written: Broken pipe.\n"


@pytest.mark.slow
def test_the_demo_writes_a_recording_and_its_sounds(
    run: Run, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("--demo", "--bundle", toy_bundle, "--steps", 1)
    assert (code, err) == (0, "")
    folder = tmp_path / "flowsep-demo"
    assert sorted(path.name for path in folder.iterdir()) == [
        "mix.dog-barking.wav",
        "mix.rain.wav",
        "mix.wav",
    ]
    code, out, err = run("--demo", "--bundle", toy_bundle, "--steps", 1)
    assert code == 0 and out.count("done before") == 2


def test_the_demos_recording_is_the_example() -> None:
    example = Path(__file__).parents[3] / "examples" / "mix.wav"
    assert np.array_equal(soundfile.read(str(EXAMPLE))[0], soundfile.read(str(example))[0])


@pytest.mark.slow
def test_a_picture_is_drawn_with_the_result(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "out.png"
    options = ["--bundle", toy_bundle, "--steps", 1, "--plot", picture]
    code, _, err = run(mixture, "a $dog_{ 狗 🐶", *options)
    assert (code, err) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused(run(mixture, "rain", *options), picture, "exists already")


def test_a_picture_needs_a_name_and_a_library(
    run: Run, mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(mixture, "rain", "--plot", tmp_path / "out.gif")
    refused(result, "out.gif is not the name of a picture", ".png")
    monkeypatch.setattr("flowsep_runtime.app.plot.find_spec", lambda name: None)
    refused(run(mixture, "rain", "--plot", tmp_path / "out.png"), "pip install 'flowsep-engine[plot]'")


def test_the_first_seconds_are_on_disk_before_the_last_are_computed(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def stream(self: Separator, *arguments: Any, **options: Any) -> Parts:
        def generate() -> Generator[Part, None, None]:
            start = 0
            for block in AudioReader(mixture).blocks(5000):
                yield Part(start, block, (block,), (block,))
                start += len(block)
                (temporary,) = tmp_path.glob(".flowsep-*.tmp")
                sizes.append(temporary.stat().st_size)
                assert not output.exists()

        return Parts(generate(), {})

    output = tmp_path / "out.wav"
    monkeypatch.setattr(Separator, "stream", stream)
    assert run(mixture, "rain", "-o", output, "--bundle", toy_bundle)[0] == 0
    assert len(sizes) == 5 and np.all(np.diff(sizes) > 0) and sizes[0] > 5000 * 6
    assert np.array_equal(soundfile.read(output)[0], soundfile.read(mixture)[0])


def test_tags_of_the_recording_are_those_of_the_result(run: Run, mixture: Path, toy_bundle: Path) -> None:
    samples, rate = soundfile.read(mixture)
    file = mixture.with_name("a.flac")
    with soundfile.SoundFile(str(file), "w", rate, 2, "PCM_24") as sound:
        sound.title = "Rain"
        sound.write(samples)
    assert run(file, "rain", "--bundle", toy_bundle, "--steps", 1)[0] == 0
    with soundfile.SoundFile(str(file.with_name("a.rain.flac"))) as sound:
        assert (sound.title, sound.subtype) == ("Rain", "PCM_24")
