"""Write a checkpoint in the published FlowSep layout, filled with reproducible numbers.

The published checkpoint is 3.7 GB and cannot be fetched where these tests run, so they build
stand-ins of it: the same keys, shapes and nesting, each tensor drawn from a generator seeded by
its key. The golden outputs in `golden/` were computed by the published model code on exactly
these numbers (tiny layout, seed 0): a changed number here is a failed golden test.

    make_checkpoint.py layouts/tiny.json tiny.ckpt    # 6 M parameters, seconds
    make_checkpoint.py layouts/full.json full.ckpt    # the published sizes, 3.7 GB
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt
import torch


class Layout(TypedDict):
    """One file of `layouts/`: every entry of a checkpoint, in its order."""

    constants: dict[str, Any]
    tied: dict[str, str]
    state_dict: list[tuple[str, list[int], str]]


def read_layout(path: str | Path) -> Layout:
    """Read one file of `layouts/`."""
    return cast(Layout, json.loads(Path(path).read_text(encoding="utf-8")))


def tensor(
    key: str, shape: Sequence[int], dtype: str, seed: int, constants: Mapping[str, Any]
) -> torch.Tensor:
    """The stand-in value of one entry; it depends on nothing but the arguments."""
    leaf = key.rsplit(".", 1)[-1]
    if key in constants:
        return torch.tensor(constants[key]).reshape(list(shape))
    if leaf == "filter":
        return torch.tensor(constants["*.filter"], dtype=torch.float32).reshape(list(shape))
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(key.encode())]))
    x: npt.NDArray[np.float32]
    if shape:
        x = rng.standard_normal(tuple(shape), dtype=np.float32)
    else:
        x = np.asarray(rng.standard_normal(), dtype=np.float32)
    if len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        x = x * np.float32(0.7 / max(fan_in, 1) ** 0.5)
        # embeddings and position biases are looked up, not summed over: they keep unit variance
        if key.endswith("relative_attention_bias.weight"):
            x = x * np.float32(fan_in**0.5)
        if "embed_tokens" in key or key.endswith("shared.weight"):
            x = x * np.float32(fan_in**0.5)
    elif len(shape) == 1:
        # normalisation scales sit near one; biases and snake parameters near zero
        is_scale = leaf == "weight" or (leaf.endswith("weight") and key.startswith("model_ema."))
        x = np.float32(1.0) + np.float32(0.1) * x if is_scale else np.float32(0.05) * x
    return torch.from_numpy(np.ascontiguousarray(x)).to(getattr(torch, dtype))


def checkpoint(layout: Layout, seed: int = 0) -> dict[str, Any]:
    """The nested dictionary that the published `.ckpt` file holds, its tensors under `state_dict`."""
    state: dict[str, torch.Tensor] = {}
    for key, shape, dtype in layout["state_dict"]:
        alias = layout["tied"].get(key)
        state[key] = state[alias] if alias else tensor(key, shape, dtype, seed, layout["constants"])
    return {
        "epoch": 3,
        "global_step": 100000,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }


def main() -> None:
    """Write the checkpoint that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("layout", type=Path, help="a JSON file of layouts/")
    parser.add_argument("out", type=Path, help="the checkpoint to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.save(checkpoint(read_layout(arguments.layout), arguments.seed), arguments.out)


if __name__ == "__main__":
    main()
