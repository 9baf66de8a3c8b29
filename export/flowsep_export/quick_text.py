"""Judgement of the text encoder in bf16: whether a separation is the same with it.

The published text encoder takes as long as half a step of the solver in float32, and it was trained in bf16.
Other models' hidden states may lose what tells two sounds apart, so that each export decides for its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from flowsep_export.stage_inputs import CHECK_STEPS, StageInputs
from flowsep_ref import FlowSep
from flowsep_runtime.arrays import Floats, snr_db

#: Signal-to-noise ratio that the solver's result must have, in dB: bf16 in the velocity alone leaves 42.
LEAST_SNR = 40.0
#: Weights of an encoder that takes long enough for it to matter: a small one takes a millisecond.
LEAST_WEIGHTS = 1 << 25


@torch.inference_mode()
def bears_bf16(model: FlowSep, runs: Iterable[StageInputs]) -> bool:
    """Judge a text encoder in bf16.

    Args:
        model: The reference, in float32.
        runs: Inputs of the reference's own separations: each holds the latent that it found from its text.

    Returns:
        True if the encoder is large, and the solver finds the same latents with a text from bf16.
    """
    if sum(weight.numel() for weight in model.text_encoder.parameters()) < LEAST_WEIGHTS:
        return False
    return all(snr_db([run.latent.numpy()], [_latent(model, run)]) >= LEAST_SNR for run in runs)


def _latent(model: FlowSep, run: StageInputs) -> Floats:
    """The latent that the solver finds with a text from bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        text = model.encode_text(run.input_ids, run.attention_mask).float()
    latent: Floats = model.solve(run.noise, run.mixture_latent, text, run.attention_mask, CHECK_STEPS).numpy()
    return latent
