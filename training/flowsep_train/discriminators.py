"""The two discriminators of the vocoder's adversarial training.

Sources of the arithmetic: multi-period, Kong et al. 2020 (HiFi-GAN, section 2.3); multi-resolution,
Jang et al. 2021 (UnivNet, section 2.2), which is what BigVGAN (Lee et al. 2023) uses; losses of
least squares with feature matching, HiFi-GAN section 2.4.  Widths are a parameter: the papers' 32
is for GPUs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

PERIODS = (2, 3, 5, 7, 11)
RESOLUTIONS = (256, 512, 1024)
SLOPE = 0.1


class Verdict(NamedTuple):
    """Scores `[B, n]` (1 real, 0 made) and the feature maps on the way there."""

    scores: Tensor
    features: list[Tensor]


class Column(nn.Module):
    """Convolutions over an image, each followed by a leaky ReLU, and one to the scores."""

    def __init__(self, layers: list[nn.Conv2d]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def forward(self, x: Tensor) -> Verdict:
        features = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        x = self.layers[-1](x)
        return Verdict(x.flatten(1), features)


class PeriodDiscriminator(nn.Module):
    """Discriminator of every `period`-th sample: the waveform folded into an image of that width."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        sizes = [1, width, 2 * width, 4 * width, 8 * width]
        layers = [nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)) for a, b in pairwise(sizes)]
        layers += [
            nn.Conv2d(sizes[-1], sizes[-1], (5, 1), 1, (2, 0)),
            nn.Conv2d(sizes[-1], 1, (3, 1), 1, (1, 0)),
        ]
        self.column = Column(layers)

    def forward(self, waveform: Tensor) -> Verdict:
        """`[B, S]`."""
        missing = -waveform.shape[-1] % self.period
        padded = F.pad(waveform[:, None], (0, missing), "reflect")
        return self.column(padded.unflatten(-1, (-1, self.period)))


class ResolutionDiscriminator(nn.Module):
    """Discriminator of the magnitudes of one short-time spectrum."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        layers = [nn.Conv2d(1, width, (3, 9), padding=(1, 4))]
        layers += [nn.Conv2d(width, width, (3, 9), (1, 2), (1, 4)) for _ in range(3)]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)]
        self.column = Column(layers)

    def forward(self, waveform: Tensor) -> Verdict:
        """`[B, S]`."""
        spectrum = torch.stft(
            waveform, self.size, self.size // 4, window=self.window, return_complex=True, pad_mode="reflect"
        )
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
        return self.column(magnitude.transpose(1, 2)[:, None])


class Discriminators(nn.Module):
    """All discriminators of both kinds."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        # a period discriminator grows to eight times its first width
        self.all = nn.ModuleList(
            [
                *(PeriodDiscriminator(period, max(width // 4, 1)) for period in PERIODS),
                *(ResolutionDiscriminator(size, width) for size in RESOLUTIONS),
            ]
        )

    def forward(self, waveform: Tensor) -> list[Verdict]:
        """`[B, S]` to one result for each discriminator."""
        return [judge(waveform) for judge in self.all]


def discriminator_loss(real: list[Verdict], made: list[Verdict]) -> Tensor:
    """Least squares: real is 1, made is 0."""
    terms = [
        (1 - r.scores).square().mean() + m.scores.square().mean() for r, m in zip(real, made, strict=True)
    ]
    return torch.stack(terms).sum()


def generator_loss(real: list[Verdict], made: list[Verdict]) -> tuple[Tensor, Tensor]:
    """Losses of the vocoder: pass for real, and match the features of real waveforms."""
    adversarial = torch.stack([(1 - m.scores).square().mean() for m in made]).sum()
    distances = [
        F.l1_loss(theirs, ours.detach())
        for r, m in zip(real, made, strict=True)
        for ours, theirs in zip(r.features, m.features, strict=True)
    ]
    return adversarial, torch.stack(distances).sum()
