"""Every stage against the arrays that the published code computed (docs/model.md#golden-arrays)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flowsep_ref import FlowSep
from flowsep_ref.mel import normalise
from tests.ref.conftest import relative_error

TOLERANCE = 1e-5

Golden = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_normalisation(expected: Golden) -> None:
    assert relative_error(normalise(expected["wav"][None])[0], expected["wav_normalised"]) < TOLERANCE


def test_log_mel(tiny: FlowSep, expected: Golden) -> None:
    log_mel = tiny.log_mel(expected["wav_normalised"][None])
    assert relative_error(log_mel[0], expected["log_mel"]) < TOLERANCE


def test_encode_mixture(tiny: FlowSep, expected: Golden) -> None:
    mean, std = tiny.encode_mixture(expected["log_mel"][None])
    wanted_mean, wanted_logvar = expected["posterior_moments"].chunk(2, dim=1)
    assert relative_error(mean, tiny.scale_factor * wanted_mean) < TOLERANCE
    assert relative_error(std, tiny.scale_factor * torch.exp(0.5 * wanted_logvar)) < TOLERANCE
    latent = mean + std * expected["posterior_noise"]
    assert relative_error(latent, expected["mixture_latent"]) < TOLERANCE


def test_encode_text(tiny: FlowSep, expected: Golden) -> None:
    text = tiny.encode_text(expected["input_ids"], expected["attention_mask"])
    assert relative_error(text, expected["text_hidden"]) < TOLERANCE


@pytest.mark.parametrize("t", [0.0, 0.35, 0.95])
def test_velocity_of_two_queries_for_one_mixture(tiny: FlowSep, expected: Golden, t: float) -> None:
    velocity = tiny.velocity(
        expected["unet_x"],
        t,
        expected["mixture_latent"],
        expected["text_hidden"],
        expected["attention_mask"],
    )
    assert relative_error(velocity, expected[f"unet_velocity_t{t}"]) < TOLERANCE


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_euler(tiny: FlowSep, expected: Golden, steps: int) -> None:
    latent = tiny.solve(
        expected["initial_noise"],
        expected["mixture_latent"],
        expected["text_hidden"][:1],
        expected["attention_mask"][:1],
        steps,
    )
    assert relative_error(latent, expected[f"euler_{steps}"]) < TOLERANCE


def test_decode_latent(tiny: FlowSep, expected: Golden) -> None:
    assert relative_error(tiny.decode_latent(expected["euler_10"]), expected["mel_out"][:, 0]) < TOLERANCE


def test_vocode(tiny: FlowSep, expected: Golden) -> None:
    real = tiny.vocode(expected["log_mel"][None])
    assert relative_error(real, expected["vocoder_of_log_mel"][:, 0]) < TOLERANCE
    generated = tiny.vocode(expected["mel_out"][:, 0])
    assert relative_error(generated, expected["waveform"][:, 0]) < TOLERANCE
