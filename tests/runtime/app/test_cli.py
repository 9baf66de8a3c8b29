"""`flowsep-run` as a user meets it: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.runtime.command import SOURCE, Run, in_process, refused

pytestmark = pytest.mark.usefixtures("no_litter")


@pytest.mark.slow
def test_the_command_from_a_shell(mixture: Path, toy_bundle: Path) -> None:
    code, out, err = in_process(mixture, "dog barking", "--bundle", toy_bundle, "--steps", 2)
    assert (code, err) == (0, "")
    output = mixture.with_name("mix.dog-barking.wav")
    assert out.startswith(f"{output}: ")
    assert "solve" in out and "real-time factor" in out and out.count("\n") == 1
    assert ": generated, 1.00 s, 2 channels at 22050 Hz; " in out
    found, given = soundfile.info(output), soundfile.info(mixture)
    for field in ("frames", "samplerate", "channels", "format", "subtype"):
        assert getattr(found, field) == getattr(given, field)


def test_every_output_and_the_answer_as_json(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    target, residual, copy = tmp_path / "t.flac", tmp_path / "r.wav", tmp_path / "m.aiff"
    options = [
        "-o",
        target,
        "--residual",
        residual,
        "--save-mixture",
        copy,
        "--steps",
        2,
        "--seed",
        5,
        "--backend",
        "cpu",
        "--threads",
        1,
        "--json",
    ]
    code, out, err = run(mixture, "rain", "--bundle", toy_bundle, *options)
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["output"], answer["residual"], answer["mixture"]) == (
        str(target),
        str(residual),
        str(copy),
    )
    assert (answer["query"], answer["steps"], answer["solver"], answer["seed"]) == ("rain", 2, "euler", 5)
    assert (answer["sample_rate"], answer["channels"], answer["seconds"]) == (22050, 2, 1.0)
    assert (answer["backend"], answer["bundle"], answer["warnings"]) == ("cpu", "toy", [])
    assert (answer["description"], answer["precision"]) == ("cpu, float32, 1 thread", "exact")
    assert answer["real_time_factor"] > 0 and answer["timings"]["solve"] > 0
    assert soundfile.info(target).format == "FLAC"
    assert np.array_equal(soundfile.read(copy)[0], soundfile.read(mixture)[0])
    assert soundfile.info(residual).frames == 22050


def test_the_same_seed_writes_the_same_bytes(
    run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        assert run(mixture, "rain", "--bundle", toy_bundle, "-o", file, "--seed", seed)[0] == 0
    first, second, third = (file.read_bytes() for file in files)
    assert first == second != third


@pytest.mark.parametrize(
    "name", ["with space.wav", "new\nline.wav", "emoji 🐶.wav", "'quoted\".wav", "noextension", "\udcff.wav"]
)
def test_any_file_name_will_do(run: Run, mixture: Path, toy_bundle: Path, name: str) -> None:
    file = mixture.rename(mixture.with_name(name))
    code, out, _ = run(file, "a dog & a man", "--bundle", toy_bundle, "--steps", 1)
    assert code == 0 and out.count("\n") == 1
    assert file.with_name(f"{Path(name).stem}.a-dog-a-man.wav").is_file()


def test_no_such_file(run: Run, tmp_path: Path) -> None:
    refused(run(tmp_path / "no.wav", "rain"), "There is no file", tmp_path / "no.wav")


def test_a_folder_without_a_recording(run: Run, tmp_path: Path) -> None:
    refused(run(tmp_path, "rain"), "has no recordings in it")


@pytest.mark.parametrize(
    "content", [b"just words " * 100, b"RIFF\x24\x00\x00\x00WAVEfmt ", b"\x00" * 5000, b"ID3"]
)
@pytest.mark.parametrize("name", ["words.wav", "words.raw", "words.mp3", "words"])
def test_a_file_that_is_no_audio(run: Run, tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    refused(run(file, "rain"), file, "not audio")


def test_a_file_of_no_bytes(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "nothing.wav"
    file.touch()
    refused(run(file, "rain"), f"{file} is empty: it holds no bytes.")


def test_audio_without_samples(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "empty.wav"
    soundfile.write(file, np.zeros((0, 2)), 16000)
    refused(run(file, "rain"), file, "is empty")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_audio(run: Run, tmp_path: Path, value: float) -> None:
    file = tmp_path / "nan.wav"
    soundfile.write(file, np.array([0, 0.1, value, 0.2]), 16000, "FLOAT")
    refused(run(file, "rain"), file, "NaN")


def test_silence_is_answered_with_silence_and_a_warning(run: Run, toy_bundle: Path, tmp_path: Path) -> None:
    file, output, residual = tmp_path / "silent.wav", tmp_path / "out.wav", tmp_path / "rest.wav"
    soundfile.write(file, np.zeros(20000), 16000)
    code, out, err = run(file, "rain", "--bundle", toy_bundle, "-o", output, "--residual", residual, "--json")
    assert code == 0
    assert "warning: The audio is silent" in err and err.count("\n") == 1
    assert json.loads(out)["warnings"] == ["The audio is silent: so is the result."]
    assert soundfile.info(output).frames == 20000
    assert not soundfile.read(output)[0].any()


@pytest.mark.parametrize("query", ["", "   ", "\n"])
def test_an_empty_query(run: Run, mixture: Path, query: str) -> None:
    refused(run(mixture, query), "query is empty")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--steps", "0"], "--steps"),
        (["--steps", "-3"], "--steps"),
        (["--steps", "many"], "--steps"),
        (["--seed", "-1"], "--seed"),
        (["--threads", "0"], "--threads"),
        (["--solver", "guess"], "no solver 'guess'"),
        (["--precision", "rough"], "--precision"),
        (["--nonsense"], "--nonsense"),
        (["--backend", "abacus"], "no backend 'abacus'"),
    ],
)
def test_bad_options(run: Run, mixture: Path, toy_bundle: Path, options: list[str], word: str) -> None:
    refused(run(mixture, "rain", "--bundle", toy_bundle, *options), word)


def test_missing_arguments(run: Run) -> None:
    refused(run(), "MIXTURE")


def test_a_folder_that_is_no_bundle(run: Run, mixture: Path, tmp_path: Path) -> None:
    refused(run(mixture, "rain", "--bundle", tmp_path), tmp_path, "is not a bundle")
    refused(run(mixture, "rain", "--bundle", tmp_path / "nowhere"), "no bundle at")


def test_a_bundle_with_a_changed_file(run: Run, mixture: Path, own_bundle: Path) -> None:
    file = own_bundle / "velocity.onnx"
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    refused(run(mixture, "rain", "--bundle", own_bundle), file, "was changed")


def test_a_manifest_of_a_newer_format(run: Run, mixture: Path, own_bundle: Path) -> None:
    manifest = own_bundle / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    refused(run(mixture, "rain", "--bundle", own_bundle), "newer flowsep")


def test_a_failure_of_the_backend_is_one_sentence_and_code_1(
    run: Run, mixture: Path, own_bundle: Path
) -> None:
    from flowsep_runtime.bundle.manifest import FileEntry, Manifest

    broken = own_bundle / "vocode.onnx"
    broken.write_bytes(b"no onnx")
    manifest = Manifest.read  # the damage is in the manifest too: only the backend can see it
    content = json.loads((own_bundle / "manifest.json").read_text())
    entry = FileEntry.of(broken)
    content["graphs"]["vocode"]["files"] = [
        {"name": entry.name, "bytes": entry.bytes, "sha256": entry.sha256}
    ]
    (own_bundle / "manifest.json").write_text(json.dumps(content))
    manifest(own_bundle)
    refused(run(mixture, "rain", "--bundle", own_bundle), broken, "cannot load", code=1)
    assert not mixture.with_name("mix.rain.wav").exists()


def test_the_unexpected_is_one_sentence_and_a_traceback_only_on_demand(
    run: Run, mixture: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("flowsep_runtime.pipeline.Pipeline.vocode", fail)
    refused(run(mixture, "rain", "--bundle", toy_bundle), "ZeroDivisionError", "FLOWSEP_DEBUG=1", code=1)
    monkeypatch.setenv("FLOWSEP_DEBUG", "1")
    assert "Traceback" in run(mixture, "rain", "--bundle", toy_bundle)[2]


def test_a_full_disk_leaves_nothing(mixture: Path, toy_bundle: Path, tmp_path: Path) -> None:
    def limit() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    output = tmp_path / "out.wav"
    answer = in_process(mixture, "rain", "--bundle", toy_bundle, "-o", output, preexec_fn=limit)
    refused(answer, output, "cannot be written", code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mix.wav"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_run_leaves_nothing(
    mixture: Path, toy_bundle: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The signal comes from a sitecustomize that sends it when the temporary files are being written."""
    hook = tmp_path / "hook" / "sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text(
        "import os, soundfile\n"
        "write = soundfile.SoundFile.write\n"
        "def interrupted(self, data):\n"
        f"    write(self, data); os.kill(os.getpid(), {int(number)})\n"
        "soundfile.SoundFile.write = interrupted\n"
    )
    path = os.pathsep.join((str(hook.parent), str(SOURCE)))
    found, out, err = in_process(mixture, "rain", "--bundle", toy_bundle, env={"PYTHONPATH": path})
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hook", "mix.wav"]


