"""Parts that others trained, from the files that the published project starts its own training with.

| part | file |
| --- | --- |
| autoencoder | `vae.ckpt` of the published record: its state_dict has the vocoder and the losses too |
| vocoder | BigVGAN's `g_*`, with weight normalisation, and perhaps its `config.json` beside it |
| text encoder | a T5 encoder in Hugging Face's layout: a folder, or a name on the hub |

Names and shapes are compared as strictly as those of a whole checkpoint. What fits is kept in the work folder
under this project's names, so the file is read once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowsep_ref import checkpoint
from flowsep_ref.checkpoint import CheckpointError
from flowsep_ref.config import AudioConfig, FlowSepConfig, TextConfig, VocoderConfig

State = dict[str, Tensor]

GIVEN = "given.safetensors"
TOKENIZER = "tokenizer.json"
#: Entries of the autoencoder's file that are not read: discriminator and settings. The vocoder is read apart.
BESIDE_VAE = ("loss.*", "vocoder.*")
#: Entries of a whole T5 that its encoder does not need.
BESIDE_ENCODER = ("decoder.*", "lm_head.weight", "encoder.embed_tokens.weight")
#: Hugging Face's names of weights, the preferred first.
T5_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: The two forms of PyTorch's weight normalisation: magnitude, direction.
NORMALISED = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def keep(path: Path, source: str, read: Callable[[], State]) -> None:
    """Convert a part into the work folder, unless it is there.

    Args:
        path: of the converted part.
        source: the file, folder or name that it comes from.
        read: gives its entries, under this project's names.

    Raises:
        ValueError: another source was converted before.
        CheckpointError: from `read`.
    """
    mark = identity(source)
    if path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata().get("identity") != mark:
                raise ValueError(
                    f"{path} was made of {file.metadata().get('source')}, not of {source}: "
                    f"give another --work, or delete it and what was trained on it"
                )
        return
    state = {key: value.contiguous() for key, value in read().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".converting-") as scratch:
        save_file(state, Path(scratch) / path.name, {"identity": mark, "source": source})
        (Path(scratch) / path.name).chmod(0o644)
        os.replace(Path(scratch) / path.name, path)


def load(path: Path) -> State:
    """The entries of a converted part."""
    return load_file(path)


def identity(source: str) -> str:
    """The SHA-256 of a file, or of a text encoder's configuration and weights; of the hub, the name."""
    path = Path(source)
    if not path.exists():
        return source
    files = [path] if path.is_file() else [*path.glob("config.json"), *weight_files(path)]
    digest = hashlib.sha256()
    for name in files:
        try:
            with name.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise CheckpointError(f"cannot read {name}: {error.strerror}") from error
    return digest.hexdigest()


def vae_entries(path: Path, wanted: Mapping[str, Tensor]) -> State:
    """The autoencoder of the published `vae.ckpt`.

    Raises:
        CheckpointError: unreadable file, or a missing, unknown or misshapen entry.
    """
    state = checkpoint.state_dict(path)
    if any(key.startswith("first_stage_model.") for key in state):
        raise CheckpointError(f"{path} is a whole model and not an autoencoder alone: give it as --from")
    checkpoint.check(wanted, state, path, BESIDE_VAE)
    return {key: state[key].float() for key in wanted}


def vocoder_entries(path: Path, wanted: Mapping[str, Tensor], config: FlowSepConfig) -> State:
    """The vocoder of BigVGAN's generator file, or the one inside the published `vae.ckpt`.

    Raises:
        CheckpointError: unreadable file, a missing, unknown or misshapen entry, or a `config.json` of
            another network beside it.
    """
    content = checkpoint.load_torch(path)
    if isinstance(content, dict) and "generator" in content:
        state = folded(checkpoint.state_dict(path, "generator"))
        compare(path.with_name("config.json"), bigvgan_settings(config.vocoder, config.audio))
    else:
        inside = checkpoint.state_dict(path)
        state = folded({k.removeprefix("vocoder."): v for k, v in inside.items() if k.startswith("vocoder.")})
        if not state:
            raise CheckpointError(f"{path} has no vocoder: BigVGAN's g_… file has an entry called generator")
    checkpoint.check(wanted, state, path, ())
    return {key: state[key].float() for key in wanted}


def has_vocoder(path: Path) -> bool:
    """True for an autoencoder's file that has a vocoder inside."""
    return any(key.startswith("vocoder.") for key in checkpoint.state_dict(path))


