"""Random input of the scale that a graph's real input has, to try a graph on before it is used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from flowsep_runtime.arrays import Array
from flowsep_runtime.bundle.manifest import GraphEntry, ModelEntry

SEED = 20240911

Shapes = Mapping[str, tuple[int, ...]]


def sample(name: str, shape: tuple[int, ...], dtype: DTypeLike, random: np.random.Generator) -> Array:
    """An input of that name in the bundle's contract, of any shape and dtype."""
    # A sentence of seven words: the rest of the text is masked.
    heard = np.arange(shape[-1]) < 8
    values: Array
    match name:
        case "input_ids":
            values = random.integers(0, 8, shape)  # every vocabulary has that many tokens
        case "attention_mask" | "mask":
            values = np.broadcast_to(heard, shape)
        case "mask_bias":
            values = np.broadcast_to(np.where(heard, 0, np.finfo(np.float32).min), shape)
        case "wanted" | "unwanted":  # every array has a first row
            values = np.zeros(shape)
        case "t":
            values = random.uniform(0, 1, shape)
        case "log_mel":
            values = random.normal(-6, 2, shape)
        case "waveform":
            values = random.uniform(-0.5, 0.5, shape)
        case _:  # latents, hidden states and features are close to standard normal
            values = random.standard_normal(shape)
    return np.ascontiguousarray(values, dtype)


def clip_shapes(entry: GraphEntry, model: ModelEntry) -> Shapes:
    """Input name -> shape of one row of a whole clip, which is what a separation runs on."""
    sizes = {
        "t": model.clip_frames // model.latent_stride,
        "frames": model.clip_frames,
        "samples": model.clip_samples,
    }
    return {
        tensor.name: (1, *(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape[1:]))
        for tensor in entry.inputs
    }


def sample_inputs(entry: GraphEntry, shapes: Shapes) -> dict[str, Array]:
    """Random input of a graph, the same at each call."""
    random = np.random.default_rng(SEED)
    return {
        tensor.name: sample(tensor.name, shapes[tensor.name], tensor.dtype, random) for tensor in entry.inputs
    }
