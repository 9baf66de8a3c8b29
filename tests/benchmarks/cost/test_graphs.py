"""The counts of `benchmarks.cost.graphs` against graphs that can be counted by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from benchmarks.cost.graphs import clip, main, rows
from benchmarks.cost.operators import count
from tests.runtime.toy_bundle import MODEL, write_toy_bundle

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str]],
    output: str,
    constants: dict[str, Any] | None = None,
    kind: int = FLOAT,
) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(output, kind, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def test_a_convolution_is_counted_from_its_output() -> None:
    weight = np.zeros((6, 2, 3, 3), np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2], group=2)]
    cost = count(graph(nodes, {"x": ["batch", 4, 8, 8]}, "y", {"w": weight}), {"batch": 3})
    outputs = 3 * 6 * 4 * 4
    assert cost.flops == 2 * outputs * 2 * 9
    assert cost.bytes == 4 * (3 * 4 * 8 * 8 + weight.size + outputs)
    assert cost.fused_bytes == cost.bytes
    assert cost.weight_bytes == 4 * weight.size
    assert (cost.nodes, cost.launches, cost.kernels) == (1, 1, 1)


def test_a_transposed_convolution_is_counted_from_its_input() -> None:
    weight = np.zeros((4, 6, 5), np.float32)
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[3])]
    assert count(graph(nodes, {"x": [1, 4, 7]}, "y", {"w": weight}), {}).flops == 2 * 4 * 7 * 6 * 5


def test_a_product_has_its_inner_axis_as_operations() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    cost = count(graph(nodes, {"x": [5, 7, 11]}, "y", {"w": np.zeros((11, 13), np.float32)}), {})
    assert cost.flops == 2 * 5 * 7 * 11 * 13


def test_shapes_views_and_constants_cost_nothing() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
        helper.make_node("Concat", ["s", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Cast", ["w_half"], ["w"], to=FLOAT),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    constants = {"rest": np.array([6]), "w_half": np.zeros((6, 1000), np.float16)}
    cost = count(graph(nodes, {"x": ["batch", 2, 3]}, "y", constants), {"batch": 4})
    assert (cost.nodes, cost.launches, cost.kernels) == (5, 1, 1)
    assert cost.flops == 2 * 4 * 6 * 1000


def attention(kind: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["q", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "k"], ["scores"]),
        helper.make_node("Cast", ["scores"], ["wide"], to=FLOAT),
        helper.make_node("Softmax", ["wide"], ["weights"]),
        helper.make_node("Cast", ["weights"], ["narrow"], to=kind),
        helper.make_node("MatMul", ["narrow", "v"], ["y"]),
    ]
    scale = np.array(0.5, np.float16 if kind == HALF else np.float32)
    shapes: dict[str, Sequence[int | str]] = {"q": [2, 8, 64, 16], "k": [2, 8, 16, 64], "v": [2, 8, 64, 16]}
    return graph(nodes, shapes, "y", {"scale": scale}, kind)


def test_attention_is_one_kernel_in_the_estimate_and_its_scores_stay_inside() -> None:
    cost = count(attention(HALF), {})
    assert (cost.launches, cost.kernels) == (6, 2)  # the scaling is a kernel of its own: nothing is before it
    tensor = 2 * 8 * 64 * 16 * 2
    assert cost.fused_bytes == pytest.approx(6 * tensor, rel=1e-3)
    assert cost.bytes > 10 * cost.fused_bytes / 2, "the scores go through memory several times"
    assert count(attention(FLOAT), {}).fused_bytes == pytest.approx(12 * tensor, rel=1e-3)


def test_heads_that_are_told_apart_between_product_and_softmax_are_no_fused_attention() -> None:
    """TensorRT's fused attention has them as an axis all the way."""
    nodes = [
        helper.make_node("MatMul", ["x", "keys"], ["scores"]),
        helper.make_node("Reshape", ["scores", "apart"], ["of_heads"]),
        helper.make_node("Softmax", ["of_heads"], ["soft"]),
        helper.make_node("Reshape", ["soft", "together"], ["weights"]),
        helper.make_node("MatMul", ["weights", "values"], ["y"]),
    ]
    shapes: dict[str, Sequence[int | str]] = {"x": [2, 64, 32], "keys": [2, 32, 100], "values": [2, 100, 32]}
    constants = {"apart": np.array([0, 0, 2, 50]), "together": np.array([0, 0, -1])}
    assert count(graph(nodes, shapes, "y", constants), {}).kernels == 3


