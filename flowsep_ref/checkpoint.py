"""Reading the published checkpoint, and the project's own form of it.

The published file is a PyTorch Lightning checkpoint: a pickle.  It is read with
`weights_only=True`, which refuses everything but tensors and plain containers, and memory-mapped:
the model's parameters are views of the file's pages, so 3.7 GB on disk are never in memory twice.
"""

from __future__ import annotations

import fnmatch
import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowsep_ref.config import ConfigError, FlowSepConfig

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"

#: Shell patterns of entries that inference does not read (docs/model.md#published-files).
NEVER_READ = (
    "model.diffusion_model.*",  # the raw weights: inference runs their moving average
    "model_ema.decay",
    "model_ema.num_updates",
    "first_stage_model.loss.*",
    "logvar",
    "betas",
    "posterior_*",
    "*alphas_cumprod*",
    "cond_stage_models.0.model.encoder.embed_tokens.weight",  # the same tensor as shared.weight
)


_WRAPPERS = ("module.", "_orig_mod.")


class CheckpointError(ValueError):
    """A file that is no FlowSep checkpoint, or one of other sizes; the message says which entries."""


def read(
    path: str | Path, config: str | Path | FlowSepConfig | None = None
) -> tuple[Mapping[str, Tensor], FlowSepConfig, Path]:
    """Read a published Lightning file, a bare state dict, or what `save` wrote.

    Args:
        path: `*.ckpt`, `*.safetensors`, or a folder with `model.safetensors` and `config.yaml`.
        config: sizes, or a YAML file of them; default: the one beside the weights, or the published sizes.

    Returns:
        The entries, the sizes, and the file that was read.

    Raises:
        CheckpointError: unreadable file.
        ConfigError: unreadable configuration.
    """
    path = Path(path)
    if path.is_dir():
        config = path / CONFIG if config is None else config
        path = path / WEIGHTS
        state = _read_safetensors(path)
    elif path.suffix == ".safetensors":
        beside = path.with_name(CONFIG)
        config = beside if config is None and beside.is_file() else config
        state = _read_safetensors(path)
    else:
        state = state_dict(path)
    entries = _unwrapped(state)
    if not isinstance(config, FlowSepConfig):
        config = FlowSepConfig.published() if config is None else FlowSepConfig.from_yaml(config)
    return entries, config, path


def fill(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Make tensors the parameters of a model, without a copy where they are float32.

    Args:
        model: a FlowSep, which may be on the meta device.
        state: entries under the published names or under this model's own, whichever fit more of it.
        source: the file to name in errors.

    Raises:
        CheckpointError: a missing, unknown or misshapen entry.
    """
    wanted = model.state_dict()
    names = {key: published_name(key) for key in wanted}
    if sum(key in state for key in wanted) > sum(name in state for name in names.values()):
        names = {key: key for key in wanted}
    check({names[key]: value for key, value in wanted.items()}, state, source)
    model.load_state_dict({key: state[names[key]].float() for key in wanted}, assign=True)


def save(
    model: nn.Module, config: FlowSepConfig, folder: str | Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write the project's own form: `model.safetensors` and `config.yaml` in a folder.

    Args:
        model: any FlowSep.
        config: its sizes.
        folder: made if it is not there; files of the same names are replaced, each atomically.
        dtype: of the stored weights; half precision halves the file and rounds them. The few numbers
            beside the weights (filter taps, `scale_factor`) stay float32.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key for key, _ in model.named_parameters()}
    state = {
        key: value.detach().to(dtype if key in weights else value.dtype).contiguous().cpu()
        for key, value in model.state_dict().items()
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
        save_file(state, Path(scratch) / WEIGHTS)
        config.save(Path(scratch) / CONFIG)
        for name in (WEIGHTS, CONFIG):
            # safetensors makes its files for the owner alone
            (Path(scratch) / name).chmod(0o644)
            os.replace(Path(scratch) / name, folder / name)


def check(
    wanted: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    source: Path,
    ignored: tuple[str, ...] = NEVER_READ,
) -> None:
    """Compare names and shapes of a file's entries with those of a model.

    Args:
        wanted: entries of the model; their values are not looked at.
        state: entries of the file.
        source: the file to name in errors.
        ignored: shell patterns of entries that the file may have besides.

    Raises:
        CheckpointError: a missing, unknown or misshapen entry.
    """
    missing = [key for key in wanted if key not in state]
    unknown = [
        key for key in state if key not in wanted and not any(fnmatch.fnmatchcase(key, p) for p in ignored)
    ]
    misshapen = [
        f"{key} is {list(state[key].shape)}, not {list(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    faults = [
        f"{fault}: {_some(keys)}"
        for fault, keys in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{source} does not fit the configuration (is it the right --config?): {'; '.join(faults)}"
        )


def _unwrapped(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Entries without the prefix of `DataParallel` or `torch.compile`, if all of them have it."""
    for prefix in _WRAPPERS:
        if state and all(key.startswith(prefix) for key in state):
            return _unwrapped({key.removeprefix(prefix): value for key, value in state.items()})
    return state


def load_torch(path: Path) -> Any:
    """The content of a file of `torch.save`: tensors and plain containers, memory-mapped.

    Raises:
        CheckpointError: unreadable file, or one that asks for more than tensors.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it is damaged, or a pickle that asks for more than tensors, "
            "which could run code"
        ) from error
    except Exception as error:  # on bytes that are not a pickle the unpickler fails in any way it likes
        raise CheckpointError(f"{path} is not a PyTorch checkpoint, or it is incomplete") from error


def state_dict(path: Path, entry: str = "state_dict") -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`: Lightning's has them under a name, a bare one is nothing else.

    Raises:
        CheckpointError: unreadable file, or one without such tensors.
    """
    content = load_torch(path)
    state = content.get(entry, content) if isinstance(content, dict) else None
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    ):
        raise CheckpointError(f"{path} has no {entry} of tensors: it is not a FlowSep checkpoint")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not a FlowSep model: it has no {path.name}")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or it is incomplete") from error


def published_name(key: str) -> str:
    """The name that one of this model's tensors has in the published file."""
    part, _, rest = key.partition(".")
    match part:
        case "unet":
            # the moving average's names have lost their dots
            return "model_ema.diffusion_model" + rest.replace(".", "")
        case "vae":
            return "first_stage_model." + rest
        case "vocoder":
            return "first_stage_model.vocoder." + rest
        case "text_encoder":
            return "cond_stage_models.0.model." + rest
    return key


def _some(keys: list[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


__all__ = [
    "NEVER_READ",
    "CheckpointError",
    "ConfigError",
    "check",
    "fill",
    "load_torch",
    "read",
    "save",
    "state_dict",
]
