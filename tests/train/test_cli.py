"""`flowsep-train` on wrong input: one sentence, exit code 2."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import torch

from flowsep_train.cli import main
from tests.conftest import Ended
from tests.train.training import CONFIG, write_sounds

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "decoder"], "'decoder' is not one of"),
        (["fit", "vae"], "Missing option '--work'"),
        (["fit", "vae", "--work", "w"], "training the vae needs --sounds"),
        (["fit", "flow", "--work", "w", "--captions", "CAPTIONS"], "training the flow needs --tokenizer"),
        (["fit", "vocoder", "--work", "w", "--accumulate", "2"], "--accumulate is not for the vocoder"),
        (
            ["fit", "flow", "--work", "w", "--captions", "CAPTIONS", "--tokenizer", "t", "--latents", "no"],
            "no has no latents: run flowsep-train latents first",
        ),
        (["latents", "--work", "w", "--output", "o", "--from", "no"], "no"),
        (
            ["collect", "--work", "no", "--config", "CONFIG", "--tokenizer", "t", "--output", "o"],
            "no/text/last",
        ),
        (
            ["fit", "vae", "--sounds", "no", "--config", "CONFIG", "--work", "w"],
            "no does not exist; give a sound cache, a metadata file or a folder of recordings.",
        ),
    ],
)
def test_wrong_calls(
    arguments: list[str],
    words: str,
    ended: Ended,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    captions = tmp_path / "captions.tsv"
    captions.write_text("label\tcaption\tuse\ndog\tdog\ttrain\n")
    known = {"CONFIG": data / "configs" / "tiny.yaml", "CAPTIONS": captions}
    code, _, err = ended(main, *(known.get(argument, argument) for argument in arguments))
    assert code == 2
    message = err.splitlines()[-1]
    assert message.startswith("flowsep-train: ") and words in message
    assert "Traceback" not in err


def test_a_killed_command_resumes(scripts: Path, tmp_path: Path) -> None:
    """The whole command, killed without a chance to say goodbye."""
    sounds = write_sounds(tmp_path)
    CONFIG.save(tmp_path / "sizes.yaml")
    command: list[str | Path] = [
        scripts / "flowsep-train",
        "fit",
        "vae",
        "--sounds",
        sounds,
        "--work",
        tmp_path / "work",
    ]
    command += [
        "--config",
        tmp_path / "sizes.yaml",
        "--batch",
        "1",
        "--checkpoint-every",
        "1",
        "--threads",
        "1",
    ]
    command += ["--steps"]
    last = tmp_path / "work" / "vae" / "last.ckpt"
    with subprocess.Popen([*command, "100000"], stderr=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 120
        while not last.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        first.kill()
    done = torch.load(last, weights_only=False)["global_step"]
    assert 0 < done < 100000
    answer = subprocess.run([*command, str(done + 2)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert f"vae: {done + 2} of {done + 2}" in answer.stderr
    assert torch.load(last, weights_only=False)["global_step"] == done + 2
