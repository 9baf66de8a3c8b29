"""T5 text encoder (docs/model.md#text-encoder), with the published checkpoint's names."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from flowsep_ref.config import TextConfig
from flowsep_ref.layers import attend, mask_bias


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, statistics in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight.float()


class SelfAttention(nn.Module):
    """Unscaled multi-head attention with an additive position bias."""

    def __init__(self, config: TextConfig, has_bias_table: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias_table:
            self.relative_attention_bias = nn.Embedding(
                config.relative_attention_num_buckets, config.num_heads
            )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`x [B, N, D]`, `bias [B, H, N, N]` to `[B, N, D]`."""
        q, k, v = (
            layer(x.to(layer.weight.dtype)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        return self.o(attend(q, k, v, bias).transpose(1, 2).flatten(2))


class AttentionLayer(nn.Module):
    """x + SelfAttention(RMSNorm(x)); the residual stream is float32."""

    def __init__(self, config: TextConfig, has_bias_table: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_bias_table)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias).float()


class GatedFeedForward(nn.Module):
    """wo(gelu_tanh(wi_0 x) · wi_1 x)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.wi_0(x.to(self.wi_0.weight.dtype)), approximate="tanh") * self.wi_1(
            x.to(self.wi_1.weight.dtype)
        )
        return self.wo(h.to(self.wo.weight.dtype))


class FeedForwardLayer(nn.Module):
    """x + feed-forward(RMSNorm(x)); the residual stream is float32."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x)).float()


class Block(nn.Module):
    """One encoder layer."""

    def __init__(self, config: TextConfig, has_bias_table: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, has_bias_table), FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        return feed_forward(attention(x, bias))


class Stack(nn.Module):
    """The encoder's blocks; block 0 holds the relative-position table that all of them use."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, has_bias_table=i == 0) for i in range(config.num_layers))
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)


class TextEncoder(nn.Module):
    """Token ids and mask to hidden states of all positions."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config)
        self.buckets: Tensor
        buckets = relative_position_buckets(
            config.max_length, config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        self.register_buffer("buckets", torch.from_numpy(buckets), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`input_ids [B, 50]`, `attention_mask [B, 50]` (0/1) to `[B, 50, D]` float32."""
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias  # type: ignore[union-attr,index]
        position_bias = table(self.buckets).float().permute(2, 0, 1)[None]
        # the lowest finite number plus a position bias can overflow to -inf; -inf is a masked
        # position all the same unless a whole row is masked, which a query's </s> rules out
        bias = torch.clamp(position_bias + mask_bias(attention_mask), min=torch.finfo(torch.float32).min)
        x = self.shared(input_ids).float()
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> NDArray[np.int64]:
    """Bidirectional T5 buckets `[length, length]` of key position minus query position.

    Half of the buckets for either direction; of these the first half one a distance, the rest
    logarithmically wider up to `max_distance`.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    magnitude = np.abs(distance)
    # float32, as the published encoder: the borders of the logarithmic buckets depend on it
    logarithm = np.log(np.maximum(magnitude, 1).astype(np.float32) / np.float32(exact))
    wide = exact + (logarithm / np.float32(math.log(max_distance / exact)) * (half - exact)).astype(np.int64)
    bucket = np.where(magnitude < exact, magnitude, np.minimum(wide, half - 1))
    return (bucket + np.where(distance > 0, half, 0)).astype(np.int64)
