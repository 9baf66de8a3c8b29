"""Half-precision graphs are strongly typed, and float32 stays where half is too narrow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from flowsep_export.precision import halve, mixed_nodes
from flowsep_ref import FlowSep
from flowsep_runtime.bundle.manifest import GRAPHS
from tests.export.conftest import Exported


def types_of(path: Path) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in graph.initializer
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_no_node_mixes_types(tiny_half_bundle: Exported, name: str) -> None:
    assert mixed_nodes(tiny_half_bundle.folder / f"{name}.onnx") == []


@pytest.mark.parametrize("name", GRAPHS)
def test_inputs_and_outputs_stay_float32(tiny_half_bundle: Exported, name: str) -> None:
    graph = onnx.load(tiny_half_bundle.folder / f"{name}.onnx").graph
    kinds = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds <= {TensorProto.FLOAT, TensorProto.INT64}


@pytest.mark.parametrize("name", [name for name in GRAPHS if name not in ("log_mel", "velocity_time")])
def test_products_with_weights_are_half(tiny_half_bundle: Exported, name: str) -> None:
    path = tiny_half_bundle.folder / f"{name}.onnx"
    types = types_of(path)
    graph = onnx.load(path).graph
    weighted = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert {types[name] for node in weighted for name in node.input if name} <= {TensorProto.FLOAT16}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert weighted or any(types[node.output[0]] == TensorProto.FLOAT16 for node in products)


@pytest.mark.parametrize("name", ["log_mel", "velocity_time"])
def test_front_end_and_time_have_no_half_at_all(tiny_half_bundle: Exported, name: str) -> None:
    path = tiny_half_bundle.folder / f"{name}.onnx"
    types = types_of(path)
    # weights may be stored in half where that loses nothing; nothing is computed in it
    computed = {types[output] for node in onnx.load(path).graph.node for output in node.output}
    assert TensorProto.FLOAT16 not in computed


@pytest.mark.parametrize("name", GRAPHS)
def test_norms_softmax_and_snake_are_float32(tiny_half_bundle: Exported, name: str) -> None:
    islands = {"InstanceNormalization", "LayerNormalization", "ReduceMean", "Softmax", "Sin", "Exp", "Pow"}
    path = tiny_half_bundle.folder / f"{name}.onnx"
    types = types_of(path)
    for node in onnx.load(path).graph.node:
        if node.op_type in islands:
            assert types[node.output[0]] == TensorProto.FLOAT, node.name


def test_t5_multiplies_gate_and_scores_in_float32(tiny_half_bundle: Exported) -> None:
    path = tiny_half_bundle.folder / "encode_text.onnx"
    types = types_of(path)
    graph = onnx.load(path).graph
    made_by = {name: node for node in graph.node for name in node.output}
    gelus = [node for node in graph.node if node.op_type == "Gelu"]
    assert gelus and all(types[node.output[0]] == TensorProto.FLOAT for node in gelus)
    for softmax in (node for node in graph.node if node.op_type == "Softmax"):
        scores = made_by[made_by[softmax.input[0]].input[1]]  # the position's bias comes first
        assert scores.op_type == "MatMul" and types[scores.input[0]] == TensorProto.FLOAT


def test_halving_leaves_the_model_alone_and_shares_what_stays_float32(tiny_model: FlowSep) -> None:
    half = halve(tiny_model)
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}
    assert half.unet.conv_in.weight.dtype == torch.float16
    name = "unet.time_embed.0.weight"
    assert half.get_parameter(name) is tiny_model.get_parameter(name)


def test_a_node_of_two_types_is_found(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    weight = onnx.numpy_helper.from_array(np.ones(2, np.float16), "w")
    graph = helper.make_graph([helper.make_node("Pow", ["x", "w"], ["y"], "power")], "g", [x], [y], [weight])
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    # Pow may have a base and an exponent of two types: nothing to find
    assert mixed_nodes(path) == []
    graph.node[0].op_type, graph.node[0].name = "Where", "choice"
    graph.node[0].input[:] = ["c", "x", "w"]
    graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, [2]))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    assert mixed_nodes(path) == ["Where choice"]
