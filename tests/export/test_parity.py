"""The exported bundles compute what the published code computed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from flowsep_export.stage_inputs import STAGE_CALLS, random_inputs
from flowsep_export.verify import relative_error
from flowsep_ref import FlowSep
from flowsep_runtime import Pipeline
from tests.export.conftest import Exported

pytestmark = pytest.mark.slow

Golden = dict[str, np.ndarray[Any, Any]]


class Bundle(NamedTuple):
    pipeline: Pipeline
    tolerance: float


@pytest.fixture(scope="module", params=["float32", "float16"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    name, tolerance = {"float32": ("tiny_bundle", 5e-5), "float16": ("tiny_half_bundle", 2e-2)}[request.param]
    exported: Exported = request.getfixturevalue(name)
    return Bundle(Pipeline.load(exported.folder), tolerance)


def assert_close(bundle: Bundle, output: Any, wanted: Any) -> None:
    error = relative_error(output, wanted)
    assert error <= bundle.tolerance, f"relative error {error:.2e}"


def test_log_mel_is_the_published_one(bundle: Bundle, golden: Golden) -> None:
    output = bundle.pipeline.log_mel(golden["wav_normalised"][None])
    assert_close(bundle, output[0], golden["log_mel"])


def test_text_is_the_published_one(bundle: Bundle, golden: Golden) -> None:
    output = bundle.pipeline.encode_text(golden["input_ids"], golden["attention_mask"])
    assert_close(bundle, output, golden["text_hidden"])


def test_posterior_and_its_sample_are_the_published_ones(
    bundle: Bundle, golden: Golden, tiny_model: FlowSep
) -> None:
    mean, std = bundle.pipeline.encode_mixture(golden["log_mel"][None])
    moments, scale = golden["posterior_moments"], tiny_model.scale_factor.item()
    assert_close(bundle, mean, scale * moments[:, :8])
    assert_close(bundle, std, scale * np.exp(0.5 * np.clip(moments[:, 8:], -30, 20)))
    assert_close(bundle, mean + std * golden["posterior_noise"], golden["mixture_latent"])


@pytest.mark.parametrize("t", ["0.0", "0.35", "0.95"])
def test_velocity_is_the_published_one(bundle: Bundle, golden: Golden, t: str) -> None:
    output = bundle.pipeline.velocity(
        golden["unet_x"],
        float(t),
        golden["mixture_latent"],
        golden["text_hidden"],
        golden["attention_mask"],
    )
    assert_close(bundle, output, golden[f"unet_velocity_t{t}"])


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_euler_ends_where_the_published_solver_ends(bundle: Bundle, golden: Golden, steps: int) -> None:
    output = bundle.pipeline.solve(
        golden["initial_noise"],
        golden["mixture_latent"],
        golden["text_hidden"][:1],
        golden["attention_mask"][:1],
        steps,
    )
    assert_close(bundle, output, golden[f"euler_{steps}"])


def test_decoded_log_mel_is_the_published_one(bundle: Bundle, golden: Golden) -> None:
    assert_close(bundle, bundle.pipeline.decode_latent(golden["euler_10"]), golden["mel_out"][:, 0])


@pytest.mark.parametrize("log_mel, waveform", [("mel_out", "waveform"), ("log_mel", "vocoder_of_log_mel")])
def test_waveform_is_the_published_one(bundle: Bundle, golden: Golden, log_mel: str, waveform: str) -> None:
    output = bundle.pipeline.vocode(golden[log_mel].reshape(1, -1, 64))
    assert_close(bundle, output, golden[waveform][:, 0])


@pytest.mark.parametrize("stage", [stage for stage in STAGE_CALLS if stage != "solve"])
@pytest.mark.parametrize("frames, batch", [(16, 1), (16 * 5, 3)])
def test_any_length_and_batch_is_the_references(
    bundle: Bundle, tiny_model: FlowSep, stage: str, frames: int, batch: int
) -> None:
    inputs = random_inputs(tiny_model.config, frames, batch, seed=frames)
    with torch.inference_mode():
        reference = STAGE_CALLS[stage](tiny_model, inputs.tensors())
    for output, wanted in zip(STAGE_CALLS[stage](bundle.pipeline, inputs.arrays()), reference, strict=True):
        assert_close(bundle, output, wanted.numpy())
