"""Put three trained parts together into one model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowsep_ref.checkpoint import save
from flowsep_ref.config import FlowSepConfig
from flowsep_ref.model import FlowSep

State = dict[str, Tensor]


def collect(work: Path, config: FlowSepConfig, tokenizer: Path, output: Path, half: bool = True) -> FlowSep:
    """Write the model of `work/{vae,vocoder,flow}/last.ckpt` to a folder, with its tokenizer.

    Args:
        work: the folder of the trainings.
        config: their configuration.
        tokenizer: `tokenizer.json` of the flow's training.
        output: folder for `model.safetensors`, `config.yaml` and `tokenizer.json`.
        half: store the weights in half precision; the model given back has the rounded weights.

    Raises:
        ValueError: a part has not been trained.
    """
    vae, vocoder, flow = (part(work, name) for name in ("vae", "vocoder", "flow"))
    model = FlowSep(config)
    model.vae.load_state_dict(below(vae, "vae."))
    model.vocoder.load_state_dict(below(vocoder, "vocoder."))
    # the moving averages: what inference runs
    model.unet.load_state_dict(below(flow, "ema.unet."))
    model.text_encoder.load_state_dict(below(flow, "ema.text_encoder."))
    model.scale_factor.copy_(flow["scale_factor"])
    save(model, output, torch.float16 if half else torch.float32)
    shutil.copyfile(tokenizer, output / "tokenizer.json")
    return FlowSep.from_checkpoint(output)


def part(work: Path, name: str) -> State:
    """The weights of one part's last checkpoint."""
    path = work / name / "last.ckpt"
    if not path.exists():
        raise ValueError(f"the {name} has not been trained: there is no {path}")
    # weights_only=False: the loop's own file, written by this program
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    state: State = content["state_dict"]
    return state


def below(state: State, prefix: str) -> State:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
