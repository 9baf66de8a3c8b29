"""A checkpoint in the published layout is tuned, exported and run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from flowsep_ref import FlowSep
from flowsep_ref.checkpoint import published_name
from tests.train.training import CONFIG, write_sounds

pytestmark = pytest.mark.slow

CAPTIONS = "label\tcaption\tuse\n" + "".join(f"{x}\ta {x}\ttrain\n" for x in ("tone", "noise", "clicks"))


def test_a_tuned_checkpoint_exports_and_runs(scripts: Path, data: Path, tmp_path: Path) -> None:
    # of the smallest sizes, for the sake of time: of an export most is spent on the number of layers
    checkpoint, sizes = tmp_path / "published.ckpt", tmp_path / "sizes.yaml"
    torch.manual_seed(0)
    state = FlowSep(CONFIG).state_dict()
    torch.save({"state_dict": {published_name(key): value for key, value in state.items()}}, checkpoint)
    CONFIG.save(sizes)
    sounds = write_sounds(tmp_path)
    captions = tmp_path / "captions.tsv"
    captions.write_text(CAPTIONS)
    model, bundle, latents, mixture = (tmp_path / name for name in ("model", "bundle", "latents", "mix.wav"))
    tokenizer: list[str | Path] = ["--tokenizer", data / "tokenizer.json"]
    common: list[str | Path] = [
        "--work",
        tmp_path / "work",
        "--from",
        checkpoint,
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
