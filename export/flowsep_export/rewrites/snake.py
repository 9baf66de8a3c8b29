"""The anti-aliased snake in polyphase form, in two spellings of the sine.

The published form goes up to twice the rate by a transposed convolution, which an engine runs as
matrix products over zeros, and down by a strided one.  Even and odd samples at the high rate are two
plain convolutions at the low rate, the snake does not mix samples, and the way down is two more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnxscript import opset20
from torch import Tensor, nn

from flowsep_ref.vocoder import AntiAliasedSnake

Spelling = Literal["cosine", "polynomial"]
"""How sin² is written.  `cosine`: (1 - cos 2v) / 2, one vectorised function of ONNX Runtime's.  `polynomial`:
Round and a polynomial in plain operations, for engines that fuse those and run cosines one by one."""

op: Any = opset20
"""ONNX's operators; their types are those of a script's own values, and not of the traced ones given here."""

END = 2**63 - 1
DEGREE = 6
"""Coefficients of the polynomial in the square of the distance to the nearest zero; 2e-8 from sin²."""


@cache
def sin_squared_polynomial(degree: int = DEGREE) -> tuple[tuple[float, ...], float]:
    """Coefficients c of sin²(πd) ≈ s · (c[0] + c[1] s + …), s = d², |d| ≤ ½, and the largest error.

    Chebyshev's nodes, where interpolation is close to the best polynomial there is.
    """
    nodes = 0.125 - 0.125 * np.cos(np.pi * (np.arange(4 * degree) + 0.5) / (4 * degree))
    fit = np.polynomial.Polynomial.fit(nodes, np.sin(np.pi * np.sqrt(nodes)) ** 2 / nodes, degree - 1)
    coefficients = fit.convert().coef
    s = np.linspace(0, 0.25, 10001)
    error = s * np.polynomial.polynomial.polyval(s, coefficients) - np.sin(np.pi * np.sqrt(s)) ** 2
    return tuple(float(c) for c in coefficients), float(np.abs(error).max())


class PolyphaseSnake(nn.Module):
    """What `flowsep_ref.vocoder.AntiAliasedSnake` computes, on `[B, C, 1, L]` (length kept).

    Up: with taps f and x repeated beyond its ends, y[2i] = 2 Σ_a f[11-2a] x[i-3+a] and
    y[2i+1] = 2 Σ_a f[10-2a] x[i-2+a], a = 0 … 5.  Down: z[i] = Σ_a g[2a+1] s[2(i-2+a)] +
    g[2a] s[2(i-3+a)+1]; beyond the ends s repeats its first sample, an even one, and its last, an odd one.

    The factor of the sine's argument lies in the taps of the way up and is taken back in those of the way
    down, so that between them there is one multiplication by a channel's constant.
    """

    up_even: Tensor
    up_odd: Tensor
    down_even: Tensor
    down_odd: Tensor
    bend: Tensor

    def __init__(self, snake: AntiAliasedSnake, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling
        alpha = snake.act.alpha.detach().double().exp()
        inverse_beta = 1.0 / (snake.act.beta.detach().double().exp() + 1e-9)
        factor = 2.0 * alpha if spelling == "cosine" else alpha / np.pi
        up = snake.upsample.filter.detach().double().flatten()
        down = snake.downsample.lowpass.filter.detach().double().flatten()
        # y + sin²(αy)/β, times `factor`: u + bend · (2 sin² or sin²) of the scaled y
        bend = factor * inverse_beta * (0.5 if spelling == "cosine" else 1.0)

        def constant(name: str, value: Tensor) -> None:
            self.register_buffer(name, value.float().contiguous())

        def taps(filter_: Tensor, scale: Tensor) -> Tensor:
            return scale[:, None, None, None] * filter_

        constant("up_even", taps(up.flip(0)[0::2], 2.0 * factor))
        constant("up_odd", taps(up.flip(0)[1::2], 2.0 * factor))
        constant("down_even", taps(down[1::2], 1.0 / factor))
        constant("down_odd", taps(down[0::2], 1.0 / factor))
        constant("bend", bend[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        taps = (self.up_even, self.up_odd, self.down_even, self.down_odd)
        return polyphase_snake(x, *(t.to(x.dtype) for t in taps), self.bend, self.spelling == "polynomial")


@torch.library.custom_op("flowsep::polyphase_snake", mutates_args=())
def polyphase_snake(
    x: Tensor,
    up_even: Tensor,
    up_odd: Tensor,
    down_even: Tensor,
    down_odd: Tensor,
    bend: Tensor,
    polynomial: bool,
) -> Tensor:
    """`PolyphaseSnake`'s arithmetic as one operator: a vocoder has a hundred, of sixty operations each, and
    torch.export takes milliseconds for every operation, several times over.

    Args:
        x: `[B, C, 1, L]`.
        up_even, up_odd, down_even, down_odd: taps `[C, 1, 1, 6]` of x's dtype.
        bend: `[C, 1, 1]`, float32; between the ways up and down all is float32.
        polynomial: the spelling.
    """
    snake = _bent_by_polynomial if polynomial else _bent_by_cosine
    first, last = x[..., :1], x[..., -1:]
    padded = torch.cat([first] * 3 + [x] + [last] * 3, dim=-1)
    even = snake(_filtered(padded[..., :-1], up_even).float(), bend)
    odd = snake(_filtered(padded[..., 1:], up_odd).float(), bend)
    first, last = even[..., :1], odd[..., -1:]
    even = torch.cat([first] * 2 + [even] + [last] * 3, dim=-1).to(x.dtype)
    odd = torch.cat([first] * 3 + [odd] + [last] * 2, dim=-1).to(x.dtype)
    return _filtered(even, down_even) + _filtered(odd, down_odd)


@polyphase_snake.register_fake
def _(
    x: Tensor,
    up_even: Tensor,
    up_odd: Tensor,
    down_even: Tensor,
    down_odd: Tensor,
    bend: Tensor,
    polynomial: bool,
) -> Tensor:
    return torch.empty_like(x)


def _filtered(x: Tensor, taps: Tensor) -> Tensor:
    """One filter a channel, without padding."""
    return F.conv2d(x, taps, groups=x.shape[1])


def _bent_by_cosine(u: Tensor, bend: Tensor) -> Tensor:
    return u + bend * (1.0 - torch.cos(u))


def _bent_by_polynomial(u: Tensor, bend: Tensor) -> Tensor:
    d = u - torch.round(u)
    s = d * d
    coefficients, _ = sin_squared_polynomial()
    p = torch.full_like(s, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = p * s + c
    return u + bend * (p * s)


def polyphase_snake_onnx(
    x: ir.Value,
    up_even: ir.Value,
    up_odd: ir.Value,
    down_even: ir.Value,
    down_odd: ir.Value,
    bend: ir.Value,
    polynomial: bool,
) -> ir.Value:
    """`polyphase_snake` in ONNX's operators, line by line."""
    half = x.dtype == ir.DataType.FLOAT16
    channels = bend.shape[0]  # type: ignore[index]

    def filtered(x: ir.Value, taps: ir.Value) -> ir.Value:
        return op.Conv(x, taps, group=channels)

    def cut(x: ir.Value, start: int, end: int) -> ir.Value:
        return op.Slice(x, op.Constant(value_ints=[start]), op.Constant(value_ints=[end]), last_axis)

    def snake(x: ir.Value, taps: ir.Value) -> ir.Value:
        u = filtered(x, taps)
        return bent(op.Cast(u, to=ir.DataType.FLOAT) if half else u)

    def bent(u: ir.Value) -> ir.Value:
        if not polynomial:
            return op.Add(u, op.Mul(bend, op.Sub(op.Constant(value_float=1.0), op.Cos(u))))
        d = op.Sub(u, op.Round(u))
        s = op.Mul(d, d)
        coefficients, _ = sin_squared_polynomial()
        p = op.Constant(value_float=coefficients[-1])
        for c in reversed(coefficients[:-1]):
            p = op.Add(op.Mul(p, s), op.Constant(value_float=c))
        return op.Add(u, op.Mul(bend, op.Mul(p, s)))

    def joined(parts: list[ir.Value]) -> ir.Value:
        whole = op.Concat(*parts, axis=-1)
        return op.Cast(whole, to=ir.DataType.FLOAT16) if half else whole

    last_axis = op.Constant(value_ints=[-1])
    first, last = cut(x, 0, 1), cut(x, -1, END)
    padded = op.Concat(*[first] * 3, x, *[last] * 3, axis=-1)
    even, odd = snake(cut(padded, 0, -1), up_even), snake(cut(padded, 1, END), up_odd)
    first, last = cut(even, 0, 1), cut(odd, -1, END)
    even, odd = joined([*[first] * 2, even, *[last] * 3]), joined([*[first] * 3, odd, *[last] * 2])
    return op.Add(filtered(even, down_even), filtered(odd, down_odd))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.flowsep.polyphase_snake.default: polyphase_snake_onnx
}
"""For `torch.onnx.export`."""
