"""The nine graphs of a bundle: their modules, example inputs and names.

A graph is a row of the table that `graphs` returns. The graphs of each stage and the names of their inputs
and outputs are defined by the runtime (`flowsep_runtime.bundle.manifest`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.export import Dim

from flowsep_export.rewrites.fourier import FoldedFrontEnd
from flowsep_export.rewrites.snake import Sine
from flowsep_export.rewrites.upsample import transpose_upsamples
from flowsep_export.rewrites.vocoder import PlanarVocoder
from flowsep_ref import FlowSep, FlowSepConfig
from flowsep_ref.layers import mask_bias

EXAMPLE_BATCH = 2
EXAMPLE_GROUPS = 3  # of `frame_multiple` mel frames; not 1, which torch.export would take for a constant


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; a text in `shape` names a dynamic axis or gives its length as a formula."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Graph:
    """One ONNX file: a module with its inputs and outputs."""

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, object] = field(repr=False)  # what torch.export wants to know of each dynamic axis
    sizes: Mapping[str, int] = field(repr=False)  # of the example

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace the graph with."""
        return tuple(
            torch.zeros([self.sizes[d] if isinstance(d, str) else d for d in spec.shape], dtype=spec.dtype)
            for spec in self.inputs
        )

    def dynamic_shapes(self) -> tuple[dict[int, object], ...]:
        """The dynamic axes of each input, in the form of `torch.export.export`."""
        return tuple(
            {i: self.axes[d] for i, d in enumerate(spec.shape) if isinstance(d, str)} for spec in self.inputs
        )


class EncodeMixture(nn.Module):
    """Log-mel to the scaled posterior's mean and standard deviation."""

    def __init__(self, model: FlowSep) -> None:
        super().__init__()
        self.vae = model.vae
        self.scale_factor = model.scale_factor

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.vae.encode(log_mel.to(self.vae.encoder.conv_in.weight.dtype))
        return self.scale_factor * mean.float(), self.scale_factor * torch.exp(0.5 * logvar.float())