def test_a_progress_bar_only_on_a_terminal(mixture: Path, toy_bundle: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    arguments = [mixture, "rain", "--bundle", toy_bundle, "--steps", 2, "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flowsep_runtime.app.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=os.environ | {"PYTHONPATH": str(SOURCE), "TERM": "xterm"},
    )
    out, _ = process.communicate(timeout=120)
    os.close(follower)
    shown = b""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            block = os.read(leader, 4096)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.close(leader)
    assert process.returncode == 0
    assert b"separating" in shown and b"100%" in shown
    assert json.loads(out)["steps"] == 2


def test_the_closing_line_says_what_ran(run: Run, mixture: Path, toy_bundle: Path) -> None:
    options = ["--backend", "cpu", "--precision", "fast", "--threads", 2, "--steps", 1]
    code, out, err = run(mixture, "rain", "--bundle", toy_bundle, *options)
    assert (code, err) == (0, "")
    assert out.endswith("; cpu, float32, 2 threads\n")


def test_low_memory_gives_the_same_sound(run: Run, mixture: Path, toy_bundle: Path, tmp_path: Path) -> None:
    files = tmp_path / "usual.wav", tmp_path / "sparing.wav"
    for file, options in zip(files, ([], ["--low-memory"]), strict=True):
        assert run(mixture, "rain", "--bundle", toy_bundle, "-o", file, *options)[0] == 0
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("by", ["option", "variable"])
def test_without_the_cache_no_results_are_kept(
    run: Run, mixture: Path, toy_bundle: Path, own_cache: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--no-cache"] if by == "option" else []
    if by == "variable":
        monkeypatch.setenv("FLOWSEP_NO_CACHE", "1")
    assert run(mixture, "rain", "--bundle", toy_bundle, "--steps", 1, *options)[0] == 0
    # what was found out about the bundle's files is kept
    assert [path.name for path in own_cache.iterdir()] == ["graphs.cache"]


def test_the_backends_of_this_machine_are_listed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt.backend", "onnxruntime.cuda", "openvino.backend"):
        monkeypatch.setattr(f"flowsep_runtime.backends.{module}.find_spec", lambda name: None)
    code, out, err = run("--list-backends")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "tensorrt  not available; tensorrt is not installed, run: pip install 'flowsep-engine[tensorrt]'",
        "cuda      not available; onnxruntime is not installed, run: pip install 'flowsep-engine[gpu]'",
        "openvino  not available; openvino is not installed, run: pip install 'flowsep-engine[openvino]'",
        "cpu       available; exact is float32, fast is float32",
    ]
    code, out, err = run("--json", "--list-backends")
    assert (code, err) == (0, "")
    *missing, cpu = json.loads(out)
    assert [(found["name"], found["available"], found["precisions"]) for found in missing] == [
        (name, False, {}) for name in ("tensorrt", "cuda", "openvino")
    ]
    assert (cpu["available"], cpu["why_not"]) == (True, None)
    assert cpu["precisions"] == {"exact": "float32", "fast": "float32"}


@pytest.mark.slow
def test_prepare_leaves_nothing_to_compile(
    run: Run, toy_bundle: Path, mixture: Path, own_cache: Path
) -> None:
    code, out, err = run("--prepare", "--bundle", toy_bundle, "--backend", "openvino")
    assert (code, err) == (0, "")
    assert "is ready after" in out and ": openvino, float32" in out
    kept = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.blob")}
    assert kept
    assert run(mixture, "rain", "--bundle", toy_bundle, "--backend", "openvino")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.blob")} == kept


def test_help_and_version(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for option in (
        "--output",
        "--steps",
        "--seed",
        "--bundle",
        "--residual",
        "--save-mixture",
        "--json",
        "--force",
    ):
        assert option in out
    assert run("--version")[0] == 0
