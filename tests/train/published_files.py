"""Small stand-ins of the files that the published training starts from, in their layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.data.make_checkpoint import checkpoint, read_layout

DATA = Path(__file__).parents[1] / "data"
VAE, TEXT = "first_stage_model.", "cond_stage_models.0.model."


def entries(prefix: str) -> dict[str, Tensor]:
    """The entries of the tiny published checkpoint under a prefix, without it."""
    state: dict[str, Tensor] = checkpoint(read_layout(DATA / "layouts" / "tiny.json"))["state_dict"]
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def vae_file(path: Path) -> Path:
    """`vae.ckpt`: the autoencoder, its discriminator and the vocoder."""
    torch.save({"epoch": 1, "global_step": 2, "state_dict": entries(VAE)}, path)
    return path


def normalised(
    state: dict[str, Tensor], names: tuple[str, str] = (".weight_g", ".weight_v")
) -> dict[str, Tensor]:
    """A state in which every convolution has weight normalisation."""
    split: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.endswith(".weight"):
            split[key] = value
            continue
        name = key.removesuffix(".weight")
        split[name + names[0]] = value.flatten(1).norm(dim=1).reshape(-1, *(1,) * (value.dim() - 1))
        split[name + names[1]] = 3 * value  # the direction alone counts
    return split


def vocoder_file(path: Path, prefix: str = "", **settings: object) -> Path:
    """BigVGAN's `g_…`, with `config.json` beside it."""
    state = normalised(entries(VAE + "vocoder."))
    torch.save({"generator": {prefix + key: value for key, value in state.items()}}, path)
    sizes = {"resblock": "1", "activation": "snakebeta", "snake_logscale": True, "sampling_rate": 16000}
    path.with_name("config.json").write_text(json.dumps(sizes | {"fmax": None, "num_gpus": 0} | settings))
    return path


def text_folder(folder: Path, sizes: dict[str, Any], form: str = "safetensors") -> Path:
    """A whole T5 in Hugging Face's layout: encoder, decoder and head.

    Args:
        folder: made.
        sizes: of the tiny text encoder, by T5's names.
        form: `safetensors`, `shards` or `bin`.
    """
    folder.mkdir(parents=True)
    state = {key: value.clone() for key, value in entries(TEXT).items()}
    state.pop("encoder.embed_tokens.weight", None)
    state["decoder.block.0.layer.0.SelfAttention.q.weight"] = torch.zeros(3, 3)
    state["lm_head.weight"] = torch.zeros(3, 3)
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif form == "shards":
        halves = [dict(list(state.items())[number::2]) for number in range(2)]
        names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        for name, half in zip(names, halves, strict=True):
            save_file(half, folder / name)
        index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        save_file(state, folder / "model.safetensors")
    settings = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "num_decoder_layers": 24} | sizes
    (folder / "config.json").write_text(json.dumps(settings))
    shutil.copyfile(DATA / "tokenizer.json", folder / "tokenizer.json")
    return folder