class VelocityText(nn.Module):
    """Features of a query for the velocity network: its keys and values, and the mask's bias."""

    def __init__(self, model: FlowSep) -> None:
        super().__init__()
        self.unet = model.unet

    def forward(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        features = [tensor for pair in self.unet.text_features(text) for tensor in pair]
        return torch.cat(features, dim=-1).float(), mask_bias(mask)


class VelocityMixture(nn.Module):
    """Features of the mixture for the velocity network: its part of the first convolution."""

    def __init__(self, model: FlowSep) -> None:
        super().__init__()
        self.unet = model.unet

    def forward(self, mixture_latent: Tensor) -> Tensor:
        return self.unet.mixture_features(mixture_latent).float()


class VelocityTime(nn.Module):
    """Features of times for the velocity network: every residual block's shift, side by side."""

    def __init__(self, model: FlowSep) -> None:
        super().__init__()
        self.unet = model.unet

    def forward(self, t: Tensor) -> Tensor:
        return torch.cat(self.unet.time_features(t), dim=-1)


class Velocity(nn.Module):
    """The part of the velocity network that a solver repeats."""

    def __init__(self, model: FlowSep) -> None:
        super().__init__()
        self.unet = transpose_upsamples(model.unet)

    @cached_property
    def time_widths(self) -> list[int]:
        """Channels of every residual block's shift."""
        return [block.out_layers[-1].out_channels for block in self.unet.residual_blocks()]  # type: ignore[misc]

    @cached_property
    def text_widths(self) -> list[int]:
        """Channels of the keys (and again of the values) of every text attention."""
        return [site.block.attn2.to_k.out_features for site in self.unet.text_attentions()]

    def forward(
        self,
        x: Tensor,
        mixture_features: Tensor,
        time_features: Tensor,
        keys_values: Tensor,
        mask_bias: Tensor,
    ) -> Tensor:
        dtype = self.unet.conv_in.weight.dtype
        widths = [width for width in self.text_widths for _ in ("keys", "values")]
        context = keys_values.to(dtype).split(widths, dim=-1)
        velocity = self.unet.step(
            x,
            mixture_features.to(dtype),
            list(time_features.split(self.time_widths, dim=-1)),
            list(zip(context[::2], context[1::2], strict=True)),
            mask_bias,
        )
        return velocity.float()


class DecodeLatent(nn.Module):
    """Scaled latent to log-mel."""

    def __init__(self, model: FlowSep) -> None:
        super().__init__()
        self.vae = transpose_upsamples(model.vae)
        self.scale_factor = model.scale_factor

    def forward(self, latent: Tensor) -> Tensor:
        return self.vae.decode((latent / self.scale_factor).to(self.vae.post_quant_conv.weight.dtype)).float()


class Vocode(nn.Module):
    """Log-mel to waveform."""

    def __init__(self, model: FlowSep, sine: Sine) -> None:
        super().__init__()
        self.dtype = model.vocoder.conv_pre.weight.dtype
        self.vocoder = PlanarVocoder(model.vocoder, sine)

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.vocoder(log_mel.to(self.dtype)).float()


def vocoder_tail(config: FlowSepConfig) -> int:
    """Extra samples at the end of the vocoder's output: 32 as published (docs/model.md#vocoder)."""
    length = frames = 64
    for stride, kernel in zip(
        config.vocoder.upsample_rates, config.vocoder.upsample_kernel_sizes, strict=True
    ):
        length = (length - 1) * stride + kernel - 2 * ((kernel - stride) // 2)
    return length - frames * config.audio.hop_length


#: Backend -> the graphs of which a bundle has a variant for it.
VARIANTS: Mapping[str, tuple[str, ...]] = {"openvino": ("vocode",)}


def graphs(model: FlowSep, backend: str | None = None) -> dict[str, Graph]:
    """The table, for one model's sizes and weights; the weights are shared, not copied.

    Args:
        model: what to export.
        backend: a key of `VARIANTS`, for that backend's variants of its graphs; None for the common graphs.
    """
    sine: Sine = "cosine" if backend is None else "polynomial"
    config = model.config
    tokens, mels, channels = config.text.max_length, config.audio.n_mel_channels, config.latent_channels
    tail = vocoder_tail(config)
    velocity = Velocity(model)

    batch, steps, groups = Dim("batch"), Dim("steps"), Dim("groups")
    latent_multiple = config.frame_multiple // config.latent_stride
    clip_multiple = config.frame_multiple * config.audio.hop_length
    axes: dict[str, object] = {
        "batch": batch,
        "steps": steps,
        "t": latent_multiple * groups,
        "frames": config.frame_multiple * groups,
        "samples": clip_multiple * groups,
    }
    sizes = {
        "batch": EXAMPLE_BATCH,
        "steps": 3,
        "t": latent_multiple * EXAMPLE_GROUPS,
        "frames": config.frame_multiple * EXAMPLE_GROUPS,
        "samples": clip_multiple * EXAMPLE_GROUPS,
    }

    def latent(name: str, width: int = channels) -> TensorSpec:
        return TensorSpec(name, ("batch", width, "t", config.latent_frequencies))

    log_mel = TensorSpec("log_mel", ("batch", "frames", mels))
    text = TensorSpec("text", ("batch", tokens, config.text.d_model))
    keys_values = TensorSpec("keys_values", ("batch", tokens, 2 * sum(velocity.text_widths)))
    bias = TensorSpec("mask_bias", ("batch", 1, 1, tokens))
    mixture_features = latent("mixture_features", config.unet.model_channels)
    shifts = sum(velocity.time_widths)

    def graph(
        name: str, module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> Graph:
        return Graph(name, module.eval(), inputs, outputs, axes, sizes)

    ids = tuple(TensorSpec(name, ("batch", tokens), torch.int64) for name in ("input_ids", "attention_mask"))
    table = [
        graph(
            "log_mel",
            FoldedFrontEnd(model.front_end),
            (TensorSpec("waveform", ("batch", "samples")),),
            (log_mel,),
        ),
        graph("encode_text", model.text_encoder, ids, (text,)),
        graph("encode_mixture", EncodeMixture(model), (log_mel,), (latent("mean"), latent("std"))),
        graph(
            "velocity_text",
            VelocityText(model),
            (text, TensorSpec("mask", ("batch", tokens))),
            (keys_values, bias),
        ),
        graph("velocity_mixture", VelocityMixture(model), (latent("mixture_latent"),), (mixture_features,)),
        graph(
            "velocity_time",
            VelocityTime(model),
            (TensorSpec("t", ("steps",)),),
            (TensorSpec("time_features", ("steps", shifts)),),
        ),
        graph(
            "velocity",
            velocity,
            (
                latent("x"),
                mixture_features,
                TensorSpec("time_features", ("batch", shifts)),
                keys_values,
                bias,
            ),
            (latent("velocity"),),
        ),
        graph("decode_latent", DecodeLatent(model), (latent("latent"),), (log_mel,)),
        graph(
            "vocode",
            Vocode(model, sine),
            (log_mel,),
            (TensorSpec("waveform", ("batch", f"{config.audio.hop_length}*frames + {tail}")),),
        ),
    ]
    return {entry.name: entry for entry in table}
