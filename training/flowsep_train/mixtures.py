"""Mixtures of sounds, with queries for each of them (docs/model.md#training)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from flowsep_train.sounds import Audio, SoundBank

SAMPLE_RATE = 16000
#: Share of clips with one sound only.
ALONE = 0.06
#: Share of clips with three sounds.
CROWDED = 0.15
#: Largest difference in level between two sounds of a mixture, in dB.
LOUDNESS_RANGE = 15.0

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Captions:
    """Phrasings of every class."""

    trained: dict[str, list[str]]
    held_out: dict[str, list[str]]

    @classmethod
    def read(cls, path: str | Path) -> Captions:
        """Read a table of label, caption, use (`train` or `held-out`), tab-separated.

        Raises:
            ValueError: it is not such a table.
        """
        trained: dict[str, list[str]] = {}
        held_out: dict[str, list[str]] = {}
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            if not {"label", "caption", "use"} <= set(rows.fieldnames or ()):
                raise ValueError(
                    f"{path} is not a table of captions: "
                    f"its first line must be label, caption, use, with tabs between them"
                )
            for number, row in enumerate(rows, start=2):
                if row["label"] is None or row["caption"] is None or row["use"] is None:
                    raise ValueError(f"{path}, line {number}, has fewer than three columns")
                side = trained if row["use"] == "train" else held_out
                side.setdefault(row["label"], []).append(row["caption"])
        return cls(trained, held_out)


@dataclass(frozen=True)
class Mixture:
    """A mixture at the published normalisation and its sounds at their level in it, all `[S]`."""

    mixture: Audio
    sources: tuple[Audio, ...]
    labels: tuple[str, ...]


def draw_mixture(
    bank: SoundBank,
    samples: int,
    rng: np.random.Generator,
    loudness_range: float = LOUDNESS_RANGE,
    alone: float = ALONE,
    crowded: float = CROWDED,
) -> Mixture:
    """One to three different classes; all but the first at up to `loudness_range` dB from it.

    Small differences come more often than large ones: the density falls linearly on both sides.

    Args:
        bank: recordings.
        samples: of the mixture.
        rng: decides.
        loudness_range: in dB.
        alone: probability of one class.
        crowded: probability of three.
    """
    chance = rng.random()
    most = 1 if chance < alone else 3 if chance > 1 - crowded else 2
    chosen = rng.choice(len(bank.labels), min(most, len(bank.labels)), replace=False)
    labels = tuple(bank.labels[int(i)] for i in chosen)
    first, *others = (bank.track(label, samples, rng) for label in labels)
    sources = [first]
    for other in others:
        gain = 10 ** (rng.triangular(-loudness_range, 0, loudness_range) / 20)
        sources.append(other * np.float32(gain * level(first) / max(level(other), 1e-6)))
    return mix(sources, labels)


def mix(sources: list[Audio], labels: tuple[str, ...]) -> Mixture:
    """Add sounds, normalise the mixture as published, and scale the sounds by the same gain."""
    whole = np.sum(sources, axis=0)
    mean = whole.mean()
    gain = np.float32(0.5 / (np.abs(whole - mean).max() + 1e-8))
    return Mixture((whole - mean) * gain, tuple(source * gain for source in sources), labels)


def level(x: Audio) -> float:
    """Root mean square of the loud part: of 100 ms pieces within 30 dB of the loudest."""
    pieces = x[: len(x) // 1600 * 1600].reshape(-1, 1600)
    power = np.mean(pieces**2, axis=1) if len(pieces) else np.mean(x**2, keepdims=True)
    loud = power[power >= power.max() * 1e-3]
    return float(np.sqrt(loud.mean()))


class Stream(IterableDataset[Batch], Generic[Batch]):
    """Batches without end, of which number `n` is a function of the seed and `n` alone.

    So a training that is resumed at batch `n` sees what it would have seen, with any number of
    workers; use it with `DataLoader(batch_size=None)`, which takes the workers in turn.

    Args:
        draw: makes one batch, of the generator that belongs to it and its number.
        seed: one or more numbers (for several processes: the process's rank is one of them).
        start: number of the first batch.
    """

    def __init__(
        self, draw: Callable[[np.random.Generator, int], Batch], seed: list[int], start: int = 0
    ) -> None:
        self.draw = draw
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in count(self.start + first, step):
            yield self.draw(np.random.default_rng([*self.seed, number]), number)


@dataclass(frozen=True)
class Waveforms:
    """Draws batches `[batch, samples]` for autoencoder and vocoder: mixtures, and sounds alone.

    Pieces of longer clips: a piece that began where its sound begins would always begin with a start.
    """

    bank: SoundBank
    batch: int
    samples: int
    clip: int

    def __call__(self, rng: np.random.Generator, _: int) -> Tensor:
        rows: list[Audio] = []
        while len(rows) < self.batch:
            item = draw_mixture(self.bank, self.clip, rng)
            start = int(rng.integers(self.clip - self.samples + 1))
            rows += [x[start : start + self.samples] for x in (item.mixture, item.sources[0])]
        return torch.from_numpy(np.stack(rows[: self.batch]).astype(np.float32))
