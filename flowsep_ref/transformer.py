"""Spatial transformer of the velocity network (docs/model.md#velocity-network)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from flowsep_ref.layers import GroupNorm, LayerNorm, attend

#: Keys and values of one cross-attention, each `[B, M, C]`.
KeysValues = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention of `x [B, N, C]` to itself or to a context `[B, M, D]`."""

    def __init__(self, channels: int, context_dim: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def keys_values(self, context: Tensor) -> KeysValues:
        """Keys and values of a context `[B, M, D]`; for text they never change inside the solver loop."""
        return self.to_k(context), self.to_v(context)

    def forward(self, x: Tensor, keys_values: KeysValues | None = None, bias: Tensor | None = None) -> Tensor:
        k, v = keys_values or self.keys_values(x)
        q, k, v = (h.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for h in (self.to_q(x), k, v))
        h = attend(q, k, v, bias, scale=self.head_width**-0.5)
        return self.to_out[0](h.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """a · gelu(gate), both from one projection."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        a, gate = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # index 1 was dropout in the published code: its names jump from 0 to 2
        self.net = nn.ModuleList(
            [GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text (or again to itself), feed-forward, each residual."""

    def __init__(self, channels: int, context_dim: int, head_width: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, head_width)
        self.ff = FeedForward(channels)
        self.attn2 = Attention(channels, context_dim, head_width)
        self.norm1 = LayerNorm(channels)
        self.norm2 = LayerNorm(channels)
        self.norm3 = LayerNorm(channels)

    def forward(self, x: Tensor, keys_values: KeysValues | None, bias: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), keys_values, bias)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """One transformer block over the positions of `[B, C, t, f]`.

    With `context_dim=None` its second attention is self-attention as well: the first of the two
    transformers at every site of the published network.
    """

    def __init__(self, channels: int, head_width: int, context_dim: int | None) -> None:
        super().__init__()
        self.has_context = context_dim is not None
        self.norm = GroupNorm(channels, 1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, context_dim or channels, head_width)]
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)

    @property
    def block(self) -> TransformerBlock:
        """The only block (the published names have an index)."""
        return self.transformer_blocks[0]  # type: ignore[return-value]

    def forward(self, x: Tensor, keys_values: KeysValues | None = None, bias: Tensor | None = None) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        h = self.block(h, keys_values, bias)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))
