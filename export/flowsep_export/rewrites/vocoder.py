"""The vocoder with polyphase snakes, in images of height one.

Backends have fast two-dimensional convolutions; their one-dimensional ones are the same with reshapes
around each, or are slower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowsep_export.rewrites import replaced
from flowsep_export.rewrites.snake import PolyphaseSnake, Sine
from flowsep_ref.vocoder import AntiAliasedSnake, Vocoder


class PlanarConv(nn.Module):
    """A `Conv1d` on `[B, C, 1, L]`."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.padding, self.dilation = int(conv.padding[0]), conv.dilation[0]

    def forward(self, x: Tensor) -> Tensor:
        padding, dilation = (0, self.padding), (1, self.dilation)
        return F.conv2d(x, self.weight[:, :, None], self.bias, padding=padding, dilation=dilation)


class PlanarTransposedConv(nn.Module):
    """A `ConvTranspose1d` on `[B, C, 1, L]`."""

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding = conv.stride[0], int(conv.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        stride, padding = (1, self.stride), (0, self.padding)
        return F.conv_transpose2d(x, self.weight[:, :, None], self.bias, stride=stride, padding=padding)


class PlanarVocoder(nn.Module):
    """`flowsep_ref.vocoder.Vocoder` on images: log-mel `[B, T, 64]` to waveform `[B, 160·T + 32]`."""

    def __init__(self, vocoder: Vocoder, sine: Sine) -> None:
        super().__init__()
        planar = replaced(vocoder, AntiAliasedSnake, lambda snake: PolyphaseSnake(snake, sine))
        planar = replaced(planar, nn.Conv1d, PlanarConv)
        self.vocoder = replaced(planar, nn.ConvTranspose1d, PlanarTransposedConv)

    def forward(self, log_mel: Tensor) -> Tensor:
        x = self.vocoder.conv_pre(log_mel.transpose(1, 2)[:, :, None])
        for i, up in enumerate(self.vocoder.ups):
            x = self.vocoder.amp(i, up[0](x))  # type: ignore[index]
        return torch.tanh(self.vocoder.conv_post(self.vocoder.activation_post(x)))[:, 0, 0]
