"""Arrays of the stages: dtypes and shapes of what callers give, with a sentence where they do not fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flowsep_runtime.arrays import Floats, Ints
from flowsep_runtime.bundle.model_entry import ModelEntry


@dataclass(frozen=True)
class QueryFeatures:
    """Features of queries for the velocity network, the same at every step: [B, 50, K] and [B, 1, 1, 50]."""

    keys_values: Floats
    mask_bias: Floats


def waveform_of(waveform: ArrayLike, model: ModelEntry) -> Floats:
    """Waveform as float32 [batch, samples], of whole frame multiples."""
    array = floats(waveform)
    multiple = model.hop_length * model.frame_multiple
    if array.ndim != 2 or array.shape[1] == 0 or array.shape[1] % multiple:
        raise ValueError(
            f"waveform must be [batch, samples] with samples a multiple of {multiple}: {array.shape}"
        )
    return array


def latent_of(latent: ArrayLike, model: ModelEntry, name: str) -> Floats:
    """Latent as float32 [batch, channels, t, frequencies]; `name` is for the error."""
    array = floats(latent)
    multiple = model.frame_multiple // model.latent_stride
    wanted = (model.latent_channels, model.latent_frequencies)
    if array.ndim != 4 or (array.shape[1], array.shape[3]) != wanted or not array.shape[2]:
        raise ValueError(f"{name} must be [batch, {wanted[0]}, t, {wanted[1]}]: {array.shape}")
    if array.shape[2] % multiple:
        raise ValueError(f"the frames of {name} must be a multiple of {multiple}: {array.shape}")
    return array


def log_mel_of(log_mel: ArrayLike, model: ModelEntry) -> Floats:
    """Log-mel as float32 [batch, frames, mel_bins]."""
    array = floats(log_mel)
    if array.ndim != 3 or array.shape[2] != model.mel_bins or not array.shape[1]:
        raise ValueError(f"log_mel must be [batch, frames, {model.mel_bins}]: {array.shape}")
    if array.shape[1] % model.frame_multiple:
        raise ValueError(f"the frames of log_mel must be a multiple of {model.frame_multiple}: {array.shape}")
    return array


def floats(values: ArrayLike) -> Floats:
    """Values as float32."""
    return np.asarray(values, dtype=np.float32)


def integers(values: ArrayLike) -> Ints:
    """Values as int64."""
    return np.asarray(values, dtype=np.int64)


def of_batch(array: Floats, batch: int, name: str) -> Floats:
    """Array of that batch; one of batch 1 is repeated."""
    if len(array) == batch:
        return array
    if len(array) != 1:
        raise ValueError(f"{name} has batch {len(array)}: give batch {batch} or 1")
    return np.repeat(array, batch, axis=0)
