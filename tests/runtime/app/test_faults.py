"""The rows of the fault table (docs/faults.md): what a user may throw at `flowsep-run`, and its answer."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.runtime.command import COMMAND, SOURCE, Run, in_process, refused, started

RATE = 16000


@pytest.fixture
def separate(run: Run, toy_bundle: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs on samples as a file of a subtype; gives target and residual, read back."""

    def call(samples: Any, rate: int = RATE, subtype: str = "PCM_16", warning: str = "") -> Any:
        file, target, residual = tmp_path / "a.wav", tmp_path / "t.wav", tmp_path / "r.wav"
        soundfile.write(file, samples, rate, subtype)
        options = ["-o", target, "--residual", residual, "--bundle", toy_bundle, "--steps", 1, "--force"]
        code, _, err = run(file, "rain", *options)
        assert code == 0 and (warning in err if warning else err == "")
        given = soundfile.info(file)
        tracks = []
        for path in (target, residual):
            found = soundfile.info(path)
            for field in ("frames", "samplerate", "channels", "format", "subtype"):
                assert getattr(found, field) == getattr(given, field)
            tracks.append(soundfile.read(path, always_2d=True)[0])
            assert np.isfinite(tracks[-1]).all()
        return tracks

    return call


def noise(frames: int = RATE, channels: int = 1, level: float = 0.4) -> Any:
    return np.random.default_rng(0).uniform(-level, level, (frames, channels))


# The recording


def test_one_sample(separate: Callable[..., Any]) -> None:
    target, _ = separate(np.array([[0.5]]), warning="The audio is silent")
    assert target.shape == (1, 1)


@pytest.mark.parametrize("frames", [2, 3, 159, 161])
def test_a_few_samples(separate: Callable[..., Any], frames: int) -> None:
    assert separate(noise(frames))[0].shape == (frames, 1)


def test_eight_channels(separate: Callable[..., Any]) -> None:
    samples = noise(channels=8)
    samples[:, 5] = 0
    target, _ = separate(samples, subtype="PCM_24")
    heard = np.abs(target).max(axis=0) > 0
    assert heard.tolist() == [True] * 5 + [False] + [True] * 2


def test_192_khz(separate: Callable[..., Any]) -> None:
    target, _ = separate(noise(96_000, 2), rate=192_000)
    assert np.abs(target).max() > 0


def test_silence(separate: Callable[..., Any]) -> None:
    target, residual = separate(np.zeros((RATE, 2)), warning="The audio is silent: so is the result.")
    assert not target.any() and not residual.any()


def test_a_constant(separate: Callable[..., Any]) -> None:
    target, residual = separate(np.full((RATE, 1), 0.5), warning="The audio is silent")
    assert not target.any()
    assert np.allclose(residual, 0.5, atol=1e-4)


def test_sound_on_a_constant(separate: Callable[..., Any]) -> None:
    target, residual = separate(noise(level=0.1) + 0.5, subtype="FLOAT")
    assert np.abs(target.mean()) < 0.01
    assert residual.mean() == pytest.approx(0.5, abs=0.01)


def test_clipped(separate: Callable[..., Any]) -> None:
    target, _ = separate(np.clip(noise(level=8), -1, 1))
    assert np.abs(target).max() > 0


def test_far_beyond_full_scale(separate: Callable[..., Any]) -> None:
    quiet, _ = separate(noise(level=0.25), subtype="FLOAT")
    loud, _ = separate(noise(level=0.25) * 1024, subtype="FLOAT")
    assert np.allclose(loud / 1024, quiet, atol=1e-4)


@pytest.mark.parametrize("level", [1e-30, 1e-42])
def test_denormal(separate: Callable[..., Any], level: float) -> None:
    target, _ = separate(noise(level=level), subtype="FLOAT", warning="The audio is silent")
    assert not target.any()


