"""BigVGAN vocoder: log-mel to waveform (docs/model.md#vocoder)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowsep_ref.config import VocoderConfig

TAPS = 12


class SnakeBeta(nn.Module):
    """x + sin²(e^α x) / (e^β + 1e-9), one α and one β a channel, in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha.float().exp()[:, None]
        inverse_beta = (1.0 / (self.beta.float().exp() + 1e-9))[:, None]
        h = x.float()
        return (h + inverse_beta * torch.sin(alpha * h).square()).to(x.dtype)


class LowPass(nn.Module):
    """Holds the taps of the ×2 resampling filter, a checkpoint entry `[1, 1, 12]`."""

    def __init__(self) -> None:
        super().__init__()
        self.filter: Tensor
        self.register_buffer("filter", kaiser_sinc_taps())


class Upsample(LowPass):
    """Twice the rate: `[B, C, L]` to `[B, C, 2L]`."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        x = F.pad(x, (5, 5), mode="replicate")
        taps = self.filter.to(x.dtype).expand(channels, -1, -1)
        return 2.0 * F.conv_transpose1d(x, taps, stride=2, groups=channels)[..., 15:-15]


class Downsample(nn.Module):
    """Half the rate: `[B, C, 2L]` to `[B, C, L]`."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = LowPass()

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        x = F.pad(x, (5, 6), mode="replicate")
        taps = self.lowpass.filter.to(x.dtype).expand(channels, -1, -1)
        return F.conv1d(x, taps, stride=2, groups=channels)


class AntiAliasedSnake(nn.Module):
    """The snake at twice the rate, so that the harmonics it makes do not fold back: length kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.upsample = Upsample()
        self.downsample = Downsample()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.act(self.upsample(x)))


class AMPBlock(nn.Module):
    """Anti-aliased multi-periodicity block: a residual pair of convolutions a dilation."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2)
            for d in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations
        )
        self.activations = nn.ModuleList(AntiAliasedSnake(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv1, conv2) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            h = conv1(self.activations[2 * i](x))
            x = x + conv2(self.activations[2 * i + 1](h))
        return x


class Vocoder(nn.Module):
    """Log-mel `[B, T, 64]` to waveform `[B, 160·T + 32]` in [-1, 1]."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.num_kernels = len(config.resblock_kernel_sizes)
        widths = [config.upsample_initial_channel // 2**i for i in range(len(config.upsample_rates) + 1)]
        self.conv_pre = nn.Conv1d(config.num_mels, widths[0], 7, padding=3)
        # lists of one: the published names have a second index
        self.ups = nn.ModuleList(
            nn.ModuleList([nn.ConvTranspose1d(c_in, c_out, k, stride, padding=(k - stride) // 2)])
            for c_in, c_out, k, stride in zip(
                widths[:-1], widths[1:], config.upsample_kernel_sizes, config.upsample_rates, strict=True
            )
        )
        self.resblocks = nn.ModuleList(
            AMPBlock(width, kernel, dilations)
            for width in widths[1:]
            for kernel, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            )
        )
        self.activation_post = AntiAliasedSnake(widths[-1])
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def forward(self, log_mel: Tensor) -> Tensor:
        x = self.conv_pre(log_mel.transpose(1, 2))
        for i, up in enumerate(self.ups):
            x = self.amp(i, up[0](x))  # type: ignore[index]
        return torch.tanh(self.conv_post(self.activation_post(x)))[:, 0]

    def amp(self, level: int, x: Tensor) -> Tensor:
        """The mean of a level's AMP blocks."""
        blocks = self.resblocks[level * self.num_kernels : (level + 1) * self.num_kernels]
        mean: Tensor = sum((block(x) for block in blocks[1:]), start=blocks[0](x)) / self.num_kernels
        return mean


def kaiser_sinc_taps() -> Tensor:
    """BigVGAN's ×2 low-pass `[1, 1, 12]`: a Kaiser-windowed sinc of cut-off ¼, half width 0.3.

    Only a model that is trained from nothing needs it; a checkpoint brings its own taps.
    """
    cutoff, half_width = 0.25, 0.3
    attenuation = 2.285 * (TAPS // 2 - 1) * np.pi * 4 * half_width + 7.95
    beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    time = np.arange(-TAPS // 2, TAPS // 2) + 0.5
    taps = 2 * cutoff * np.kaiser(TAPS, beta) * np.sinc(2 * cutoff * time)
    return torch.from_numpy((taps / taps.sum()).astype(np.float32)).reshape(1, 1, TAPS)
