"""The velocity network (docs/model.md#velocity-network).

`forward` is the published function.  It is split where a solver profits: `mixture_features`,
`time_features` and `text_features` hold what does not depend on the moving `x_t`, so they can be
computed once a separation, and `step` is what remains inside the loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowsep_ref.config import UNetConfig
from flowsep_ref.layers import GroupNorm, Upsample, mask_bias
from flowsep_ref.transformer import KeysValues, SpatialTransformer

EPS = 1e-5


class ResidualBlock(nn.Module):
    """GroupNorm · SiLU · conv, plus the time's shift, GroupNorm · SiLU · conv, plus the input."""

    def __init__(self, c_in: int, c_out: int, emb_dim: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(c_in, EPS), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, c_out))
        # index 2 was dropout in the published code
        self.out_layers = nn.Sequential(
            GroupNorm(c_out, EPS), nn.SiLU(), nn.Identity(), nn.Conv2d(c_out, c_out, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """`x [B, C_in, t, f]`, `shift [B, C_out]` (of `emb_layers`) to `[B, C_out, t, f]`."""
        h = self.in_layers(x) + shift[:, :, None, None].to(x.dtype)
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Conv 3×3 of stride 2, padded by one on every side (unlike the VAE's)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class UNet(nn.Module):
    """v(x_t, t | mixture, text): `[B, 8, t, 16]`."""

    def __init__(self, config: UNetConfig, latent_channels: int = 8) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        base = config.model_channels
        emb_dim = 4 * base

        def residual(c_in: int, c_out: int) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, emb_dim)

        def attention(channels: int) -> list[nn.Module]:
            return [
                SpatialTransformer(channels, config.num_head_channels, context_dim=None),
                SpatialTransformer(channels, config.num_head_channels, config.context_dim),
            ]

        self.time_frequencies: Tensor
        half = base // 2
        frequencies = np.exp(-math.log(10000.0) * np.arange(half, dtype=np.float32) / np.float32(half))
        self.register_buffer("time_frequencies", torch.from_numpy(frequencies), persistent=False)
        self.time_embed = nn.Sequential(nn.Linear(base, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))

        def site(c_in: int, c_out: int, factor: int) -> list[nn.Module]:
            """A residual block and, at the resolutions that have it, attention."""
            has_attention = factor in config.attention_resolutions
            return [residual(c_in, c_out), *(attention(c_out) if has_attention else [])]

        conv_in = nn.Conv2d(config.in_channels, base, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([conv_in])])
        channels, skips, factor, last = base, [base], 1, len(config.channel_mult) - 1
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(nn.ModuleList(site(channels, mult * base, factor)))
                channels = mult * base
                skips.append(channels)
            if level < last:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)
                factor *= 2

        self.middle_block = nn.ModuleList(
            [residual(channels, channels), *attention(channels), residual(channels, channels)]
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                block = site(channels + skips.pop(), mult * base, factor)
                channels = mult * base
                if level > 0 and i == config.num_res_blocks:
                    block.append(Upsample(channels))
                    factor //= 2
                self.output_blocks.append(nn.ModuleList(block))

        self.out = nn.Sequential(
            GroupNorm(base, EPS), nn.SiLU(), nn.Conv2d(base, config.out_channels, 3, padding=1)
        )

    @property
    def conv_in(self) -> nn.Conv2d:
        """The first convolution, of `concat([x_t, mixture latent])`."""
        return self.input_blocks[0][0]  # type: ignore[index]

    def _layers(self) -> Iterator[nn.Module]:
        for blocks in (self.input_blocks, [self.middle_block], self.output_blocks):
            for block in blocks:
                yield from block  # type: ignore[misc]

    def residual_blocks(self) -> list[ResidualBlock]:
        """Residual blocks in the order of use: the order of `time_features`."""
        return [layer for layer in self._layers() if isinstance(layer, ResidualBlock)]

    def text_attentions(self) -> list[SpatialTransformer]:
        """The transformers that attend to the text, in the order of use: the order of `text_features`."""
        return [
            layer for layer in self._layers() if isinstance(layer, SpatialTransformer) and layer.has_context
        ]

    def mixture_features(self, mixture_latent: Tensor) -> Tensor:
        """The mixture's share of the first convolution: `[B, 8, t, 16]` to `[B, C, t, 16]`."""
        weight = self.conv_in.weight[:, self.latent_channels :]
        return F.conv2d(mixture_latent.to(weight.dtype), weight, self.conv_in.bias, padding=1)

    def time_features(self, t: Tensor) -> list[Tensor]:
        """Every residual block's shift at times `t [B]` in [0, 1]: a list of `[B, C]`."""
        phase = t.float()[:, None] * self.time_frequencies
        emb = self.time_embed(torch.cat([phase.cos(), phase.sin()], dim=-1))
        return [block.emb_layers(emb) for block in self.residual_blocks()]

    def text_features(self, text: Tensor) -> list[KeysValues]:
        """Every text attention's keys and values for hidden states `text [B, M, D]`."""
        return [
            site.block.attn2.keys_values(text.to(site.block.attn2.to_k.weight.dtype))
            for site in self.text_attentions()
        ]

    def step(
        self, x: Tensor, mixture: Tensor, time: list[Tensor], text: list[KeysValues], bias: Tensor
    ) -> Tensor:
        """The velocity at `x [B, 8, t, 16]`, given the three kinds of features and `mask_bias(mask)`."""
        shifts, contexts = iter(time), iter(text)

        def run(layers: nn.ModuleList, h: Tensor) -> Tensor:
            for layer in layers:
                if isinstance(layer, ResidualBlock):
                    h = layer(h, next(shifts))
                elif isinstance(layer, SpatialTransformer) and layer.has_context:
                    h = layer(h, next(contexts), bias)
                else:
                    h = layer(h)
            return h

        weight = self.conv_in.weight[:, : self.latent_channels]
        h = F.conv2d(x.to(weight.dtype), weight, padding=1) + mixture
        skips = [h]
        for block in self.input_blocks[1:]:
            h = run(block, h)  # type: ignore[arg-type]
            skips.append(h)
        h = run(self.middle_block, h)
        for block in self.output_blocks:
            h = run(block, torch.cat([h, skips.pop()], dim=1))  # type: ignore[arg-type]
        # the upper half of the output channels has no use
        norm, silu, conv = self.out
        return F.conv2d(
            silu(norm(h)),
            conv.weight[: self.latent_channels],  # type: ignore[index]
            conv.bias[: self.latent_channels],  # type: ignore[index]
            padding=1,
        )

    def forward(self, x: Tensor, mixture_latent: Tensor, t: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The velocity at `x`, time `t [B]`, for hidden states `text [B, M, D]` and their 0/1 mask."""
        return self.step(
            x,
            self.mixture_features(mixture_latent),
            self.time_features(t),
            self.text_features(text),
            mask_bias(mask),
        )