def test_denormals_beside_sound(separate: Callable[..., Any]) -> None:
    samples = noise(channels=2)
    samples[:, 1] *= 1e-40
    samples[4000:9000, 0] *= 1e-41
    target, _ = separate(samples, subtype="FLOAT")
    assert np.abs(target[:, 0]).max() > 0 and not target[:, 1].any()


def test_a_double_beyond_float(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    soundfile.write(file, np.array([0.1, 1e300]), RATE, "DOUBLE")
    refused(run(file, "rain"), file, "NaN or infinite samples, the first at 0.000 s")


def test_a_header_of_4_gb(run: Run, toy_bundle: Path, tmp_path: Path) -> None:
    """A header as ffmpeg writes it into a pipe, where it cannot return to it."""
    audio = io.BytesIO()
    soundfile.write(audio, noise(5000), RATE, "PCM_16", format="WAV")
    content = bytearray(audio.getvalue())
    for place in (4, content.index(b"data") + 4):
        content[place : place + 4] = b"\xff" * 4
    file = tmp_path / "a.wav"
    file.write_bytes(content)
    code, _, err = run(file, "rain", "--bundle", toy_bundle, "--steps", 1)
    assert (code, err) == (0, "")
    assert soundfile.info(tmp_path / "a.rain.wav").frames == 5000


def test_a_truncated_mp3_is_separated_as_far_as_it_goes(toy_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.mp3"
    soundfile.write(file, noise(3 * RATE), RATE)
    os.truncate(file, file.stat().st_size // 2)
    code, _, err = in_process(file, "rain", "--bundle", toy_bundle, "--steps", 1)
    assert code == 0
    assert f"flowsep-run: warning: {file} ends early: its header promises 3.00 s" in err
    assert 0 < soundfile.info(tmp_path / "a.rain.mp3").frames < 3 * RATE


def test_a_damaged_flac(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.flac"
    soundfile.write(file, noise(3 * RATE), RATE)
    os.truncate(file, file.stat().st_size // 2)
    refused(run(file, "rain"), file, "is damaged after 1.")


# Names and queries


def test_a_name_that_begins_with_a_dash(
    run: Run, mixture: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mixture.parent)
    mixture.rename(mixture.with_name("-o.wav"))
    assert run("--bundle", toy_bundle, "--steps", 1, "--", "-o.wav", "rain")[0] == 0
    assert mixture.with_name("-o.rain.wav").is_file()


QUERIES = {
    "10 000 characters": "dog barking " * 833,
    "one word of 10 000 letters": "x" * 10_000,
    "Chinese": "狗叫声",
    "Arabic": "نباح الكلب",
    "emoji": "🐶🔊",
    "combining marks": "e\u0301" * 50,
    "right to left marks": "\u202edog\u202c",
    "escape sequences": "\x1b[31mdog\x1b[0m\x07",
    "lines": "dog\nbarking\r\n\tloudly",
    "formats": "%s {0} ${HOME} $(id) `id` ; rm -rf *",
    "a path": "../../etc/passwd",
}


@pytest.mark.parametrize("name", QUERIES)
def test_any_query_is_read(run: Run, mixture: Path, toy_bundle: Path, name: str) -> None:
    code, out, err = run(mixture, QUERIES[name], "--bundle", toy_bundle, "--steps", 1)
    assert code == 0
    assert (out + err).replace("\n", "").isprintable()
    (output,) = [
        path for path in mixture.parent.iterdir() if path.name.startswith("mix.") and path != mixture
    ]
    assert soundfile.info(output).frames == 22050
    assert ("is cut" in err) == (name == "10 000 characters")


def test_a_query_of_broken_characters(run: Run, mixture: Path, toy_bundle: Path) -> None:
    refused(run(mixture, "dog \udcff", "--bundle", toy_bundle), "is not valid Unicode text")


# Disks and interruptions


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_full_disk(mixture: Path, toy_bundle: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out.{suffix}"
    answer = in_process(mixture, "rain", "--bundle", toy_bundle, "-o", output, preexec_fn=no_room)
    refused(answer, output, "is the disk full?", code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mix.wav"]


def no_room() -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))


def test_no_room_for_a_pipe(mixture: Path, toy_bundle: Path) -> None:
    with mixture.open("rb") as audio:
        answer = in_process("-", "rain", "--bundle", toy_bundle, stdin=audio, preexec_fn=no_room)
    refused(answer, "standard input does not fit into", "set TMPDIR", code=1)


def test_a_full_standard_output(mixture: Path, toy_bundle: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, str(mixture), "rain", "-o", "-", "--bundle", str(toy_bundle)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            timeout=120,
        )
    refused((done.returncode, "", done.stderr), "Standard output cannot be written: No space left", code=1)


def test_a_device_as_output(run: Run, mixture: Path, tmp_path: Path) -> None:
    link = tmp_path / "full.wav"
    link.symlink_to("/dev/full")
    refused(run(mixture, "rain", "-o", link), "is not a regular file")


@pytest.mark.parametrize("folder", ["/proc", "/sys"])
def test_a_read_only_folder(run: Run, mixture: Path, folder: str) -> None:
    if not Path(folder).is_dir():
        pytest.skip(f"no {folder}")
    refused(run(mixture, "rain", "-o", f"{folder}/out.wav"), f"{folder} is not writable")
    refused(run(mixture, "--query", "rain", "--output-dir", f"{folder}/out"), f"{folder}/out cannot be made")


def hooked(folder: Path, action: str) -> dict[str, str]:
    """An environment in which every process does something when it has written a block of audio."""
    hook = folder / "hook" / "sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text(
        "import os, signal, time, pathlib, soundfile\n"
        "write = soundfile.SoundFile.write\n"
        "def hooked(self, data):\n"
        "    write(self, data)\n"
        f"    {action}\n"
        "soundfile.SoundFile.write = hooked\n"
    )
    return {"PYTHONPATH": os.pathsep.join((str(hook.parent), str(SOURCE)))}


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_under_the_final_name(
    mixture: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    environment = hooked(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    arguments = [mixture, "rain", "--bundle", toy_bundle, "--steps", 1]
    assert in_process(*arguments, env=environment)[0] == -signal.SIGKILL
    output = mixture.with_name("mix.rain.wav")
    assert not output.exists()
    (left,) = tmp_path.glob(".flowsep-*.tmp")
    # the next run is not in its way, and removes it when nobody can be writing it any more
    assert in_process(*arguments)[0] == 0 and output.is_file() and left.exists()
    os.utime(left, (time.time() - 100_000,) * 2)
    assert in_process(*arguments, "--force")[0] == 0 and not left.exists()


def test_an_interrupted_batch_keeps_what_is_done(mixture: Path, toy_bundle: Path, tmp_path: Path) -> None:
    shutil.copy(mixture, tmp_path / "b.wav")
    first, folder = tmp_path / "out" / "mix.rain.wav", tmp_path / "out"
    environment = hooked(
        tmp_path, f"pathlib.Path({str(first)!r}).exists() and os.kill(os.getpid(), signal.SIGINT)"
    )
    arguments = [mixture, tmp_path / "b.wav", "--query", "rain", "--output-dir", folder]
    code, _, err = in_process(*arguments, "--bundle", toy_bundle, "--steps", 1, env=environment)
    assert (code, err.strip()) == (130, "flowsep-run: interrupted.")
    assert list(folder.iterdir()) == [first]


def two_runs(mixture: Path, toy_bundle: Path, tmp_path: Path, *options: str) -> Iterator[tuple[int, str]]:
    """Two runs that write one file: each waits until the other has begun to write."""
    wait = (
        f"mine = pathlib.Path({str(tmp_path)!r}, 'begun-' + str(os.getpid())); mine.touch()\n"
        f"    while len(list(mine.parent.glob('begun-*'))) < 2: time.sleep(0.01)"
    )
    environment = hooked(tmp_path, wait)
    arguments = [mixture, "rain", "--bundle", toy_bundle, "--steps", 1, *options]
    processes = [started(*arguments, "--seed", seed, env=environment) for seed in (1, 2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        yield process.returncode, err


def test_two_runs_that_write_one_file(mixture: Path, toy_bundle: Path, tmp_path: Path) -> None:
    (first, second) = sorted(two_runs(mixture, toy_bundle, tmp_path))
    assert first == (0, "")
    assert second[0] == 1
    assert "mix.rain.wav was written by someone else meanwhile and stays" in second[1]
    assert soundfile.info(mixture.with_name("mix.rain.wav")).frames == 22050
    assert not list(tmp_path.glob(".*"))


def test_two_runs_that_may_overwrite(mixture: Path, toy_bundle: Path, tmp_path: Path) -> None:
    assert list(two_runs(mixture, toy_bundle, tmp_path, "--force")) == [(0, "")] * 2
    assert soundfile.info(mixture.with_name("mix.rain.wav")).frames == 22050
    assert not list(tmp_path.glob(".*"))


# Offline

#: A filter of system calls that ends the process when it asks for a socket, whoever in it does: Python, an
#: backend, a library. (Socket pairs within the process are another call.)
NO_SOCKETS = """
import ctypes, os, platform, struct, sys
if platform.system() != "Linux" or platform.machine() != "x86_64":
    sys.exit(77)
def instruction(code, jump_true, jump_false, value):
    return struct.pack("HBBI", code, jump_true, jump_false, value)
program = b"".join([
    instruction(0x20, 0, 0, 0),            # load the number of the call
    instruction(0x15, 0, 1, 41),           # socket?
    instruction(0x06, 0, 0, 0x80000000),   # end the process
    instruction(0x06, 0, 0, 0x7FFF0000),   # allow
])
buffer = ctypes.create_string_buffer(program)
libc = ctypes.CDLL(None, use_errno=True)
description = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, description, 0, 0):
    sys.exit(77)
"""
RUN_ALL = """
from pathlib import Path
from flowsep_runtime.app.cli import command
folder, bundle = Path(sys.argv[1]), sys.argv[2]
os.chdir(folder)
def run(*arguments):
    try:
        command.main([*map(str, arguments)], standalone_mode=False)
    except SystemExit as end:
        assert not end.code, arguments
common = ["--steps", 1, "--bundle", bundle]
run("--help")
run("--list-backends")
from importlib.util import find_spec
for backend in ("auto", "cpu", *(["openvino"] if find_spec("openvino") else [])):
    for precision in ("exact", "auto"):
        run("mix.wav", "rain", "-o", f"{backend}-{precision}.flac", "--backend", backend, "--precision",
            precision, *common)
run("mix.wav", "dog", "rain", "--output-dir", "out", "--low-memory", "--no-cache", "--json", *common)
run("mix.wav", "rain", "-o", "p.wav", "--residual", "r.wav", "--kind", "masked", *common)
if find_spec("matplotlib"):
    run("mix.wav", "rain", "-o", "q.wav", "--plot", "q.png", *common)
run("--demo", "--steps", 1)
import time
time.sleep(3)  # ONNX Runtime sends from a thread, a while after
assert not os.path.exists(os.path.expanduser("~/intel")), "a backend keeps an identity of the user"
print("all ran")
"""


@pytest.mark.slow
def test_nothing_opens_a_socket(mixture: Path, toy_bundle: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "HOME": str(mixture.parent), "CI": ""}
    del environment["ORT_DISABLE_TELEMETRY"]  # the tests' own
    process = subprocess.run(
        [sys.executable, "-c", NO_SOCKETS + RUN_ALL, str(mixture.parent), str(toy_bundle)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if process.returncode == 77:
        pytest.skip("this system has no such filter")
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("all ran\n")


def test_the_filter_of_sockets_works() -> None:
    process = subprocess.run([sys.executable, "-c", NO_SOCKETS + "import socket; socket.socket()"])
    assert process.returncode in (-signal.SIGSYS, 77)