def test_a_concatenation_of_what_was_computed_is_written_in_place() -> None:
    weights = np.zeros((4, 4), np.float32)
    products = [helper.make_node("MatMul", ["x", "w"], [name]) for name in "ab"]
    for other, kernels in (("b", 2), ("x", 3)):  # an input is copied
        nodes = [*products, helper.make_node("Concat", ["a", other], ["both"], axis=-1)]
        nodes.append(helper.make_node("Concat", ["both", "b"], ["y"], axis=-1))
        assert count(graph(nodes, {"x": [4, 4]}, "y", {"w": weights}), {}).kernels == kernels


def test_pointwise_work_joins_the_kernel_before_it() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["y"]),
    ]
    cost = count(graph(nodes, {"x": [4, 4]}, "y", {"w": np.zeros((4, 4), np.float32)}), {})
    assert (cost.launches, cost.kernels) == (3, 1)
    assert cost.fused_bytes == 4 * (16 + 16 + 16)


def test_operators_whose_shape_onnx_does_not_infer_count_once() -> None:
    norms = [
        helper.make_node(
            "SkipLayerNormalization",
            ["x", "x", "one", "one"],
            ["a", "", "", "sum"],
            domain="com.microsoft",
        ),
        helper.make_node("QuickGelu", ["a"], ["c"], domain="com.microsoft"),
        helper.make_node("Add", ["c", "sum"], ["y"]),
    ]
    cost = count(graph(norms, {"x": [2, 4, 4]}, "y", {"one": np.ones(4, np.float32)}), {})
    assert (cost.nodes, cost.launches, cost.kernels) == (3, 3, 1), "what is pointwise joins"
    assert cost.bytes == 4 * ((32 + 4 + 2 * 32) + 2 * 32 + 3 * 32)


def test_a_size_that_is_not_given_is_an_error() -> None:
    nodes = [helper.make_node("Sigmoid", ["x"], ["y"])]
    with pytest.raises(ValueError, match="does not follow"):
        count(graph(nodes, {"x": ["batch", 2]}, "y"), {})


@pytest.mark.parametrize("backend", ["cpu", "cuda", "tensorrt"])
def test_a_separation_runs_the_velocity_once_a_step(toy: Path, backend: str) -> None:
    counted = rows(toy, backend, batch=2, frames=64, steps=5)
    runs = {row.graph: row.runs for row in counted}
    assert runs["loop_step" if backend == "tensorrt" else "velocity"] == 5 and runs["vocode"] == 1
    assert runs.get("loop_constants", 1) == 1
    assert ("advance" in runs) == (backend == "cuda"), "the host does it, or the step"
    total = clip(counted)
    assert total.flops == sum(row.runs * row.cost.flops for row in counted)
    assert total.weight_bytes == sum(row.cost.weight_bytes for row in counted)
    (mel,) = (row.cost for row in counted if row.graph == "log_mel")
    assert mel.flops == 2 * 2 * 64 * 160 * 64


@pytest.mark.slow
def test_the_bundled_model_can_be_counted() -> None:
    from flowsep_runtime.separator import BUNDLED

    counted = {row.graph: row.cost for row in rows(BUNDLED, "tensorrt", 1, 1024, 20)}
    velocity = counted["loop_step"]
    assert 0 < velocity.kernels < velocity.launches < velocity.nodes
    assert velocity.fused_bytes < velocity.bytes
    for name, cost in counted.items():
        assert cost.kernels <= cost.launches <= cost.nodes, name


def test_the_command_prints_a_table_or_json(toy: Path) -> None:
    result = CliRunner().invoke(main, [f"--bundle={toy}"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].count("estimate") == 2 and lines[-1].startswith("| clip |")
    result = CliRunner().invoke(main, [f"--bundle={toy}", "--json", "--steps=7"])
    answer = json.loads(result.output)
    steps = {row["graph"]: row["runs"] for row in answer["rows"]}["loop_step"]
    assert steps == 7 and answer["clip"]["flops"] > 0
    result = CliRunner().invoke(main, [f"--bundle={toy}", "--frames=33"])
    assert result.exit_code == 2 and f"multiple of {MODEL.frame_multiple}" in result.output
