"""Mixtures as latents on disk, the training data of the flow.

Encoding a clip costs more than a training step on it, and the same clip gives new examples with other noise,
times, pieces and phrasings. A cache is a folder of shards, each an array `[clips, 4, 8, t, 16]` in half
precision beside a list of the classes. The four rows of a clip are the mixture's mean and deviation, the mean
of its first sound, and the mean of everything else in it. A clip is one mixture, or several short ones in a
row: short ones teach more sounds an hour, whole ones what a long clip looks like. A cache can grow while a
training reads it, and is all that a training elsewhere needs.
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
from flowsep_train.parts import digest
from flowsep_train.sounds import SoundBank

SILENCE = "silence.npy"
#: Digest of the autoencoder that encoded a cache.
VAE_DIGEST = "vae.sha256"
#: Clips a shard: 8 MB at the published latent.
SHARD = 32
Latents = NDArray[np.float16]
#: Short mixtures in a row.
SECTIONS = 4
#: Share of clips that are one mixture.
WHOLE = 0.15
#: Number of attempts to draw a mixture that is long enough.
TRIES = 200
#: A short mixture lies at most this far below the published level, in dB.
QUIETER = 15.0


@dataclass(frozen=True)
class Piece:
    """A piece of a mixture as unscaled latents `[8, n, 16]`.

    Attributes:
        mixture: a sample of its posterior, as in inference.
        whole: the mean of the mixture's posterior.
        target: the mean of the first sound.
        rest: the mean of everything else; silence where there is nothing else.
        labels: the class of the target, then the classes of the rest.
    """

    mixture: Tensor
    whole: Tensor
    target: Tensor
    rest: Tensor
    labels: list[str]


class Encoder:
    """Waveforms to posterior moments."""

    def __init__(self, front_end: FrontEnd, vae: VAE) -> None:
        self.front_end = front_end
        # with the channels last a CPU encodes twice as many mixtures in an hour
        self.vae = vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

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
        waves, names = draw_clip(bank, samples, 1 if rng.random() < WHOLE else SECTIONS, rng)
        # one at a time: three feature maps of a clip together no longer fit a CPU's cache
        moments = [encoder(torch.from_numpy(wave)[None]) for wave in waves]
        row = [moments[0][0], moments[0][1], moments[1][0], moments[2][0]]
        rows.append(torch.cat(row).half().numpy())
        labels.append(names)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"shard-{number:05d}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
        np.save(Path(scratch) / f"{name}.npy", np.stack(rows))
        (Path(scratch) / f"{name}.json").write_text(json.dumps(labels), encoding="utf-8")
        # the array last: a shard without it is not there
        for suffix in (".json", ".npy"):
            os.replace(Path(scratch) / (name + suffix), folder / (name + suffix))
    return folder / f"{name}.npy"


def draw_clip(
    bank: SoundBank, samples: int, sections: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], list[list[str]]]:
    """Draw mixtures of equal length in a row: `[3, samples]` and the classes of each.

    The rows are the mixture, its first sound and everything else. Sections differ in level.
    """
    waves, labels = [], []
    for _ in range(sections):
        item = draw_mixture(bank, samples // sections, rng)
        target, *others = item.sources
        rest = np.sum(others, axis=0) if others else np.zeros_like(target)
        gain = 10 ** (rng.uniform(-QUIETER, 0) / 20) if sections > 1 else 1.0
        waves.append(np.float32(gain) * np.stack([item.mixture, target, rest]))
        labels.append(list(item.labels))
    return np.concatenate(waves, axis=1), labels


def write_cache(
    folder: Path,
    bank: SoundBank,
    encoder: Encoder,
    samples: int,
    shards: int,
    seed: int,
    written: Callable[[int], None] = lambda shards: None,
) -> None:
    """Write the missing shards of a cache, and the latent of silence.

    Args:
        folder: of the cache.
        bank: recordings.
        encoder: of the trained autoencoder.
        samples: of a clip.
        shards: number of shards that the cache shall have.
        seed: of what is drawn.
        written: told after each shard how many there are.

    Raises:
        ValueError: another autoencoder encoded what is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark, made_by = folder / VAE_DIGEST, digest(encoder.vae)
    if mark.exists() and mark.read_text(encoding="utf-8") != made_by:
        raise ValueError(f"{folder} holds latents of another autoencoder: give another --output")
    # an older cache, without a digest, keeps its secret
    if not (folder / SILENCE).exists():
        mark.write_text(made_by, encoding="utf-8")
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

    Attributes:
        vae: Digest of the autoencoder that encoded it; None in a cache that does not say.

    Raises:
        ValueError: the folder has no shard.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.shards: dict[str, tuple[Latents, list[list[list[str]]]]] = {}
        self.refresh()
        if not self.shards:
            raise ValueError(f"{folder} has no latents: run flowsep-train latents first")
        self.silence = torch.from_numpy(np.load(self.folder / SILENCE))
        """Latent of a silent clip, unscaled `[8, t, 16]`."""
        mark = self.folder / VAE_DIGEST
        self.vae = mark.read_text(encoding="utf-8") if mark.exists() else None

    def labels(self) -> set[str]:
        """All classes in the shards that were read."""
        return {
            label for _, clips in self.shards.values() for clip in clips for names in clip for label in names
        }

    def refresh(self) -> None:
        """Add shards that were written since."""
        for path in sorted(self.folder.glob("shard-*.npy")):
            if path.stem not in self.shards:
                labels = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                self.shards[path.stem] = np.load(path, mmap_mode="r"), labels

    def scale_factor(self) -> float:
        """`scale_factor` of docs/model.md#vae: 1 / standard deviation of the first shard's targets."""
        array, _ = self.shards[min(self.shards)]
        return float(1.0 / array[:, 2:].astype(np.float32).std())

    def piece(self, share: int, multiple: int, rng: np.random.Generator) -> Piece:
        """A random piece of `1 / share` of a clip, starting at a multiple of `multiple` frames.

        It lies within one mixture. A piece longer than the mixture that was drawn is cut from another one.

        Raises:
            ValueError: no mixture of the cache is that long.
        """
        for _ in range(TRIES):
            shard = list(self.shards)[int(rng.integers(len(self.shards)))]
            array, labels = self.shards[shard]
            row = int(rng.integers(len(array)))
            clip, mixtures = array[row], labels[row]
            length = max(clip.shape[2] // share // multiple, 1) * multiple
            section = clip.shape[2] // len(mixtures)
            if length <= section:
                break
        else:
            raise ValueError(f"{self.folder} has no mixture as long as 1/{share} of a clip")
        number = int(rng.integers(len(mixtures)))
        start = number * section + int(rng.integers((section - length) // multiple + 1)) * multiple
        mean, std, target, rest = torch.from_numpy(clip[:, :, start : start + length].astype(np.float32))
        noise = torch.from_numpy(rng.standard_normal(mean.shape, np.float32))
        return Piece(mean + std * noise, mean, target, rest, mixtures[number])
