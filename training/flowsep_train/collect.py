"""Put the trained parts together into one model."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from flowsep_ref.model import FlowSep
from flowsep_train.parts import MODULES, PARTS, ModelParts


def collect(parts: ModelParts, tokenizer: Path, output: Path, half: bool = True) -> FlowSep:
    """Write the model of all parts to a folder, with its tokenizer.

    Args:
        parts: trained here, or the base model's.
        tokenizer: `tokenizer.json` of the text's training.
        output: folder for `model.safetensors`, `config.yaml` and `tokenizer.json`.
        half: store the weights in half precision; the model given back has the rounded weights.

    Raises:
        ValueError: a part is neither trained nor in a base model.
    """
    model = FlowSep(parts.config)
    for name in PARTS:
        getattr(model, MODULES[name]).load_state_dict(parts.trained(name).state_dict())
    scale_factor = parts.scale_factor()
    if scale_factor is None:
        raise ValueError("the flow belongs to another autoencoder: train it again after the vae")
    model.scale_factor.copy_(scale_factor)
    model.save(output, torch.float16 if half else torch.float32)
    shutil.copyfile(tokenizer, output / "tokenizer.json")
    return FlowSep.from_checkpoint(output)
