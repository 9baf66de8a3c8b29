"""The sizes of every part of FlowSep, as the published YAML files give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

Section = TypeVar("Section")


class ConfigError(ValueError):
    """A configuration that cannot describe a FlowSep model."""


@dataclass(frozen=True)
class AudioConfig:
    """Front end (docs/model.md#front-end): 16 kHz mono, magnitude STFT, Slaney mel bands."""

    sampling_rate: int = 16000
    duration: float = 10.24
    filter_length: int = 1024
    hop_length: int = 160
    win_length: int = 1024
    n_mel_channels: int = 64
    mel_fmin: float = 0.0
    mel_fmax: float = 8000.0


@dataclass(frozen=True)
class VAEConfig:
    """Variational autoencoder over log-mel images (docs/model.md#vae)."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 8
    embed_dim: int = 8
    mel_bins: int = 64


@dataclass(frozen=True)
class UNetConfig:
    """Velocity network (docs/model.md#velocity-network)."""

    in_channels: int = 16
    out_channels: int = 16
    model_channels: int = 128
    attention_resolutions: tuple[int, ...] = (8, 4, 2)
    num_res_blocks: int = 2
    channel_mult: tuple[int, ...] = (1, 2, 3, 5)
    num_head_channels: int = 32
    context_dim: int = 1024


@dataclass(frozen=True)
class VocoderConfig:
    """BigVGAN (docs/model.md#vocoder)."""

    num_mels: int = 64
    upsample_initial_channel: int = 512
    upsample_rates: tuple[int, ...] = (5, 4, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 8, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))


@dataclass(frozen=True)
class TextConfig:
    """T5 encoder (docs/model.md#text-encoder); the published one is FLAN-T5-large."""

    vocab_size: int = 32128
    d_model: int = 1024
    d_kv: int = 64
    d_ff: int = 2816
    num_layers: int = 24
    num_heads: int = 16
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    max_length: int = 50


@dataclass(frozen=True)
class FlowSepConfig:
    """All sizes of one model; the defaults are the published ones."""

    audio: AudioConfig = field(default_factory=AudioConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        z = self.vae.embed_dim
        if self.unet.in_channels != 2 * z:
            raise ConfigError(
                f"in_channels of the velocity network is {self.unet.in_channels}; target and mixture "
                f"latents of {z} channels need {2 * z}"
            )
        if self.unet.out_channels < z:
            raise ConfigError(f"out_channels of the velocity network is below the latent's {z} channels")
        if self.unet.context_dim != self.text.d_model:
            raise ConfigError(
                f"the velocity network expects text of width {self.unet.context_dim}, "
                f"the text encoder gives {self.text.d_model}"
            )

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return self.vae.embed_dim

    @property
    def latent_stride(self) -> int:
        """Mel frames (and mel bins) per latent frame (and latent frequency)."""
        return int(2 ** (len(self.vae.ch_mult) - 1))

    @property
    def latent_frequencies(self) -> int:
        """Height of the latent."""
        return self.vae.mel_bins // self.latent_stride

    @property
    def frame_multiple(self) -> int:
        """Mel frames must come in multiples of this: every halving of VAE and UNet must be even."""
        return self.latent_stride * int(2 ** (len(self.unet.channel_mult) - 1))

    @property
    def clip_samples(self) -> int:
        """Samples of the clip the model was trained on (163 840 as published)."""
        return round(self.audio.duration * self.audio.sampling_rate)

    @property
    def clip_frames(self) -> int:
        """Mel frames of that clip (1024 as published)."""
        return self.clip_samples // self.audio.hop_length

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FlowSepConfig:
        """Build from `to_dict`'s form: one mapping a part."""
        parts = {"audio": AudioConfig, "vae": VAEConfig, "unet": UNetConfig, "vocoder": VocoderConfig}
        sections: dict[str, Any] = {
            name: _section(kind, values.get(name, {})) for name, kind in parts.items()
        }
        return cls(text=_section(TextConfig, values.get("text", {})), **sections)

    @classmethod
    def from_yaml(cls, path: str | Path) -> FlowSepConfig:
        """Read a published YAML (`preprocessing`, `model`, …) or the project's own (`flowsep`).

        The published files leave vocoder and text encoder to the code; where their sections are
        missing the published sizes stand.

        Raises:
            ConfigError: no such file, not YAML, or not a FlowSep configuration.
        """
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not a YAML file") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} is not a FlowSep configuration")
        if "flowsep" in values:
            return cls.from_dict(values["flowsep"])
        try:
            preprocessing = values["preprocessing"]
            model = values["model"]["params"]
            unet = dict(model["unet_config"]["params"])
            first_stage = model["first_stage_config"]["params"]
            context = unet.pop("context_dim", UNetConfig.context_dim)
            audio = {
                "sampling_rate": preprocessing["audio"]["sampling_rate"],
                "duration": preprocessing["audio"]["duration"],
                **preprocessing["stft"],
                **preprocessing["mel"],
            }
            vae = {**first_stage["ddconfig"], "embed_dim": first_stage["embed_dim"]}
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path} is not a FlowSep configuration: it has no {error}") from error
        return cls(
            audio=_section(AudioConfig, audio),
            vae=_section(VAEConfig, vae),
            unet=_section(
                UNetConfig, {**unet, "context_dim": context[0] if isinstance(context, list) else context}
            ),
            vocoder=_section(VocoderConfig, values.get("vocoder", {})),
            text=_section(TextConfig, values.get("text_encoder", {})),
        )

    @classmethod
    def published(cls) -> FlowSepConfig:
        """The sizes of `v2_100k.ckpt`."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings and lists, as `from_dict` reads them."""
        return {part: {k: _plain(v) for k, v in values.items()} for part, values in asdict(self).items()}

    def save(self, path: str | Path) -> None:
        """Write as YAML that `from_yaml` reads."""
        Path(path).write_text(yaml.safe_dump({"flowsep": self.to_dict()}, sort_keys=False), encoding="utf-8")


def at(values: Any, *keys: str) -> Any:
    """The value at a place in nested mappings, or None."""
    for key in keys:
        if not isinstance(values, Mapping):
            return None
        values = values.get(key)
    return values


def file_named(beside: Path, named: Any) -> Path | None:
    """The file that a YAML names, from the working folder or a folder above the YAML, if it is there."""
    if not isinstance(named, str) or not named:
        return None
    folder = beside.absolute().parent
    return next((root / named for root in (Path(), folder, *folder.parents) if (root / named).exists()), None)


def _section(kind: type[Section], values: Mapping[str, Any]) -> Section:
    """Take a dataclass's fields from a mapping; other entries belong to training and are left."""
    names = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: _tuples(value) for name, value in values.items() if name in names})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
