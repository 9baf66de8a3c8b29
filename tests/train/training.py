"""A tiny set of sounds and the smallest model, for the tests of the trainings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowsep_ref import FlowSepConfig
from flowsep_train import loop
from flowsep_train.latents import LatentCache
from flowsep_train.parts import ModelParts
from flowsep_train.sounds import SoundBank

LABELS = ("tone", "noise", "clicks")
PHRASES = {label: [label, f"a {label}"] for label in LABELS}

#: The smallest sizes that the architecture allows, on clips of 1.28 s.
CONFIG = FlowSepConfig.from_dict(
    {
        "audio": {"duration": 1.28},
        "vae": {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1},
        "unet": {
            "model_channels": 32,
            "channel_mult": [1, 1],
            "attention_resolutions": [2],
            "num_res_blocks": 1,
            "context_dim": 32,
        },
        "vocoder": {"upsample_initial_channel": 32},
        "text": {
            "vocab_size": 384,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 32,
            "num_layers": 1,
            "num_heads": 2,
        },
    }
)


def write_sounds(folder: Path) -> Path:
    """A cache of three classes, half a second each, one of them with a held-out recording."""
    rng = np.random.default_rng(0)
    time = np.arange(8000) / 16000
    clicks = np.zeros(8000)
    clicks[::1600] = 1
    signals = [np.sin(2 * np.pi * 440 * time), rng.standard_normal(8000) / 4, clicks, np.sin(9000 * time)]
    audio = np.concatenate([(32000 * np.clip(signal, -1, 1)).astype(np.int16) for signal in signals])
    np.save(folder / "audio.npy", audio)
    rows = [*((label, "train") for label in LABELS), ("tone", "test")]
    entries = [
        {"label": label, "split": split, "start": 8000 * i, "length": 8000}
        for i, (label, split) in enumerate(rows)
    ]
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def run(steps: int, **settings: object) -> loop.Run:
    """A run that needs no other process, so that tests are quick."""
    return loop.Run(steps=steps, batch=2, workers=0, devices="1", checkpoint_every=1, **settings)  # type: ignore[arg-type]


def trainings(
    parts: ModelParts, bank: SoundBank, cache: Path, tokenizer: Path
) -> dict[str, Callable[[loop.Run], None]]:
    """The three long trainings by name."""

    def flow(run: loop.Run) -> None:
        loop.train_flow(parts, LatentCache(cache), tokenizer, PHRASES, run)

    return {
        "vae": lambda run: loop.train_vae(parts, bank, run),
        "vocoder": lambda run: loop.train_vocoder(parts, bank, run),
        "flow": flow,
    }
