"""Endless mixtures of two sounds, with a query for one of them (SPEC §5)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from flowsep_ref.training.sounds import Audio, SoundBank

SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Captions:
    """Phrasings of every class."""

    trained: dict[str, list[str]]
    held_out: dict[str, list[str]]

    @classmethod
    def read(cls, path: str | Path) -> Captions:
        """Read a table of label, caption, use (`train` or `held-out`), tab-separated."""
        trained: dict[str, list[str]] = {}
        held_out: dict[str, list[str]] = {}
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                side = trained if row["use"] == "train" else held_out
                side.setdefault(row["label"], []).append(row["caption"])
        return cls(trained, held_out)


@dataclass(frozen=True)
class Mixture:
    """A mixture at the published normalisation, the queried sound at its level in it, and the query."""

    mixture: Audio
    target: Audio
    other: Audio
    label: str
    caption: str


class MixtureDataset(IterableDataset[tuple[Tensor, Tensor, str]]):
    """Yields `(mixture [S], target [S], caption)` without end.

    Two classes at −15…15 dB; with small probabilities one class alone, and a query for a class
    that is not there, whose target is silence.

    Args:
        bank: the recordings.
        captions: their phrasings.
        samples: length of a mixture.
        seed: of everything.
        emphasis: how much more often than the others some classes are drawn.
    """

    def __init__(
        self,
        bank: SoundBank,
        captions: Captions,
        samples: int,
        seed: int,
        emphasis: Mapping[str, float] | None = None,
    ) -> None:
        self.bank = bank
        weights = np.array([(emphasis or {}).get(label, 1.0) for label in bank.labels])
        self.shares = weights / weights.sum()
        self.captions = captions
        self.samples = samples
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, str]]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            item = self.draw(rng)
            yield torch.from_numpy(item.mixture), torch.from_numpy(item.target), item.caption

    def draw(self, rng: np.random.Generator) -> Mixture:
        """One random mixture."""
        labels = [str(label) for label in rng.choice(self.bank.labels, 3, replace=False, p=self.shares)]
        chance = rng.random()
        first = self.bank.track(labels[0], self.samples, rng)
        second = self.bank.track(labels[1], self.samples, rng)
        if chance < 0.06:
            second = np.zeros_like(second)
        gain = 10 ** (rng.uniform(-15, 15) / 20)
        second = second * (gain * level(first) / max(level(second), 1e-6))
        target, label = (np.zeros_like(first), labels[2]) if chance > 0.92 else (first, labels[0])
        caption = str(rng.choice(self.captions.trained[label]))
        return mix(target, first + second, label, caption)


def mix(target: Audio, mixture: Audio, label: str, caption: str) -> Mixture:
    """Bring a mixture to the published normalisation, and its target by the same gain."""
    mean = mixture.mean()
    gain = 0.5 / (np.abs(mixture - mean).max() + 1e-8)
    scaled = target * np.float32(gain)
    whole = ((mixture - mean) * gain).astype(np.float32)
    return Mixture(whole, scaled, whole - scaled, label, caption)


def level(x: Audio) -> float:
    """Root mean square of the loud part: of 100 ms pieces within 30 dB of the loudest."""
    pieces = x[: len(x) // 1600 * 1600].reshape(-1, 1600)
    power = np.mean(pieces**2, axis=1) if len(pieces) else np.mean(x**2, keepdims=True)
    loud = power[power >= power.max() * 1e-3]
    return float(np.sqrt(loud.mean()))
