"""Random input of the scale that a graph's real input has, to try a graph on before it is used."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from flowsep_runtime.arrays import Array

SEED = 20240911


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
        case "t":
            values = random.uniform(0, 1, shape)
        case "log_mel":
            values = random.normal(-6, 2, shape)
        case "waveform":
            values = random.uniform(-0.5, 0.5, shape)
        case _:  # latents, hidden states and features are close to standard normal
            values = random.standard_normal(shape)
    return np.ascontiguousarray(values, dtype)
