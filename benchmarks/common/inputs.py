"""Input of all contestants: one set of arrays in a file.

The scales are the exporter's (`flowsep_export.stage_inputs`); the mixture is the example's recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsep_runtime.arrays import Array, Floats

if TYPE_CHECKING:
    from benchmarks.common.models import Model
    from flowsep_ref import FlowSepConfig
    from flowsep_runtime.separation.queries import Tokens

QUERY, SEED = "a dog barking", 0
EXAMPLE = Path(__file__).parents[2] / "examples" / "mix.wav"

#: Stage -> the names of its inputs, in the order of the method's arguments.
STAGE_INPUTS: Mapping[str, tuple[str, ...]] = {
    "log_mel": ("waveform",),
    "encode_text": ("input_ids", "attention_mask"),
    "encode_mixture": ("log_mel",),
    "velocity": ("x", "t", "mixture_latent", "text", "attention_mask"),
    "decode_latent": ("latent",),
    "vocode": ("target_log_mel",),
}


def config_of(model: Model) -> FlowSepConfig:
    """The model's sizes, without its weights."""
    from flowsep_ref import FlowSepConfig
    from flowsep_ref.checkpoint import CONFIG

    if model.config is not None:
        return FlowSepConfig.from_yaml(model.config)
    if model.weights.is_dir():
        return FlowSepConfig.from_yaml(model.weights / CONFIG)
    return FlowSepConfig.published()


def frames_of(config: FlowSepConfig, seconds: float) -> int:
    """Mel frames of a clip, rounded to a number that the model accepts."""
    multiple = config.frame_multiple
    exact = seconds * config.audio.sampling_rate / config.audio.hop_length
    return max(1, round(exact / multiple)) * multiple


def make_inputs(
    config: FlowSepConfig, frames: int, batch: int, seed: int, tokens: Tokens | None = None
) -> dict[str, Array]:
    """Inputs of every stage, and of a whole clip: waveform, ids, mask, posterior noise and noise.

    The noise is that of `Separator.separate` for the same seed, and `tokens`, if given, are those of its
    query, so that it separates the same clip.
    """
    import torch

    from flowsep_export.stage_inputs import random_inputs, read_recording, synthetic_mixture
    from flowsep_ref.mel import normalise

    arrays = random_inputs(config, frames, batch, seed).arrays()
    recording = (
        read_recording(EXAMPLE, config.audio.sampling_rate, config.clip_samples)
        if EXAMPLE.is_file()
        else synthetic_mixture(config)
    )
    clip = torch.from_numpy(np.resize(recording, frames * config.audio.hop_length))[None]
    waveform: Floats = normalise(clip).repeat(batch, 1).numpy()
    rng = np.random.default_rng(seed)
    shape = (1, *arrays["noise"].shape[1:])
    for name in ("posterior_noise", "noise"):
        arrays[name] = rng.standard_normal(shape, np.float32).repeat(batch, axis=0)
    if tokens is not None:
        ids, mask = tokens.input_ids, tokens.attention_mask
        arrays |= {"input_ids": ids.repeat(batch, axis=0), "attention_mask": mask.repeat(batch, axis=0)}
    return arrays | {"waveform": waveform}


def tokens_of(bundle: Path) -> Tokens:
    """The query, as a model's bundle reads it."""
    from flowsep_runtime.bundle.manifest import Manifest
    from flowsep_runtime.separation.queries import Tokenizer

    return Tokenizer(bundle, Manifest.read(bundle))(QUERY)


def write_inputs(path: Path, arrays: Mapping[str, Array]) -> Path:
    """Store the arrays for the workers."""
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def read_inputs(path: Path) -> dict[str, Array]:
    """The arrays that `write_inputs` stored."""
    with np.load(path) as arrays:
        return dict(arrays)
