"""A model of any sizes with reproducible random numbers: a benchmark needs the shapes, not the training.

The published checkpoint is a large download; its sizes are known. Every tensor is drawn from a generator
seeded by its name, with scales that keep activations near those of a trained model: half precision must
neither overflow nor underflow, and twenty Euler steps must stay finite.
"""

from __future__ import annotations

import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flowsep_ref import FlowSep, FlowSepConfig
from flowsep_ref.checkpoint import WEIGHTS, published_name
from flowsep_ref.vocoder import kaiser_sinc_taps

SCALE_FACTOR = 0.7311  # the latent's; of the size that training gives
TOKENIZER = "tokenizer.json"


def stand_in(config: FlowSepConfig, seed: int = 0) -> FlowSep:
    """A model of given sizes, the same at each call; the largest takes some seconds and 3 GB."""
    with torch.device("meta"):
        wanted = FlowSep(config).state_dict()
    state = {key: _tensor(published_name(key), tuple(value.shape), seed) for key, value in wanted.items()}
    # named as the project's own form, so that the entries are read by the model's own names
    return FlowSep.from_state(state, config, Path(WEIGHTS))


def write_stand_in(config: FlowSepConfig, folder: Path, seed: int = 0) -> None:
    """Write the model as a folder that `FlowSep.from_checkpoint` takes, with the bundled tokenizer.

    A vocabulary too small for that tokenizer grows to its size: words are looked up, which takes no time.
    """
    tokenizer = FlowSep.bundled_path() / TOKENIZER
    words = max(config.text.vocab_size, Tokenizer.from_file(str(tokenizer)).get_vocab_size())
    config = replace(config, text=replace(config.text, vocab_size=words))
    stand_in(config, seed).save(folder)
    shutil.copy(tokenizer, folder / TOKENIZER)


def _tensor(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    leaf = key.rsplit(".", 1)[-1]
    if key == "scale_factor":
        return torch.tensor(SCALE_FACTOR)
    if leaf == "filter":
        return kaiser_sinc_taps().reshape(shape)
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(key.encode())]))
    x: npt.NDArray[np.float32] = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        # embeddings and position biases are looked up, not summed over: they keep their variance
        is_looked_up = key.endswith(("relative_attention_bias.weight", "shared.weight"))
        fan_in = 1 if is_looked_up else int(np.prod(shape[1:]))
        x *= np.float32(0.7 / fan_in**0.5)
    else:
        # normalisation scales lie near one; biases and snake parameters near zero
        is_scale = leaf == "weight" or (leaf.endswith("weight") and key.startswith("model_ema."))
        x = np.float32(1.0) + np.float32(0.1) * x if is_scale else np.float32(0.05) * x
    return torch.from_numpy(np.ascontiguousarray(x))
