"""Mixtures as latents on disk: what the flow is trained on.

Encoding a clip costs more than a training step on it, and the same clip teaches something new with
every other noise, time, piece and phrasing.  A cache is a folder of shards, each an array
`[clips, 4, 8, t, 16]` in half precision (the mixture's mean and deviation, the means of its two
sounds) beside a list of the classes.  It can grow while a training reads it, and is all that a
training elsewhere needs.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowsep_ref.mel import FrontEnd
from flowsep_ref.vae import VAE
from flowsep_train.mixtures import draw_mixture
from flowsep_train.sounds import SoundBank

SILENCE = "silence.npy"
SHARD = 32
"""Clips a shard: 8 MB at the published latent."""
ROWS = 4
Latents = NDArray[np.float16]


@dataclass(frozen=True)
class Piece:
    """A piece of a clip, unscaled: mixture latent and the targets, each `[8, n, 16]`, and their classes."""

    mixture: Tensor
    targets: list[Tensor]
    labels: list[str]


class Encoder:
    """Waveforms to posterior moments."""

    def __init__(self, front_end: FrontEnd, vae: VAE) -> None:
        self.front_end = front_end
        self.vae = vae.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, S]` to mean and deviation, each `[B, 8, t, 16]` float32, unscaled."""
        with torch.autocast(waveforms.device.type, torch.bfloat16):
            mean, logvar = self.vae.encode(self.front_end(waveforms))
        return mean.float(), torch.exp(0.5 * logvar.float())


def write_shard(
    folder: Path, number: int, bank: SoundBank, encoder: Encoder, samples: int, seed: int, clips: int = SHARD
) -> Path:
    """Draw, encode and store the clips of one shard; it appears whole or not at all.

    Args:
        folder: of the cache.
        number: of the shard; with `seed` it decides what is drawn.
        bank: recordings.
        encoder: of the trained autoencoder.
        samples: of a clip.
        seed: of the whole cache.
        clips: in the shard.
    """
    rng = np.random.default_rng([seed, number])
    rows, labels = [], []
    for _ in range(clips):
        item = draw_mixture(bank, samples, rng)
        waves = torch.from_numpy(np.stack([item.mixture, *item.sources]))
        # one at a time: three feature maps of a clip together no longer fit a CPU's cache
        moments = [encoder(wave[None]) for wave in waves]
        means = [mean[0] for mean, _ in moments]
        missing = [torch.zeros_like(means[0])] * (ROWS - 1 - len(means))
        row = [means[0], moments[0][1][0], *means[1:], *missing]
        rows.append(torch.stack(row).half().numpy())
        labels.append(list(item.labels))
    folder.mkdir(parents=True, exist_ok=True)
    name = f"shard-{number:05d}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        np.save(Path(scratch) / f"{name}.npy", np.stack(rows))
        (Path(scratch) / f"{name}.json").write_text(json.dumps(labels), encoding="utf-8")
        # the array last: a shard without it is not there
        for suffix in (".json", ".npy"):
            os.replace(Path(scratch) / (name + suffix), folder / (name + suffix))
    return folder / f"{name}.npy"


def write_cache(
    folder: Path,
    bank: SoundBank,
    encoder: Encoder,
    samples: int,
    shards: int,
    seed: int,
    written: Callable[[int], None] = lambda shards: None,
) -> None:
    """Write the shards of a cache that are not there yet, and the latent of silence.

    Args:
        folder: of the cache.
        bank: recordings.
        encoder: of the trained autoencoder.
        samples: of a clip.
        shards: number of shards that the cache shall have.
        seed: of what is drawn.
        written: told after each shard how many there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SILENCE).exists():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
            mean, _ = encoder(torch.zeros(1, samples))
            np.save(Path(scratch) / SILENCE, mean[0].numpy())
            os.replace(Path(scratch) / SILENCE, folder / SILENCE)
    for number in range(shards):
        if not (folder / f"shard-{number:05d}.npy").exists():
            write_shard(folder, number, bank, encoder, samples, seed)
        written(number + 1)


class LatentCache:
    """Random pieces of a cache.

    Raises:
        ValueError: the folder has no shard.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.shards: dict[str, tuple[Latents, list[list[str]]]] = {}
        self.refresh()
        if not self.shards:
            raise ValueError(f"{folder} has no latents: run flowsep-train latents first")
        self.silence = torch.from_numpy(np.load(self.folder / SILENCE))
        """Latent of a silent clip, unscaled `[8, t, 16]`."""

    def refresh(self) -> None:
        """Take in shards that were written since."""
        for path in sorted(self.folder.glob("shard-*.npy")):
            if path.stem not in self.shards:
                labels = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                self.shards[path.stem] = np.load(path, mmap_mode="r"), labels

    def scale_factor(self) -> float:
        """`scale_factor` of docs/model.md#vae: 1 / standard deviation of the first shard's targets."""
        array, labels = self.shards[min(self.shards)]
        targets = np.concatenate([row[2 : 2 + len(names)] for row, names in zip(array, labels, strict=True)])
        return float(1.0 / targets.astype(np.float32).std())

    def piece(self, share: int, multiple: int, rng: np.random.Generator) -> Piece:
        """A random piece of `1 / share` of a random clip, starting at a multiple of `multiple` frames.

        The mixture latent is a sample of its posterior, as in inference; a target is its mean.
        """
        shard = list(self.shards)[int(rng.integers(len(self.shards)))]
        array, labels = self.shards[shard]
        row = int(rng.integers(len(array)))
        clip = array[row]
        length = max(clip.shape[2] // share // multiple, 1) * multiple
        start = int(rng.integers((clip.shape[2] - length) // multiple + 1)) * multiple
        mean, std, *targets = torch.from_numpy(clip[:, :, start : start + length].astype(np.float32))
        noise = torch.from_numpy(rng.standard_normal(mean.shape, np.float32))
        return Piece(mean + std * noise, targets[: len(labels[row])], labels[row])