def folded(state: Mapping[str, Tensor]) -> State:
    """A copy without weight normalisation and without the prefixes of compiled and of parallel modules."""
    plain = {key.removeprefix("module.").replace("_orig_mod.", ""): value for key, value in state.items()}
    for magnitude, direction in NORMALISED:
        for key in [key for key in plain if key.endswith(magnitude)]:
            name = key.removesuffix(magnitude)
            g, v = plain[key], plain.get(name + direction)
            # what does not belong together stays, and is reported as unknown
            if v is None or g.shape != (len(v), *(1,) * (v.dim() - 1)):
                continue
            norm = torch.linalg.vector_norm(v.float(), dim=tuple(range(1, v.dim())), keepdim=True)
            plain[f"{name}.weight"] = v.float() * (g.float() / norm)
            del plain[key], plain[name + direction]
    return plain


def bigvgan_settings(config: VocoderConfig, audio: AudioConfig) -> dict[str, Any]:
    """Settings that BigVGAN's `config.json` must have; shapes do not show all of them."""
    return {
        "resblock": "1",
        "activation": "snakebeta",
        "snake_logscale": True,
        "num_mels": config.num_mels,
        "upsample_rates": list(config.upsample_rates),
        "upsample_kernel_sizes": list(config.upsample_kernel_sizes),
        "upsample_initial_channel": config.upsample_initial_channel,
        "resblock_kernel_sizes": list(config.resblock_kernel_sizes),
        "resblock_dilation_sizes": [list(sizes) for sizes in config.resblock_dilation_sizes],
        "sampling_rate": audio.sampling_rate,
        "hop_size": audio.hop_length,
        "n_fft": audio.filter_length,
        "win_size": audio.win_length,
        "fmin": audio.mel_fmin,
        "fmax": audio.mel_fmax,
    }


def text_entries(folder: Path, wanted: Mapping[str, Tensor], config: TextConfig) -> State:
    """The encoder of a T5 in Hugging Face's layout, such as FLAN-T5.

    Args:
        folder: with `config.json` and weights, in one file or in several with an index.
        wanted: entries of this project's encoder.
        config: its sizes.

    Raises:
        CheckpointError: a file is missing or unreadable, the sizes are others, or an entry is missing,
            unknown or misshapen.
    """
    fields = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "layer_norm_epsilon")
    buckets = ("relative_attention_num_buckets", "relative_attention_max_distance")
    settings = {name: getattr(config, name) for name in fields + buckets}
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is not a text encoder in Hugging Face's layout: it has no config.json"
        )
    compare(folder / "config.json", settings | {"model_type": "t5", "feed_forward_proj": "gated-gelu"})
    files = weight_files(folder)
    if not files:
        raise CheckpointError(f"{folder} has no weights: one of {', '.join(T5_WEIGHTS)} is needed")
    state: State = {}
    for file in files:
        if file.suffix == ".json":
            continue
        state |= encoder_of(file)
    if "shared.weight" not in state and "encoder.embed_tokens.weight" in state:
        state["shared.weight"] = state["encoder.embed_tokens.weight"]  # one tensor under two names
    checkpoint.check(wanted, state, folder, BESIDE_ENCODER)
    return {key: state[key] for key in wanted}


def encoder_of(file: Path) -> State:
    """The entries of a T5's file that its encoder has, and those that belong to no part of a T5."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as content:
                names = [name for name in content.keys() if not name.startswith(("decoder.", "lm_head."))]  # noqa: SIM118
                return {name: content.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} is not a safetensors file, or it is incomplete") from error
    content = checkpoint.load_torch(file)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} holds no tensors by name: it is not a T5 encoder")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files of a T5's weights, an index and what it names; none if there are none."""
    found = next((folder / name for name in T5_WEIGHTS if (folder / name).is_file()), None)
    if found is None or found.suffix != ".json":
        return [] if found is None else [found]
    content = read_json(found)
    names = content.get("weight_map")
    if not isinstance(names, dict):
        raise CheckpointError(f"{found} is not an index of weights: it has no weight_map")
    # never out of the folder, whatever the index says
    return [found, *(folder / Path(str(name)).name for name in dict.fromkeys(names.values()))]


def compare(path: Path, wanted: Mapping[str, Any]) -> None:
    """Compare the settings in a JSON file, if it is there, with those that the model is built by.

    Raises:
        CheckpointError: the file is unreadable, or one of its settings is another.
    """
    if not path.is_file():
        return
    content = read_json(path)
    for name, value in wanted.items():
        found = content.get(name, value)
        if found != value and found is not None:
            raise CheckpointError(
                f"{path} does not fit the configuration (is it the right --config?): {name} is "
                f"{json.dumps(found)}, not {json.dumps(value)}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        CheckpointError: it is none, or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def keep_tokenizer(folder: Path, path: Path) -> None:
    """Copy a text encoder's tokenizer to the work folder, if it has one."""
    if (folder / TOKENIZER).is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / TOKENIZER, path.with_suffix(".writing"))
        path.with_suffix(".writing").replace(path)
