"""Every rewritten module computes what the original computes, to float32 rounding, on random input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowsep_export.rewrites import replaced
from flowsep_export.rewrites.fourier import FoldedFrontEnd
from flowsep_export.rewrites.snake import DEGREE, PolyphaseSnake, Sine, sin_squared_polynomial
from flowsep_export.rewrites.upsample import TransposedUpsample, transpose_upsamples
from flowsep_export.rewrites.vocoder import PlanarVocoder
from flowsep_ref.config import AudioConfig, VocoderConfig
from flowsep_ref.layers import Upsample
from flowsep_ref.mel import FrontEnd
from flowsep_ref.vocoder import AntiAliasedSnake, Vocoder

ROUNDING = 2e-6
SINES: list[Sine] = ["cosine", "polynomial"]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


def snake(channels: int) -> AntiAliasedSnake:
    """A snake with different taps on the way up and down, so that swapping them shows."""
    module = AntiAliasedSnake(channels)
    nn.init.normal_(module.act.alpha, std=0.7)
    nn.init.normal_(module.act.beta, std=0.7)
    module.upsample.filter += 0.05 * torch.randn(1, 1, 12)
    module.downsample.lowpass.filter += 0.05 * torch.randn(1, 1, 12)
    return module


@torch.inference_mode()
@pytest.mark.parametrize("sine", SINES)
@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 64, 331])
def test_the_polyphase_snake_is_the_snake_ends_included(sine: Sine, length: int) -> None:
    original = snake(6)
    x = 3 * torch.randn(2, 6, length)
    rewritten = PolyphaseSnake(original, sine)(x[:, :, None])[:, :, 0]
    assert distance(rewritten, original(x)) < ROUNDING


@torch.inference_mode()
@pytest.mark.parametrize("sine", SINES)
def test_the_polyphase_snake_in_half_precision_is_as_exact_as_the_snake(sine: Sine) -> None:
    original = snake(6)
    x = torch.randn(2, 6, 200).half()
    exact = original(x.float())
    allowed = 2 * distance(original(x), exact)
    rewritten = PolyphaseSnake(original, sine)(x[:, :, None])[:, :, 0]
    assert rewritten.dtype == torch.float16
    assert 0 < distance(rewritten, exact) < allowed


def test_the_polynomial_is_the_squared_sine_to_an_ulp() -> None:
    coefficients, error = sin_squared_polynomial()
    assert len(coefficients) == DEGREE
    assert error < 2**-25


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (16, 5)])
def test_nearest_upsampling_and_a_convolution_are_one_transposed_convolution(shape: tuple[int, int]) -> None:
    original = Upsample(5)
    x = torch.randn(2, 5, *shape)
    assert distance(TransposedUpsample(original)(x), original(x)) < ROUNDING


@torch.inference_mode()
@pytest.mark.parametrize("sine", SINES)
@pytest.mark.parametrize("frames", [1, 9])
def test_the_planar_vocoder_is_the_vocoder(sine: Sine, frames: int) -> None:
    original = Vocoder(VocoderConfig(upsample_initial_channel=64)).eval()
    for name, parameter in original.named_parameters():
        nn.init.normal_(parameter, std=0.3 if name.endswith(("alpha", "beta")) else 0.05)
    log_mel = torch.randn(2, frames, 64)
    assert distance(PlanarVocoder(original, sine)(log_mel), original(log_mel)) < 2e-5


def test_a_pass_leaves_the_original_alone_and_copies_no_weight() -> None:
    original = nn.Sequential(nn.Conv2d(4, 5, 1), nn.Sequential(Upsample(5)))
    rewritten = transpose_upsamples(original)
    assert rewritten[0].weight is original[0].weight
    (upsample,) = (module for module in rewritten.modules() if isinstance(module, TransposedUpsample))
    (left,) = (module for module in original.modules() if isinstance(module, Upsample))
    assert upsample.bias is left.conv.bias
    assert not any(isinstance(module, Upsample) for module in rewritten.modules())


def test_a_pass_replaces_one_kind_alone() -> None:
    root = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.GELU()))
    rewritten = replaced(root, nn.ReLU, lambda _: nn.Identity())
    kinds = [type(module).__name__ for module in rewritten.modules()]
    assert kinds == ["Sequential", "Identity", "Sequential", "Identity", "GELU"]


@torch.inference_mode()
@pytest.mark.parametrize("hop, length, window", [(160, 1024, 1024), (96, 512, 400), (64, 256, 256)])
def test_the_folded_fourier_transform_is_the_transform(hop: int, length: int, window: int) -> None:
    audio = AudioConfig(hop_length=hop, filter_length=length, win_length=window)
    original = FrontEnd(audio)
    # quiet, loud and silent passages
    waveform = torch.randn(2, 32 * hop) * torch.linspace(0, 1, 32 * hop).square()
    waveform[1, 12 * hop :] = 0
    assert distance(FoldedFrontEnd(original)(waveform), original(waveform)) < ROUNDING
