"""A separation needs no PyTorch, no network, and not the other packages of this repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[2] / "runtime"

FORBIDDEN = ("torch", "transformers", "librosa", "onnx", "scipy", "flowsep_ref", "flowsep_export")

REFUSE = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN}:
            raise AssertionError("imports " + name)
sys.meta_path.insert(0, Refuse())
"""

SEPARATE = """
import socket
def refuse(*arguments, **options):
    raise AssertionError("opens a socket")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import numpy as np
from flowsep_runtime import Separator
audio = np.random.default_rng(0).uniform(-.5, .5, (44100, 2))
result = Separator.load(sys.argv[1]).separate(audio, 44100, "dog barking", steps=2)
assert result.target.any()
print("separated", "torch" in sys.modules)
"""

HELP = """
import flowsep_runtime
from flowsep_runtime.app import cli
try:
    cli.command.main(["--help"])
except SystemExit:
    pass
heavy = {"numpy", "onnxruntime", "openvino", "soxr", "soundfile", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
print("light")
"""


def python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REFUSE + script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_separation_imports_only_the_runtime(toy_bundle: Path) -> None:
    process = python(SEPARATE, toy_bundle)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "separated False\n"


def test_help_imports_nothing_heavy() -> None:
    process = python(HELP)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("light\n")


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_import_guard_refuses_a_forbidden_package(name: str) -> None:
    process = python(f"import {name}")
    assert process.returncode != 0
    assert f"imports {name}" in process.stderr


def test_every_public_name_is_there() -> None:
    import flowsep_runtime

    for name in flowsep_runtime.__all__:
        assert getattr(flowsep_runtime, name) is not None
    assert dir(flowsep_runtime) == sorted(flowsep_runtime.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = flowsep_runtime.nonsense
