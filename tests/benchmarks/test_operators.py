"""The profile of a graph's operators on OpenVINO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.latency.operators import command, operations

pytest.importorskip("openvino")


def test_operations_of_products_and_convolutions_are_counted() -> None:
    assert operations("FullyConnected", [[1, 50, 8], [4, 8]], [1, 50, 4]) == 2 * 50 * 4 * 8
    assert operations("MatMul", [[3, 5, 7], [3, 7, 2]], [3, 5, 2]) == 2 * 3 * 5 * 2 * 7
    assert operations("Convolution", [[1, 8, 6, 4], [16, 8, 3, 3]], [1, 16, 6, 4]) == 2 * 16 * 24 * 72
    assert operations("ConvolutionBackpropData", [[1, 8, 6, 4], [8, 2, 4, 4]], [1, 2, 12, 8]) == 2 * 192 * 32
    assert operations("Subgraph", [[1, 8], [1, 8]], [1, 8]) == 0


def test_the_operators_of_a_graph_have_their_share_of_its_time(tmp_path: Path) -> None:
    options = [
        "velocity_mixture",
        "--sizes",
        "bundled",
        "--runs",
        "2",
        "--json",
        str(tmp_path / "found.json"),
    ]
    result = CliRunner().invoke(command, options, catch_exceptions=False)
    found = json.loads((tmp_path / "found.json").read_text())
    kinds = {entry["kind"]: entry for entry in found["operators"]}
    # the mixture's half of the first convolution: 8 to 32 channels of 256 x 16
    assert kinds["Convolution"]["operations"] == 2 * 32 * 256 * 16 * 8 * 9
    assert all(entry["seconds"] > 0 for entry in found["operators"])
    assert "velocity_mixture: " in result.output and "| Convolution |" in result.output
