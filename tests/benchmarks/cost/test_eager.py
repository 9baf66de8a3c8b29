"""The counts of `benchmarks.cost.eager` against modules that can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.common.inputs import STAGE_INPUTS
from benchmarks.common.standin import write_stand_in
from benchmarks.cost.eager import Launches, command
from flowsep_ref import FlowSepConfig

pytestmark = pytest.mark.slow


def test_operators_that_compute_count_as_launches_and_views_do_not() -> None:
    x = torch.zeros(3, 4, device="meta")
    with Launches() as counted:
        y = (x.view(2, 6).transpose(0, 1)[:, 0:] * 2).T.reshape(12)  # one product, read once and written once
    assert y.shape == (12,)
    assert (counted.launches, counted.bytes) == (1, 2 * 12 * 4)
    with Launches() as counted:
        x.add_(1)
        x.half()
    assert counted.launches == 2
    assert counted.bytes == 2 * 12 * 4 + 12 * (4 + 2)


def test_a_module_is_counted_as_it_runs() -> None:
    x = torch.zeros(1, 4, 1, 10, device="meta")
    convolution = torch.nn.Conv2d(4, 6, (1, 3), device="meta")
    with torch.inference_mode(), Launches() as counted:
        torch.relu(convolution(x))
    assert counted.launches == 2
    weights = 6 * 4 * 3 + 6
    assert counted.bytes == 4 * (4 * 10 + weights + 6 * 8) + 4 * 2 * 6 * 8


def test_composite_operators_count_by_their_parts_except_attention() -> None:
    x = torch.zeros(1, 2, 8, 4, device="meta", dtype=torch.float16)
    with torch.inference_mode(), Launches() as counted:
        x.float()  # a conversion, which a schema calls a view
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
    assert counted.launches == 2


def test_a_clip_counts_the_velocity_once_a_step(data: Path, tmp_path: Path) -> None:
    write_stand_in(FlowSepConfig.from_yaml(data / "configs" / "tiny.yaml"), tmp_path / "tiny")

    def counted(*options: str) -> dict[str, dict[str, float]]:
        given = ["--checkpoint", str(tmp_path / "tiny"), "--json", str(tmp_path / "counts.json"), *options]
        result = CliRunner().invoke(command, given, catch_exceptions=False)
        assert result.exit_code == 0
        assert "| clip |" in result.output
        found: dict[str, dict[str, float]] = json.loads((tmp_path / "counts.json").read_text())["stages"]
        return found

    half, exact = counted("--steps", "3", "--precision", "fp16"), counted("--precision", "fp32")
    assert list(half) == list(STAGE_INPUTS)
    assert (half["velocity"]["runs"], half["vocode"]["runs"]) == (3, 1)
    assert half["velocity"]["flops"] == exact["velocity"]["flops"] > 1e9
    assert half["vocode"]["bytes"] < exact["vocode"]["bytes"]
    assert half["velocity"]["launches"] > 500
