"""The judgement of the export: whether `--precision fast` may compute the text encoder in bf16."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flowsep_export import quick_text
from flowsep_export.stage_inputs import StageInputs, random_inputs, recorded_inputs
from flowsep_ref import FlowSep


@pytest.fixture(scope="module")
def run(tiny_model: FlowSep) -> StageInputs:
    """The reference's separation of noise with a query of random tokens."""
    given = random_inputs(tiny_model.config, 64, 1, 0)
    samples = given.waveform[0].numpy()
    return recorded_inputs(tiny_model, samples, given.input_ids, given.attention_mask, 64, 1)


def test_a_large_encoder_bears_bf16_if_the_solver_finds_the_same(
    tiny_model: FlowSep, run: StageInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not quick_text.bears_bf16(tiny_model, [run])  # too small to matter
    monkeypatch.setattr(quick_text, "LEAST_WEIGHTS", 1)
    assert quick_text.bears_bf16(tiny_model, [run])
    # as if the text of bf16 led to another latent
    noise = torch.randn(run.latent.shape, generator=torch.Generator().manual_seed(0))
    other = dataclasses.replace(run, latent=run.latent + 0.02 * noise)
    assert not quick_text.bears_bf16(tiny_model, [run, other])
