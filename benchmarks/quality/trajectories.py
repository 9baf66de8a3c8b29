"""Distance of a solver's result from the end of the exact trajectory, which many Euler steps approximate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowsep_eval.evaluation import item_seed, read_tracks
from flowsep_eval.manifest import Item
from flowsep_runtime import Pipeline
from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.separation.levels import normalised
from flowsep_runtime.separation.queries import Tokenizer


@dataclass(frozen=True)
class Start:
    """Start of the solver for one query: noise, mixture latent, text and mask."""

    noise: Floats
    condition: tuple[Array, Array, Array]


def starts(pipeline: Pipeline, items: Sequence[Item], seed: int) -> list[Start]:
    """The start for the first clip of every item, with the noise that `flowsep_eval.evaluate` draws."""
    model = pipeline.manifest.model
    tokenizer = Tokenizer(pipeline.folder, pipeline.manifest)
    shape = (1, model.latent_channels, model.clip_frames // model.latent_stride, model.latent_frequencies)
    found = []
    for number, item in enumerate(items):
        sound = normalised(read_tracks(item).mixture[: model.clip_samples, None])[:, 0]
        waveform = np.zeros((1, model.clip_samples), np.float32)
        waveform[0, : len(sound)] = sound
        rng = np.random.default_rng(item_seed(seed, number))
        posterior_noise, noise = (rng.standard_normal(shape, np.float32) for _ in range(2))
        mean, std = pipeline.encode_mixture(pipeline.log_mel(waveform))
        tokens = tokenizer(item.query)
        text = pipeline.encode_text(tokens.input_ids, tokens.attention_mask)
        found.append(Start(noise, (mean + std * posterior_noise, text, tokens.attention_mask)))
    return found


def ends(pipeline: Pipeline, begun: Sequence[Start], steps: int, solver: str) -> list[Floats]:
    """The latent of each."""
    return [pipeline.solve(start.noise, *start.condition, steps, solver) for start in begun]


def relative_errors(wanted: Sequence[Floats], actual: Sequence[Floats]) -> list[float]:
    """The L2 norm of the difference over that of what was wanted, an item at a time."""
    return [
        float(np.linalg.norm((b - a).astype(np.float64)) / np.linalg.norm(a.astype(np.float64)))
        for a, b in zip(wanted, actual, strict=True)
    ]
