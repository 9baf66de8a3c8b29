"""The anti-aliased snake in polyphase form, in two spellings of the sine.

The published form goes up to twice the rate by a transposed convolution, which an engine runs as
matrix products over zeros, and down by a strided one.  Even and odd samples at the high rate are two
plain convolutions at the low rate, the snake does not mix samples, and the way down is two more.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowsep_ref.vocoder import TAPS, AntiAliasedSnake

Spelling = Literal["cosine", "polynomial"]
"""How sin² is written.  `cosine`: (1 - cos 2v) / 2, one vectorised function of ONNX Runtime's.  `polynomial`:
Round and a polynomial in plain operations, for engines that fuse those and run cosines one by one."""

HALF = TAPS // 2
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
        first, last = x[..., :1], x[..., -1:]
        padded = torch.cat([first] * 3 + [x] + [last] * 3, dim=-1)
        even = self.snake(self.convolve(padded[..., :-1], self.up_even))
        odd = self.snake(self.convolve(padded[..., 1:], self.up_odd))
        first, last = even[..., :1], odd[..., -1:]
        even = torch.cat([first] * 2 + [even] + [last] * 3, dim=-1).to(x.dtype)
        odd = torch.cat([first] * 3 + [odd] + [last] * 2, dim=-1).to(x.dtype)
        return self.convolve(even, self.down_even) + self.convolve(odd, self.down_odd)

    def convolve(self, x: Tensor, taps: Tensor) -> Tensor:
        """One filter a channel, without padding."""
        return F.conv2d(x, taps.to(x.dtype), groups=x.shape[1])

    def snake(self, u: Tensor) -> Tensor:
        """The snake of a scaled signal, equally scaled, in float32."""
        u = u.float()
        if self.spelling == "cosine":
            return u + self.bend * (1.0 - torch.cos(u))
        d = u - torch.round(u)
        s = d * d
        coefficients, _ = sin_squared_polynomial()
        p = torch.full_like(s, coefficients[-1])
        for c in reversed(coefficients[:-1]):
            p = p * s + c
        return u + self.bend * (p * s)
