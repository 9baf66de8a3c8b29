"""Consoles of few letters, and processes without standard streams, are no reason to fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.runtime.command import COMMAND, SOURCE, in_process, refused

pytestmark = pytest.mark.slow

unix = pytest.mark.skipif(sys.platform == "win32", reason="a shell closes the streams")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437:strict", "latin-1"])
def test_a_console_without_the_letters_of_a_name(mixture: Path, toy_bundle: Path, encoding: str) -> None:
    output = mixture.with_name("звук 音 🐕.wav")
    options = [mixture, "лай", "-o", output, "--bundle", toy_bundle, "--steps", 1]
    code, out, err = in_process(*options, env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert (code, err) == (0, "")
    # click writes UTF-8 to what claims to be ASCII
    assert ("\\u0437" in out or encoding == "ascii") and out.count("\n") == 1
    assert soundfile.info(output).frames == 22050
    # and what goes wrong is said
    code, out, err = in_process(*options, env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    refused((code, out, err), "exists already")


def shell(redirects: str, *arguments: object) -> int:
    line = " ".join(f"'{word}'" for word in (*COMMAND, *arguments))
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    return subprocess.run(["sh", "-c", f"{line} {redirects}"], env=environment, timeout=120).returncode


@unix
@pytest.mark.parametrize("redirects", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_without_standard_streams_the_work_is_done(mixture: Path, toy_bundle: Path, redirects: str) -> None:
    output = mixture.with_name("out.wav")
    residual = mixture.with_name("residual.wav")
    options = [mixture, "rain", "-o", output, "--residual", residual, "--bundle", toy_bundle, "--steps", 1]
    assert shell(redirects, *options) == 0
    for path in (output, residual):
        assert soundfile.info(path).frames == 22050
    assert shell(redirects, *options) == 2  # they exist already
    # a warning has nowhere to go, and nothing else is lost
    soundfile.write(mixture, [0.0] * 1000, 16000)
    assert shell(redirects, *options, "--force") == 0


@unix
def test_sound_for_a_standard_output_that_is_closed(mixture: Path, toy_bundle: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    assert shell(f">&- 2>{said}", mixture, "rain", "-o", "-", "--bundle", toy_bundle) == 2
    assert said.read_text() == "flowsep-run: Standard output is closed: give --output.\n"


def test_the_package_itself_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flowsep_runtime", "--version"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("flowsep-run, version ")


TERMINATED_IN_A_FINALISER = """
import os, signal, time
import click
from flowsep_runtime.app.console import run

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

@click.command()
def command():
    last = Last()
    del last
    time.sleep(20)
    print("went on")

run(command, "test", "no memory")
"""


@unix
def test_a_signal_that_arrives_in_a_finaliser_ends_the_process_all_the_same() -> None:
    code = [sys.executable, "-c", TERMINATED_IN_A_FINALISER]
    found = subprocess.run(
        code, capture_output=True, env=os.environ | {"PYTHONPATH": str(SOURCE)}, timeout=60
    )
    assert found.returncode == 143 and b"went on" not in found.stdout


INTERRUPTED_WHILE_A_THREAD_WORKS = """
import os, signal, sys, threading, time, warnings
import click
from flowsep_runtime.app.console import run

def load():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    warnings.warn("too late")
    print("still at work", file=sys.stderr, flush=True)
    time.sleep(20)

@click.command()
def command():
    threading.Thread(target=load).start()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)

run(command, "test", "no memory")
"""


@unix
def test_a_second_interrupt_ends_the_wait_for_threads() -> None:
    code = [sys.executable, "-c", INTERRUPTED_WHILE_A_THREAD_WORKS]
    with subprocess.Popen(
        code, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)}
    ) as process:
        assert process.stderr is not None
        said = ""
        while line := process.stderr.readline():
            said += line
            if line.startswith("still"):
                process.send_signal(signal.SIGINT)
        assert said.split("\n") == ["", "test: interrupted.", "still at work", ""]
        assert process.wait(60) == -signal.SIGINT
