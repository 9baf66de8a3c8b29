"""The passes for TensorRT keep the results of the bundle's graph, on ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowsep_export.onnx.attention import soften_in_half
from flowsep_export.precision import mixed_nodes
from flowsep_export.tensorrt.passes import fix_axes, prepared
from flowsep_runtime.backends.device_graphs import DEVICE_GRAPHS, device_graph_path
from flowsep_runtime.bundle.manifest import GRAPHS
from tests.export.conftest import Exported

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
LOWEST = float(np.finfo(np.float32).min)


def attention(biased: bool = True, bias_first: bool = False, float_scores: bool = False) -> onnx.ModelProto:
    """softmax(q kᵀ + bias) v in half, with the softmax in float32, as the export writes it."""
    nodes = [helper.make_node("MatMul", ["q", "k"], ["product"], name="product")]
    if float_scores:  # as T5's: the product itself is wide
        nodes = [
            helper.make_node("Cast", ["q"], ["wide_q"], to=FLOAT),
            helper.make_node("Cast", ["k"], ["wide_k"], to=FLOAT),
            helper.make_node("MatMul", ["wide_q", "wide_k"], ["scores"]),
        ]
    else:
        nodes.append(helper.make_node("Cast", ["product"], ["scores"], to=FLOAT))
    last = "scores"
    if biased:
        operands = ["bias", "scores"] if bias_first else ["scores", "bias"]
        nodes.append(helper.make_node("Add", operands, ["biased"]))
        last = "biased"
    nodes += [
        helper.make_node("Softmax", [last], ["soft"], axis=-1),
        helper.make_node("Cast", ["soft"], ["half_soft"], to=HALF),
        helper.make_node("MatMul", ["half_soft", "v"], ["result"]),
        helper.make_node("Cast", ["result"], ["y"], to=FLOAT),
    ]
    shapes = {"q": (2, 3, 7, 4), "k": (2, 3, 4, 5), "v": (2, 3, 5, 4)}
    inputs = [helper.make_tensor_value_info(name, HALF, shape) for name, shape in shapes.items()]
    if biased:
        inputs.append(helper.make_tensor_value_info("bias", FLOAT, ("batch", 1, 1, 5)))
    output = helper.make_tensor_value_info("y", FLOAT, (2, 3, 7, 4))
    graph = helper.make_graph(nodes, "attention", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, inputs: dict[str, Any]) -> Any:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: inputs[name] for name in names})[0]


def given() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "q": rng.standard_normal((2, 3, 7, 4)).astype(np.float16),
        "k": rng.standard_normal((2, 3, 4, 5)).astype(np.float16),
        "v": rng.standard_normal((2, 3, 5, 4)).astype(np.float16),
    }
    arrays["bias"] = np.zeros((2, 1, 1, 5), np.float32)
    arrays["bias"][0, ..., 3:] = LOWEST
    return arrays


@pytest.mark.parametrize(("biased", "bias_first"), [(False, False), (True, False), (True, True)])
def test_half_attention_loses_its_casts_and_keeps_its_values(biased: bool, bias_first: bool) -> None:
    model = attention(biased, bias_first)
    expected = run(model, given())
    assert soften_in_half(model, Path()) == 1
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["Cast"] == 1 + biased  # the output's, and the bias's
    found = run(model, given())
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


def test_masked_positions_get_no_weight_even_without_an_unmasked_one() -> None:
    model = attention()
    soften_in_half(model, Path())
    arrays = given()
    arrays["v"][0, :, 3:] = 1000
    assert np.abs(run(model, arrays)[0]).max() < 10
    arrays["bias"][:] = LOWEST
    assert np.isfinite(run(model, arrays)).all()


def test_scores_that_are_float32_themselves_stay() -> None:
    model = attention(float_scores=True)
    before = model.SerializeToString()
    assert soften_in_half(model, Path()) == 0
    assert model.SerializeToString() == before


def test_a_fixed_axis_is_a_number(tmp_path: Path) -> None:
    model = attention()
    fix_axes(model, {"batch": 2})
    (bias,) = (value for value in model.graph.input if value.name == "bias")
    assert [axis.dim_value for axis in bias.type.tensor_type.shape.dim] == [2, 1, 1, 5]
    onnx.save(model, tmp_path / "m.onnx")
    assert not mixed_nodes(tmp_path / "m.onnx")


def test_external_weights_are_left_where_they_are(tmp_path: Path) -> None:
    model = attention()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(5, np.float32), "w"))
    model.graph.node.append(helper.make_node("Add", ["bias", "w"], ["shifted"]))
    model.graph.output.append(helper.make_tensor_value_info("shifted", FLOAT, ("batch", 1, 1, 5)))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tensor,) = (t for t in prepared(tmp_path / "m.onnx", {}).graph.initializer if t.name == "w")
    assert tensor.data_location == TensorProto.EXTERNAL


def convolutions(folder: Path, location: str | None) -> Path:
    """Two convolutions and a product in float32, their weights stored in half."""
    rng = np.random.default_rng(0)
    stored = {
        "w": rng.standard_normal((4, 4, 3, 3)),
        "v": rng.standard_normal((4, 2, 4, 4)),
        "m": rng.standard_normal((5, 5)),
    }
    casts = [helper.make_node("Cast", [f"{name}.half"], [name], to=FLOAT) for name in stored]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["a", "v"], ["b"], pads=[1, 1, 1, 2]),
        helper.make_node("MatMul", ["b", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        [*casts, *nodes],
        "convolutions",
        [helper.make_tensor_value_info("x", FLOAT, ("batch", 4, 5, 5))],
        [helper.make_tensor_value_info("y", FLOAT, ("batch", 2, 6, 5))],
        [numpy_helper.from_array(value.astype(np.float16), f"{name}.half") for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(
        model,
        folder / "c.onnx",
        save_as_external_data=location is not None,
        location=location,
        size_threshold=0,
    )
    return folder / "c.onnx"


@pytest.mark.parametrize("location", [None, "c.data"])
def test_weights_of_convolutions_are_float32_constants(tmp_path: Path, location: str | None) -> None:
    path = convolutions(tmp_path, location)
    x = {"x": np.random.default_rng(1).standard_normal((2, 4, 5, 5)).astype(np.float32)}
    model = prepared(path, {"batch": 2})
    constants = {tensor.name for tensor in model.graph.initializer}
    assert constants == {"w", "v", "m.half"}, "what nobody reads is gone"
    assert [node.op_type for node in model.graph.node] == ["Cast", "Conv", "ConvTranspose", "MatMul"]
    onnx.external_data_helper.load_external_data_for_model(model, str(tmp_path))
    expected = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, x)[0]
    assert np.array_equal(run(model, x), expected)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "half"])
@pytest.mark.parametrize("graph", [*GRAPHS, *DEVICE_GRAPHS])
def test_what_tensorrt_gets_is_valid(
    tiny_bundle: Exported, tiny_half_bundle: Exported, graph: str, half: bool
) -> None:
    bundle = (tiny_half_bundle if half else tiny_bundle).folder
    path = device_graph_path(graph) if graph in DEVICE_GRAPHS else bundle / f"{graph}.onnx"
    sizes = {"batch": 1, "t": 16, "frames": 64, "samples": 64 * 160, "steps": 3}
    model = prepared(path, sizes)
    onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    onnx.checker.check_model(model, full_check=True)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.HasField("shape"), "even one of unknown sizes"


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_passes_keep_the_values_of_a_half_precision_export(
    tiny_half_bundle: Exported, tmp_path: Path, graph: str
) -> None:
    """Every attention of the velocity network and the VAE, none of T5's; and nothing else."""
    path = tiny_half_bundle.folder / f"{graph}.onnx"
    model = onnx.load(path)
    softmaxes = sum(node.op_type == "Softmax" for node in model.graph.node)
    changed = soften_in_half(model, Path())
    assert changed == (0 if graph == "encode_text" else softmaxes)
    onnx.save(model, tmp_path / "prepared.onnx")
    assert mixed_nodes(tmp_path / "prepared.onnx") == []
    rng = np.random.default_rng(1)
    sizes = {"batch": 2, "t": 16, "frames": 64, "samples": 64 * 160, "steps": 3}
    sessions = [
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for file in (path, tmp_path / "prepared.onnx")
    ]
    feeds = {}
    for value in sessions[0].get_inputs():
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in value.shape]
        if value.type == "tensor(int64)":
            feeds[value.name] = np.ones(shape, np.int64)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    if "mask_bias" in feeds:
        feeds["mask_bias"][:] = 0
        feeds["mask_bias"][..., 7:] = LOWEST
    for one, other in zip(*(session.run(None, feeds) for session in sessions), strict=True):
        assert np.linalg.norm(one - other) <= 3e-3 * np.linalg.norm(one)
