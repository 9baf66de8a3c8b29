"""Layers that more than one network uses.

Normalisation statistics and softmax are computed in float32 whatever the tensors' type is: the
published code does so for the velocity network's GroupNorm, and a half-precision export needs it
everywhere.  On float32 tensors the casts do nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """Group normalisation over 32 groups in float32, `[B, C, …]` to `[B, C, …]`."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(32, channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(
            input.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps
        ).to(input.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last axis in float32."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(
            input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        ).to(input.dtype)


#: Scores of one head, from which on attention takes PyTorch's fused kernel: the VAE's over a whole clip.
LONG = 2**22


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """softmax(q·scale · kᵀ + bias) · v, with the softmax in float32.

    Args:
        q: queries `[B, H, N, D]`.
        k: keys `[B, H, M, D]`.
        v: values `[B, H, M, D]`.
        bias: added to the scores before the softmax, broadcastable to `[B, H, N, M]`.
        scale: applied to the queries, before the product: the pattern that inference engines fuse.

    Returns:
        `[B, H, N, D]`, of v's type.
    """
    if not torch.compiler.is_exporting() and bias is None and q.shape[-2] * k.shape[-2] > LONG:
        # the fused kernel never holds the N × M scores; for shorter ones it is no faster
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    if scale != 1.0:
        q = q * scale
    scores = (q @ k.transpose(-1, -2)).float()
    if bias is not None:
        # In this order: OpenVINO 2026.4 fuses an attention into one kernel, and in bf16 that kernel is wrong,
        # up to NaN, where the bias is the second operand and the queries are scaled (docs/rewrites.md).
        scores = bias + scores
    return scores.softmax(dim=-1).to(v.dtype) @ v


class Upsample(nn.Module):
    """Nearest ×2 on both axes of `[B, C, t, f]`, then conv 3×3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def mask_bias(mask: Tensor) -> Tensor:
    """The score bias of a 0/1 attention mask: `[B, M]` to float32 `[B, 1, 1, M]`.

    Masked positions get the most negative finite number, not -inf, so that a row with nothing to
    attend to stays finite (docs/model.md#velocity-network).
    """
    zero = torch.zeros((), dtype=torch.float32, device=mask.device)
    lowest = torch.full((), torch.finfo(torch.float32).min, device=mask.device)
    return torch.where(mask.bool(), zero, lowest)[:, None, None, :]
