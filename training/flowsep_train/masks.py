"""The loss of a mask: the error of a separation by masking, in a differentiable form.

A mask is the share of a time-frequency cell that belongs to the target.  It follows from the log-mel
spectrograms of a target and of everything else, and those from latents.  The decoder costs several
times as much as a small velocity network, so three convolutions that imitate it stand in for it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowsep_ref.vae import VAE
from flowsep_train.latents import LatentCache

#: Mel frames and mel bands of one place of a latent.
STRIDE = 4
WIDTH = 128
PIECES = 8
#: Log-mel of silence (docs/model.md#front-end): nothing is quieter.
QUIETEST = -11.5
TYPICAL_LOG_MEL = -7.0
#: Largest deviation of the noise on the latents that the imitation learns from, in theirs.
PERTURBED = 0.5


class DecoderImitation(nn.Module):
    """Unscaled latents `[B, 8, n, 16]` to log-mel `[B, 4n, 64]`, by three convolutions."""

    def __init__(self, channels: int = 8, width: int = WIDTH) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, STRIDE * STRIDE, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.silu(self.first(z))
        return F.pixel_shuffle(self.last(F.silu(self.middle(h))), STRIDE)[:, 0] + TYPICAL_LOG_MEL


def imitate(
    vae: VAE,
    cache: LatentCache,
    steps: int = 600,
    seed: int = 0,
) -> DecoderImitation:
    """Train an imitation of a decoder on the latents of a cache, clean and noisy.

    Args:
        vae: the decoder's autoencoder.
        cache: mixtures.
        steps: batches of eight pieces of 1.28 s.
        seed: of weights and pieces.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    imitation = DecoderImitation(cache.silence.shape[0])
    optimizer = torch.optim.AdamW(imitation.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
    deviation = 1 / cache.scale_factor()
    for _ in range(steps):
        pieces = [cache.piece(8, STRIDE, rng) for _ in range(PIECES // 2)]
        z = torch.stack([z for piece in pieces for z in (piece.mixture, piece.target)])
        noise = torch.from_numpy(rng.standard_normal(z.shape, np.float32))
        amount = torch.from_numpy(rng.uniform(0, PERTURBED, (len(z), 1, 1, 1)).astype(np.float32))
        z = (z + deviation * amount * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                wanted = vae.decode(z).float()
            error = (imitation(z).float() - wanted).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        decay.step()
    return imitation.requires_grad_(False).eval()


def mask_loss(target: Tensor, rest: Tensor, true_target: Tensor, true_rest: Tensor) -> Tensor:
    """Error of the target's share of the magnitude, weighted by the magnitude.

    All arguments are log-mel `[B, T, 64]`. The weights of an example add up to one, so that quiet and
    loud mixtures count alike; silence has no weight.

    Returns:
        A scalar between 0 and 1: the mean over examples of `sum(w * |share - true share|)`, smoothed
        near zero.
    """
    share = torch.sigmoid(target - rest)
    true_share = torch.sigmoid(true_target - true_rest)
    magnitude = true_target.exp() + true_rest.exp() - 2 * np.exp(QUIETEST)
    weight = magnitude.clamp(min=0)
    weight = weight / weight.sum((1, 2), keepdim=True).clamp(min=1e-3)
    error = F.smooth_l1_loss(share, true_share, reduction="none", beta=0.2)
    return (weight * error).sum((1, 2)).mean()
