"""Variational autoencoder over log-mel images `[B, 1, T, 64]` (docs/model.md#vae)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowsep_ref.config import VAEConfig
from flowsep_ref.layers import GroupNorm, Upsample, attend

EPS = 1e-6


class ResidualBlock(nn.Module):
    """GroupNorm · swish · conv 3×3, twice, plus the input: `[B, C_in, T, F]` to `[B, C_out, T, F]`."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(c_in, EPS)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = GroupNorm(c_out, EPS)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head attention over all positions of `[B, C, T, F]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        h = attend(q, k, v, scale=x.shape[1] ** -0.5)
        return x + self.proj_out(h[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halve both axes; one row of zeros below and one column to the right, none above or left."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The residual blocks of one resolution and, but for the last level, a change of resolution."""

    def __init__(
        self, c_in: int, c_out: int, blocks: int, resample: type[Downsample | Upsample] | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(c_in if j == 0 else c_out, c_out) for j in range(blocks))
        # the published names
        if resample is Downsample:
            self.downsample = Downsample(c_out)
        elif resample is Upsample:
            self.upsample = Upsample(c_out)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Encoder(nn.Module):
    """Log-mel image `[B, 1, T, 64]` to moments `[B, 2·z, T/4, 16]` (before `quant_conv`)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(1, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(c_in, c_out, config.num_res_blocks, Downsample if i < len(widths) - 1 else None)
            for i, (c_in, c_out) in enumerate(zip([config.ch, *widths[:-1]], widths, strict=True))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = GroupNorm(widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent `[B, z, T/4, 16]` (after `post_quant_conv`) to log-mel image `[B, 1, T, 64]`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        # up[0] is the finest level: it is built and run last-to-first
        self.up = nn.ModuleList(
            Level(c_in, c_out, config.num_res_blocks + 1, Upsample if i > 0 else None)
            for i, (c_in, c_out) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = GroupNorm(config.ch, EPS)
        self.conv_out = nn.Conv2d(config.ch, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class VAE(nn.Module):
    """Encoder and decoder with the 1×1 convolutions around the latent; knows nothing of `scale_factor`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def encode(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """`log_mel [B, T, 64]` to mean and clamped log-variance, each `[B, 8, T/4, 16]`."""
        moments = self.quant_conv(self.encoder(log_mel[:, None]))
        mean, logvar = moments.chunk(2, dim=1)
        return mean, torch.clamp(logvar, -30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """`z [B, 8, T/4, 16]` to `log_mel [B, T, 64]`."""
        return self.decoder(self.post_quant_conv(z))[:, 0]
