"""`flowsep-train` on wrong input: one sentence, exit code 2."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


def run(scripts: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    script = scripts / "flowsep-train"
    return subprocess.run([script, *arguments], capture_output=True, text=True, check=False)


def test_help_names_the_parts(scripts: Path) -> None:
    answer = run(scripts, "fit", "--help")
    assert answer.returncode == 0
    assert "vae|vocoder|flow" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "decoder"], "'decoder' is not one of"),
        (["fit", "vae"], "Missing option '--sounds'"),
        (
            ["collect", "--work", "no", "--config", "CONFIG", "--tokenizer", "t", "--output", "o"],
            "no/vae/last",
        ),
        (
            ["fit", "vae", "--sounds", "no", "--captions", "CAPTIONS", "--config", "CONFIG", "--work", "w"],
            "no is no sound cache",
        ),
    ],
)
def test_wrong_calls(
    arguments: list[str],
    words: str,
    scripts: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    captions = tmp_path / "captions.tsv"
    captions.write_text("label\tcaption\tuse\ndog\tdog\ttrain\n")
    known = {"CONFIG": data / "configs" / "tiny.yaml", "CAPTIONS": captions}
    answer = run(scripts, *(known.get(argument, argument) for argument in arguments))
    assert answer.returncode == 2
    message = answer.stderr.splitlines()[-1]
    assert message.startswith("flowsep-train: ") and words in message
    assert "Traceback" not in answer.stderr
