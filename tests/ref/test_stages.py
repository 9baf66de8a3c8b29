"""Behaviour that the golden arrays cannot show: padding, floors, clamps, batches, lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flowsep_ref import FlowSep
from flowsep_ref.mel import normalise
from flowsep_ref.text import relative_position_buckets
from tests.ref.conftest import relative_error


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def noise() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_log_mel_agrees_with_torch_stft(tiny: FlowSep, noise: torch.Generator) -> None:
    waveform = torch.randn(2, 160 * 64, generator=noise) * 0.1
    spectrum = torch.stft(
        waveform, 1024, 160, window=torch.hann_window(1024), return_complex=True, pad_mode="reflect"
    )
    wanted = (tiny.front_end.mel @ spectrum.abs()[:, :, :64]).clamp(min=1e-5).log().transpose(1, 2)
    assert relative_error(tiny.log_mel(waveform), wanted) < 1e-5


def test_silence_is_the_floor_of_the_logarithm(tiny: FlowSep) -> None:
    log_mel = tiny.log_mel(torch.zeros(1, 160 * 16))
    assert log_mel.shape == (1, 16, 64)
    torch.testing.assert_close(log_mel, torch.full_like(log_mel, math.log(1e-5)))


def test_mel_filters_have_unit_area_in_hertz(tiny: FlowSep) -> None:
    # triangles narrower than a bin are sampled too coarsely to sum up: those above 1 kHz are not
    area = tiny.front_end.mel.sum(dim=1) * (16000 / 1024)
    assert torch.all((area[20:] - 1).abs() < 0.02)


def test_normalisation_is_of_the_unpadded_clip() -> None:
    x = normalise(torch.tensor([[1.0, 3.0, 2.0]]))
    torch.testing.assert_close(x, torch.tensor([[-0.5, 0.5, 0.0]]))


def test_log_variance_is_clamped(tiny: FlowSep, noise: torch.Generator) -> None:
    log_mel = torch.randn(1, 16, 64, generator=noise)
    bias = tiny.vae.quant_conv.bias
    assert bias is not None
    kept = bias.clone()
    try:
        bias[8:] = 1e4
        _, high = tiny.encode_mixture(log_mel)
        bias[8:] = -1e4
        _, low = tiny.encode_mixture(log_mel)
    finally:
        bias.copy_(kept)
    torch.testing.assert_close(high, torch.full_like(high, float(tiny.scale_factor) * math.exp(10)))
    torch.testing.assert_close(low, torch.full_like(low, float(tiny.scale_factor) * math.exp(-15)))


@pytest.mark.slow
def test_text_encoder_agrees_with_transformers(tiny: FlowSep, noise: torch.Generator) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = tiny.config.text
    other = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=sizes.vocab_size,
            d_model=sizes.d_model,
            d_kv=sizes.d_kv,
            d_ff=sizes.d_ff,
            num_layers=sizes.num_layers,
            num_heads=sizes.num_heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    ).eval()
    state = tiny.text_encoder.state_dict()
    other.load_state_dict({**state, "encoder.embed_tokens.weight": state["shared.weight"]})
    ids = torch.randint(2, sizes.vocab_size, (3, 50), generator=noise)
    mask = (torch.arange(50) < torch.tensor([[5], [50], [17]])).long()
    wanted = other(input_ids=ids, attention_mask=mask).last_hidden_state
    assert relative_error(tiny.encode_text(ids, mask), wanted) < 1e-5


def test_buckets_of_a_long_text_agree_with_their_definition() -> None:
    buckets = relative_position_buckets(200, 32, 128)
    assert buckets[100, 100] == 0
    assert buckets[100, 101] == 17 and buckets[101, 100] == 1
    assert buckets[0, 199] == 31 and buckets[199, 0] == 15
    assert buckets[0, 8] == 24 and buckets[8, 0] == 8


@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.tensor([0.5, 0.5]), 0.5])
def test_time_is_a_scalar_or_one_a_row(tiny: FlowSep, noise: torch.Generator, t: Tensor | float) -> None:
    x, latent, text, mask = _inputs(tiny, noise, batch=2)
    row = tiny.velocity(x[1:], 0.5, latent, text, mask)
    assert relative_error(tiny.velocity(x, t, latent, text, mask)[1:], row) < 1e-5


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float32])
def test_the_mask_may_be_of_any_type(tiny: FlowSep, noise: torch.Generator, dtype: torch.dtype) -> None:
    x, latent, text, mask = _inputs(tiny, noise, batch=1)
    wanted = tiny.velocity(x, 0.3, latent, text, mask)
    assert torch.equal(tiny.velocity(x, 0.3, latent, text, mask.to(dtype)), wanted)


def test_a_masked_token_changes_nothing(tiny: FlowSep, noise: torch.Generator) -> None:
    x, latent, text, mask = _inputs(tiny, noise, batch=1)
    wanted = tiny.velocity(x, 0.3, latent, text, mask)
    text[:, 20:] = 100.0
    assert relative_error(tiny.velocity(x, 0.3, latent, text, mask), wanted) < 1e-6
    text[:, 5] = 100.0
    assert relative_error(tiny.velocity(x, 0.3, latent, text, mask), wanted) > 1e-3


def test_the_solver_refuses_nonsense(tiny: FlowSep, noise: torch.Generator) -> None:
    inputs = _inputs(tiny, noise, batch=1)
    with pytest.raises(ValueError, match="at least 1"):
        tiny.solve(*inputs, steps=0)
    with pytest.raises(ValueError, match="no solver 'rk45'"):
        tiny.solve(*inputs, solver="rk45")


@pytest.mark.parametrize("frames", [16, 48, 256])
def test_shapes_at_other_lengths(tiny: FlowSep, frames: int) -> None:
    log_mel = torch.randn(1, frames, 64)
    mean, std = tiny.encode_mixture(log_mel)
    assert mean.shape == std.shape == (1, 8, frames // 4, 16)
    assert tiny.decode_latent(mean).shape == (1, frames, 64)
    assert tiny.vocode(log_mel).shape == (1, 160 * frames + 32)


@pytest.mark.slow
def test_separate_chains_the_stages(tiny: FlowSep) -> None:
    ids = torch.zeros(1, 50, dtype=torch.int64)
    ids[0, :2] = torch.tensor([5, 1])
    mask = (ids != 0).long()
    clip = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)) * 3 + 1
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    waveform = tiny.separate(clip, ids, mask, steps=2, generator=draws[0])
    assert waveform.shape == (1, 163872)

    padded = torch.nn.functional.pad(normalise(clip), (0, 163840 - 8000))
    mean, std = tiny.encode_mixture(tiny.log_mel(padded))
    posterior, start = (torch.randn(mean.shape, generator=draws[1]) for _ in range(2))
    latent = tiny.solve(start, mean + std * posterior, tiny.encode_text(ids, mask), mask, steps=2)
    torch.testing.assert_close(waveform, tiny.vocode(tiny.decode_latent(latent)))


def test_separate_refuses_a_longer_clip(tiny: FlowSep) -> None:
    ids = torch.ones(1, 50, dtype=torch.int64)
    with pytest.raises(ValueError, match="at most 163840"):
        tiny.separate(torch.zeros(1, 163841), ids, ids)


def _inputs(
    model: FlowSep, noise: torch.Generator, batch: int, frames: int = 8
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x of a batch, and mixture latent, text and mask for all of it."""
    x = torch.randn(batch, 8, frames, 16, generator=noise)
    latent = torch.randn(1, 8, frames, 16, generator=noise)
    text = torch.randn(1, 50, model.config.text.d_model, generator=noise)
    return x, latent, text, (torch.arange(50) < 12).long()[None]
