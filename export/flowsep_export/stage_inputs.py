"""Inputs for the verification of stages: numbers from a generator, and a real recording.

`StageInputs` has an input for every stage. Random ones are independent of each other, so a fault of one stage
cannot hide one of the next; a recording's come from the reference's own run, so that every stage sees the
numbers that it will see in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowsep_ref import FlowSep, FlowSepConfig
from flowsep_ref.mel import normalise
from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.audio.checks import checked_samples
from flowsep_runtime.audio.reading import read_audio
from flowsep_runtime.audio.resampling import resampled
from flowsep_runtime.errors import AudioError, shown

CHECK_STEPS = 4
SHORT_FRAMES, LONG_FRAMES = 256, 1024  # 2.56 s and 10.24 s, as published

QUERY = "a dog barking in the distance"


@dataclass(frozen=True)
class StageInputs:
    """Inputs of every stage, B batch, T mel frames, t latent frames; float32 except for ids and mask."""

    waveform: Tensor  # [B, 160·T]
    input_ids: Tensor  # [B, 50] int64
    attention_mask: Tensor  # [B, 50] int64
    log_mel: Tensor  # [B, T, 64], the mixture's
    posterior_noise: Tensor  # [B, 8, t, 16]
    noise: Tensor  # [B, 8, t, 16]
    x: Tensor  # [B, 8, t, 16], a state on the way
    t: Tensor  # [B], its time
    mixture_latent: Tensor  # [1 or B, 8, t, 16]
    text: Tensor  # [B, 50, D]
    latent: Tensor  # [B, 8, t, 16], the target's
    target_log_mel: Tensor  # [B, T, 64]

    def arrays(self) -> dict[str, Array]:
        """The same for numpy."""
        return {entry.name: getattr(self, entry.name).numpy() for entry in fields(self)}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


#: Each stage on its inputs; the model is `flowsep_ref.FlowSep` or `flowsep_runtime.Pipeline`.
STAGE_CALLS: Mapping[str, Callable[[Any, Mapping[str, Any]], tuple[Any, ...]]] = {
    "log_mel": lambda model, i: (model.log_mel(i["waveform"]),),
    "encode_text": lambda model, i: (model.encode_text(i["input_ids"], i["attention_mask"]),),
    "encode_mixture": lambda model, i: tuple(model.encode_mixture(i["log_mel"])),
    "velocity": lambda model, i: (
        model.velocity(i["x"], i["t"], i["mixture_latent"], i["text"], i["attention_mask"]),
    ),
    "solve": lambda model, i: (
        model.solve(i["noise"], i["mixture_latent"], i["text"], i["attention_mask"], CHECK_STEPS),
    ),
    "decode_latent": lambda model, i: (model.decode_latent(i["latent"]),),
    "vocode": lambda model, i: (model.vocode(i["target_log_mel"]),),
}

CHAIN = "chain"


def chain(model: Any, i: Mapping[str, Any]) -> tuple[Any, ...]:
    """Mixture and query to the target's log-mel and waveform, every stage on the output of the one before."""
    mean, std = model.encode_mixture(model.log_mel(i["waveform"]))
    text = model.encode_text(i["input_ids"], i["attention_mask"])
    latent = model.solve(
        i["noise"], mean + std * i["posterior_noise"], text, i["attention_mask"], CHECK_STEPS
    )
    log_mel = model.decode_latent(latent)
    return log_mel, model.vocode(log_mel)


def random_inputs(config: FlowSepConfig, frames: int, batch: int, seed: int) -> StageInputs:
    """Inputs from a generator; one mixture latent for the whole batch."""
    rng = torch.Generator().manual_seed(seed)
    latent = (batch, config.latent_channels, frames // config.latent_stride, config.latent_frequencies)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    tokens = config.text.max_length
    lengths = torch.randint(2, tokens + 1, (batch, 1), generator=rng)
    mel = (batch, frames, config.audio.n_mel_channels)
    return StageInputs(
        waveform=normalise(normal(batch, frames * config.audio.hop_length)),
        input_ids=torch.randint(0, config.text.vocab_size, (batch, tokens), generator=rng),
        attention_mask=(torch.arange(tokens)[None] < lengths).long(),
        # log-mels of recordings are about -5 ± 2.5, with the floor at log(1e-5)
        log_mel=(normal(*mel) * 2.5 - 5.0).clamp(min=float(np.log(1e-5))),
        posterior_noise=normal(*latent),
        noise=normal(*latent),
        x=normal(*latent),
        t=torch.rand(batch, generator=rng),
        mixture_latent=normal(1, *latent[1:]),
        text=0.3 * normal(batch, tokens, config.text.d_model),
        latent=normal(*latent),
        target_log_mel=(normal(*mel) * 2.5 - 5.0).clamp(min=float(np.log(1e-5))),
    )


@torch.inference_mode()
def recorded_inputs(
    model: FlowSep, samples: Floats, ids: Tensor, mask: Tensor, frames: int, seed: int
) -> StageInputs:
    """Inputs of every stage in the reference's own separation of `samples [S]` (at the model's rate)."""
    config = model.config
    length = frames * config.audio.hop_length
    clip = torch.from_numpy(samples[:length].copy())[None]
    waveform = torch.nn.functional.pad(normalise(clip), (0, length - clip.shape[1]))
    log_mel = model.log_mel(waveform)
    mean, std = model.encode_mixture(log_mel)
    rng = torch.Generator().manual_seed(seed)
    posterior_noise, noise = (torch.randn(mean.shape, generator=rng) for _ in range(2))
    mixture_latent = mean + std * posterior_noise
    text = model.encode_text(ids, mask)
    latent = model.solve(noise, mixture_latent, text, mask, CHECK_STEPS)
    return StageInputs(
        waveform=waveform,
        input_ids=ids,
        attention_mask=mask,
        log_mel=log_mel,
        posterior_noise=posterior_noise,
        noise=noise,
        x=0.5 * (noise + latent),
        t=torch.full((1,), 0.5),
        mixture_latent=mixture_latent,
        text=text,
        latent=latent,
        target_log_mel=model.decode_latent(latent),
    )


def read_recording(path: Path, rate: int, clip_samples: int) -> Floats:
    """A clip of a recording `[S]`, mono, at the model's rate.

    Raises:
        AudioError: not audio, or silent.
    """
    recording = read_audio(path)
    samples = np.ascontiguousarray(recording.samples.mean(axis=1, keepdims=True))
    if np.ptp(checked_samples(samples, recording.sample_rate)) < 1e-4:
        raise AudioError(f"{shown(path)} is silent: give a recording with sound in it.")
    length = min(round(len(samples) * rate / recording.sample_rate), clip_samples)
    return resampled(samples, recording.sample_rate, rate, length)[:, 0]


def synthetic_mixture(config: FlowSepConfig) -> Floats:
    """A synthetic clip `[S]` in place of a recording: a gliding harmonic tone, bursts of noise, silence."""
    rate = config.audio.sampling_rate
    time = np.arange(config.clip_samples) / rate
    phase = 2 * np.pi * np.cumsum(220.0 + 80.0 * np.sin(2 * np.pi * 0.4 * time)) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    noise = np.random.default_rng(0).standard_normal(len(time))
    bursts = np.maximum(0.0, np.sin(2 * np.pi * 1.5 * time)) ** 8
    silence = (time % 5.0) < 4.5
    return (silence * (0.3 * tone + bursts * noise)).astype(np.float32)
