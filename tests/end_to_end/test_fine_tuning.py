"""A checkpoint in the published layout is tuned, exported and run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.train.training import write_sounds

pytestmark = pytest.mark.slow

CAPTIONS = "label\tcaption\tuse\n" + "".join(f"{x}\ta {x}\ttrain\n" for x in ("tone", "noise", "clicks"))


def test_a_tuned_checkpoint_exports_and_runs(
    scripts: Path, tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    sounds = write_sounds(tmp_path)
    captions = tmp_path / "captions.tsv"
    captions.write_text(CAPTIONS)
    model, bundle, latents, mixture = (tmp_path / name for name in ("model", "bundle", "latents", "mix.wav"))
    tokenizer: list[str | Path] = ["--tokenizer", data / "tokenizer.json"]
    # short clips, for the sake of time: the sizes of the network are the checkpoint's
    sizes = tmp_path / "sizes.yaml"
    published = (data / "configs" / "tiny.yaml").read_text()
    sizes.write_text(published.replace("duration: 10.24", "duration: 1.28"))
    common: list[str | Path] = [
        "--work",
        tmp_path / "work",
        "--from",
        tiny_checkpoint,
        "--config",
        sizes,
    ]
    soundfile.write(mixture, np.random.default_rng(0).uniform(-0.5, 0.5, 16000), 16000)
    flow: list[str | Path] = [*common, "--captions", captions, "--latents", latents, *tokenizer]
    commands: list[list[str | Path]] = [
        ["flowsep-train", "latents", *common, "--sounds", sounds, "--output", latents, "--shards", "1"],
        ["flowsep-train", "fit", "flow", *flow, "--steps", "2", "--batch", "1", "--workers", "0"],
        ["flowsep-train", "collect", *common, *tokenizer, "--output", model, "--float32"],
        ["flowsep-export", "--checkpoint", model, "--output", bundle, "--steps", "2", "--no-verify"],
        ["flowsep-run", mixture, "a tone", "--bundle", bundle],
    ]
    for name, *arguments in commands:
        answer = subprocess.run([scripts / name, *arguments], capture_output=True, text=True, check=False)
        assert answer.returncode == 0, (name, arguments, answer.stderr)
    separated, rate = soundfile.read(tmp_path / "mix.a-tone.wav")
    assert rate == 16000 and len(separated) == 16000 and np.isfinite(separated).all()
    assert np.abs(separated).max() > 0
