"""The anti-aliased snake in polyphase form, with two forms of the squared sine.

The published form goes up to twice the rate by a transposed convolution, which a backend runs as
matrix products over zeros, and down by a strided one.  Even and odd samples at the high rate are two
plain convolutions at the low rate, the snake does not mix samples, and the way down is two more: as rows of
one image, both are one.
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

#: Form of sin². `cosine`: (1 - cos 2v) / 2, one vectorised function of ONNX Runtime's. `polynomial`: Round
#: and a polynomial in plain operations, for backends that fuse those and run cosines one by one.
Sine = Literal["cosine", "polynomial"]

END = 2**63 - 1
op: Any = opset20  # its stubs have no place for the values of a graph in the making
#: Coefficients of the polynomial in the square of the distance to the nearest zero; 2e-8 from sin².
DEGREE = 6


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
    """`flowsep_ref.vocoder.AntiAliasedSnake` in polyphase form, on `[B, C, 1, L]` (length kept).

    Up: with taps f and x repeated beyond its ends, y[2i] = 2 Σ_a f[11-2a] x[i-3+a] and
    y[2i+1] = 2 Σ_a f[10-2a] x[i-2+a], a = 0 … 5.  Down: z[i] = Σ_a g[2a+1] s[2(i-2+a)] +
    g[2a] s[2(i-3+a)+1]; beyond the ends s repeats its first sample, an even one, and its last, an odd one.

    Even and odd samples are the two rows of an image, and all filters have a seventh tap, zero, so that they
    start at one place: each way is one convolution.

    The factor of the sine's argument lies in the taps of the way up and is taken back in those of the way
    down, so that between them there is one multiplication by a channel's constant.
    """

    up: Tensor
    down: Tensor
    bend: Tensor

    def __init__(self, snake: AntiAliasedSnake, sine: Sine) -> None:
        super().__init__()
        self.sine = sine
        alpha = snake.act.alpha.detach().double().exp()
        inverse_beta = 1.0 / (snake.act.beta.detach().double().exp() + 1e-9)
        factor = 2.0 * alpha if sine == "cosine" else alpha / np.pi
        up = 2.0 * snake.upsample.filter.detach().double().flatten().flip(0)
        down = snake.downsample.lowpass.filter.detach().double().flatten()
        # The way up sees the signal between two rows of zeros and gives two rows: its own second row makes
        # the upper one, the even samples.
        self._constant("up", factor, F.pad(up[1::2], (1, 0)), F.pad(up[0::2], (0, 1)))
        self._constant("down", 1.0 / factor, F.pad(down[1::2], (1, 0)), F.pad(down[0::2], (0, 1)))
        # y + sin²(αy)/β, times `factor`: u + bend · (2 sin² or sin²) of the scaled y
        bend = factor * inverse_beta * (0.5 if sine == "cosine" else 1.0)
        self.register_buffer("bend", bend[:, None, None].float().contiguous())

    def _constant(self, name: str, scale: Tensor, *rows: Tensor) -> None:
        """Taps `[C, 1, 2, 7]`."""
        taps = scale[:, None, None, None] * torch.stack(rows)
        self.register_buffer(name, taps.float().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.up.to(x.dtype), self.down.to(x.dtype)
        return polyphase_snake(x, up, down, self.bend, self.sine == "polynomial")


@torch.library.custom_op("flowsep::polyphase_snake", mutates_args=())
def polyphase_snake(x: Tensor, up: Tensor, down: Tensor, bend: Tensor, polynomial: bool) -> Tensor:
    """`PolyphaseSnake`'s arithmetic as one operator: a vocoder has a hundred, of thirty operations each, and
    torch.export takes milliseconds for every operation, several times over.

    Args:
        x: `[B, C, 1, L]`.
        up, down: taps `[C, 1, 2, 7]` of x's dtype.
        bend: `[C, 1, 1]`, float32; between the ways up and down all is float32.
        polynomial: whether the sine is a polynomial.
    """
    channels = x.shape[1]
    first, last = x[..., :1], x[..., -1:]
    padded = torch.cat([first] * 3 + [x] + [last] * 3, dim=-1)
    u = F.conv2d(padded, up, padding=(1, 0), groups=channels).float()
    s = u + bend * (_sin_squared_by_polynomial(u) if polynomial else 1.0 - torch.cos(u))
    first, last = s[..., :1, :1], s[..., 1:, -1:]
    first, last = torch.cat([first] * 2, dim=-2), torch.cat([last] * 2, dim=-2)
    padded = torch.cat([first] * 3 + [s] + [last] * 3, dim=-1).to(x.dtype)
    return F.conv2d(padded, down, groups=channels)


@polyphase_snake.register_fake
def _(x: Tensor, up: Tensor, down: Tensor, bend: Tensor, polynomial: bool) -> Tensor:
    return torch.empty_like(x)


def _sin_squared_by_polynomial(u: Tensor) -> Tensor:
    """sin²(πu)."""
    d = u - torch.round(u)
    s = d * d
    coefficients, _ = sin_squared_polynomial()
    p = torch.full_like(s, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = p * s + c
    return p * s


def polyphase_snake_onnx(
    x: ir.Value, up: ir.Value, down: ir.Value, bend: ir.Value, polynomial: bool
) -> ir.Value:
    """`polyphase_snake` in ONNX's operators, line by line."""
    half = x.dtype == ir.DataType.FLOAT16
    channels = bend.shape[0]  # type: ignore[index]

    def cut(x: ir.Value, axes: list[int], starts: list[int], ends: list[int]) -> ir.Value:
        return op.Slice(x, *(op.Constant(value_ints=each) for each in (starts, ends, axes)))

    def sin_squared(u: ir.Value) -> ir.Value:
        d = op.Sub(u, op.Round(u))
        s = op.Mul(d, d)
        coefficients, _ = sin_squared_polynomial()
        p = op.Constant(value_float=coefficients[-1])
        for c in reversed(coefficients[:-1]):
            p = op.Add(op.Mul(p, s), op.Constant(value_float=c))
        return op.Mul(p, s)

    first, last = cut(x, [-1], [0], [1]), cut(x, [-1], [-1], [END])
    u = op.Conv(op.Concat(*[first] * 3, x, *[last] * 3, axis=-1), up, group=channels, pads=[1, 0, 1, 0])
    u = op.Cast(u, to=ir.DataType.FLOAT) if half else u
    bent = sin_squared(u) if polynomial else op.Sub(op.Constant(value_float=1.0), op.Cos(u))
    s = op.Add(u, op.Mul(bend, bent))
    first, last = cut(s, [-2, -1], [0, 0], [1, 1]), cut(s, [-2, -1], [1, -1], [END, END])
    first, last = op.Concat(first, first, axis=-2), op.Concat(last, last, axis=-2)
    padded = op.Concat(*[first] * 3, s, *[last] * 3, axis=-1)
    return op.Conv(op.Cast(padded, to=ir.DataType.FLOAT16) if half else padded, down, group=channels)


#: Translation for `torch.onnx.export`.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.flowsep.polyphase_snake.default: polyphase_snake_onnx
}
