"""Nearest ×2 and conv 3×3 in one transposed convolution of 4×4, stride 2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowsep_export.rewrites import Module, replaced
from flowsep_ref.layers import Upsample

# Along one axis, output 2i reads the inputs i-1 (tap 0) and i (taps 1, 2), output 2i+1 the inputs i
# (taps 0, 1) and i+1 (tap 2).  A transposed convolution of stride 2 and padding 1 adds input i, times
# its tap k, to output 2i - 1 + k: so the four taps are sums of the three.
SUMS = ((2,), (1, 2), (0, 1), (0,))


def transposed_weight(weight: Tensor) -> Tensor:
    """`[C_out, C_in, 3, 3]` of the convolution to `[C_in, C_out, 4, 4]` of the transposed one."""
    rows = torch.stack([sum(weight.float()[:, :, k] for k in taps) for taps in SUMS], dim=2)  # type: ignore[misc]
    both = torch.stack([sum(rows[:, :, :, k] for k in taps) for taps in SUMS], dim=3)  # type: ignore[misc]
    return both.transpose(0, 1).to(weight.dtype).contiguous()


class TransposedUpsample(nn.Module):
    """`flowsep_ref.layers.Upsample` with four ninths of its multiplications: `[B, C, t, f]` to
    `[B, C, 2t, 2f]`."""

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        self.weight = nn.Parameter(transposed_weight(upsample.conv.weight.detach()), requires_grad=False)
        self.bias = upsample.conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


def transpose_upsamples(root: Module) -> Module:
    """The pass."""
    return replaced(root, Upsample, TransposedUpsample)
