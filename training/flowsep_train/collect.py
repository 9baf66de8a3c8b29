"""Put the trained parts together into one model."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch

from flowsep_ref.model import FlowSep
from flowsep_train.parts import DISTILLED, MODULES, PARTS, ModelParts


def collect(
    parts: ModelParts, tokenizer: Path, output: Path, half: bool = True, kept: float = 0.0
) -> FlowSep:
    """Write the model of all parts to a folder, with its tokenizer.

    Args:
        parts: trained here, or the base model's.
        tokenizer: `tokenizer.json` of the text's training.
        output: folder for `model.safetensors`, `config.yaml` and `tokenizer.json`.
        half: store the weights in half precision; the model given back has the rounded weights.
        kept: share of the base model's flow in the average of its weights and the trained ones. On new sounds
            the average of two such models often does better than either.

    Raises:
        ValueError: a part is neither trained nor in a base model, or the flow was trained on after it was
            distilled.
    """
    model = FlowSep(parts.config)
    if kept and parts.base is None:
        raise ValueError("there is no base model to keep a share of: give --from")
    # a copy, for the trained weights go into the base model's modules
    before = copy.deepcopy(parts.base.unet.state_dict()) if kept and parts.base is not None else {}
    for name in PARTS:
        if name == "flow" and parts.is_trained(DISTILLED):
            parts.check_teacher(parts.trained("flow"))
            if kept:
                raise ValueError("a distilled flow has no average with one of many steps: leave --keep out")
            name = DISTILLED
        getattr(model, MODULES[name]).load_state_dict(parts.trained(name).state_dict())
    scale_factor = parts.scale_factor()
    if scale_factor is None:
        raise ValueError("the flow belongs to another autoencoder: train it again after the vae")
    for key, weights in model.unet.state_dict().items():
        if key in before:
            weights.lerp_(before[key], kept)
    model.scale_factor.copy_(scale_factor)
    model.save(output, torch.float16 if half else torch.float32)
    shutil.copyfile(tokenizer, output / "tokenizer.json")
    return FlowSep.from_checkpoint(output)
