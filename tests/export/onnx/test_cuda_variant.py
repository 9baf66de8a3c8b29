"""The CUDA variant computes what the bundle's graph computes; its operator runs on a CPU too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.cost.operators import count
from flowsep_export.onnx.attention import ATTENTION, fuse_attention, soften_in_half
from flowsep_export.onnx.cuda_variant import pad_as_before
from flowsep_export.onnx.editing import MICROSOFT
from flowsep_runtime.backends.loop_parts import CONSTANTS, INVARIANTS, STEP
from flowsep_runtime.bundle.manifest import GraphEntry, Manifest
from tests.export.conftest import Exported

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
HEADS, WIDTH, TOKENS = 4, 32, 24


def attention(kind: int = HALF, biased: bool = False, scale: bool = True) -> onnx.ModelProto:
    """Attention of a sequence to itself as the export writes it, from `[B, N, H · D]` to the same."""
    nodes = []
    for name, permutation in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            helper.make_node("MatMul", ["x", f"w_{name}"], [name]),
            helper.make_node("Reshape", [name, "split"], [f"{name}_split"]),
            helper.make_node("Transpose", [f"{name}_split"], [f"{name}_heads"], perm=permutation),
        ]
    if scale:
        nodes.append(helper.make_node("Mul", ["q_heads", "scale"], ["scaled"]))
    nodes.append(helper.make_node("MatMul", ["scaled" if scale else "q_heads", "k_heads"], ["product"]))
    last = "product"
    if kind == HALF:
        nodes.append(helper.make_node("Cast", [last], ["wide"], to=FLOAT))
        last = "wide"
    if biased:
        nodes.append(helper.make_node("Add", [last, "bias"], ["masked"]))
        last = "masked"
    nodes.append(helper.make_node("Softmax", [last], ["soft"], axis=-1))
    last = "soft"
    if kind == HALF:
        nodes.append(helper.make_node("Cast", [last], ["narrow"], to=HALF))
        last = "narrow"
    nodes += [
        helper.make_node("MatMul", [last, "v_heads"], ["weighted"]),
        helper.make_node("Transpose", ["weighted"], ["joined"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["joined", "join"], ["together"]),
        helper.make_node("MatMul", ["together", "w_v"], ["y"]),
    ]
    dtype = np.float16 if kind == HALF else np.float32
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        f"w_{name}": (0.3 * rng.standard_normal((WIDTH, WIDTH))).astype(dtype) for name in "qkv"
    }
    constants["split"] = np.array([0, 0, HEADS, WIDTH // HEADS])
    constants["join"] = np.array([0, 0, WIDTH])
    constants["scale"] = np.array((WIDTH / HEADS) ** -0.5, dtype)
    inputs = [helper.make_tensor_value_info("x", kind, ("batch", "tokens", WIDTH))]
    if biased:
        inputs.append(helper.make_tensor_value_info("bias", FLOAT, ("batch", 1, 1, "tokens")))
    graph = helper.make_graph(
        nodes,
        "attention",
        inputs,
        [helper.make_tensor_value_info("y", kind, ("batch", "tokens", WIDTH))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto) -> Any:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, TOKENS, WIDTH)).astype(np.float16)
    if model.graph.input[0].type.tensor_type.elem_type == FLOAT:
        x = x.astype(np.float32)
    return session.run(None, {"x": x})[0].astype(np.float32)


def fused_in_half(model: onnx.ModelProto) -> int:
    soften_in_half(model, Path())
    return fuse_attention(model, Path())


def test_attention_becomes_one_operator_and_keeps_its_values() -> None:
    model = attention()
    expected = run(model)
    assert fused_in_half(model) == 1
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators == {"MatMul": 4, ATTENTION: 1}, "what was around it is gone"
    (fused,) = (node for node in model.graph.node if node.op_type == ATTENTION)
    attributes = {a.name: helper.get_attribute_value(a) for a in fused.attribute}
    assert attributes == {"num_heads": HEADS, "scale": pytest.approx((WIDTH / HEADS) ** -0.5, rel=1e-3)}
    assert list(fused.input) == ["q", "k", "v"] and fused.domain == MICROSOFT
    difference = np.linalg.norm(run(model) - expected)
    assert 0 < difference < 2e-3 * np.linalg.norm(expected), "half's rounding, and nothing more"


def other_permutation(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.graph.node if n.output[0] == "joined")
    node.attribute[0].ints[:] = [0, 1, 2, 3]


def other_reader(model: onnx.ModelProto) -> None:
    """Somebody else wants the weights."""
    model.graph.node.append(helper.make_node("Identity", ["narrow"], ["weights"]))
    model.graph.output.append(helper.make_tensor_value_info("weights", HALF, None))


def other_heads(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 2, WIDTH // 2]), "fewer"))
    (node,) = (n for n in model.graph.node if n.output[0] == "v_split")
    node.input[1] = "fewer"


def test_attention_in_float32_keeps_its_values_too() -> None:
    model = attention(FLOAT)
    expected = run(model)
    assert fuse_attention(model, Path()) == 1
    assert np.linalg.norm(run(model) - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("model", [attention(biased=True), attention(scale=False)], ids=["bias", "plain"])
def test_attention_with_a_bias_or_without_a_scale_stays(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    assert fuse_attention(model, Path()) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize("change", [other_permutation, other_reader, other_heads])
def test_similar_patterns_are_left_unchanged(change: Callable[[onnx.ModelProto], None]) -> None:
    model = attention()
    change(model)
    assert fused_in_half(model) == 0
    assert ATTENTION not in {node.op_type for node in model.graph.node}


def test_fused_attention_costs_its_two_products() -> None:
    sizes = {"batch": 3, "tokens": TOKENS}
    plain, fused = attention(), attention()
    fused_in_half(fused)
    before, after = count(plain, sizes), count(fused, sizes)
    assert after.flops == before.flops
    assert (before.launches, after.launches) == (14, 5)
    tensor, weight = 2 * 3 * TOKENS * WIDTH, 2 * WIDTH * WIDTH
    assert after.bytes == 4 * (2 * tensor + weight) + 4 * tensor, "four products, and attention"


def sessions_of(folder: Path, *entries: GraphEntry) -> list[Any]:
    return [
        onnxruntime.InferenceSession(str(folder / entry.files[0].name), providers=["CPUExecutionProvider"])
        for entry in entries
    ]


def normal_feeds(session: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    sizes = {"batch": 2, "t": 16, "samples": 64 * 160}
    feeds = {
        value.name: rng.standard_normal([sizes.get(axis, axis) for axis in value.shape]).astype(np.float32)
        for value in session.get_inputs()
    }
    if "mask_bias" in feeds:
        feeds["mask_bias"][:] = 0
        feeds["mask_bias"][..., 7:] = np.finfo(np.float32).min
    return feeds


def test_a_half_precision_bundle_has_the_loops_graph_spelt_for_cuda(tiny_half_bundle: Exported) -> None:
    """Whole, and in the two parts of the solver's loop."""
    folder, manifest = tiny_half_bundle.folder, Manifest.read(tiny_half_bundle.folder)
    own = manifest.variants["cuda"]
    assert set(own) == {"velocity", CONSTANTS, STEP}
    for entry in own.values():
        onnx.checker.check_model(str(folder / entry.files[0].name))
    modes = {file.stat().st_mode for file in folder.glob("velocity*")}
    assert len(modes) == 1, "who may read one may read all"
    plain, whole, first, step = sessions_of(
        folder, manifest.graphs["velocity"], own["velocity"], own[CONSTANTS], own[STEP]
    )
    feeds = normal_feeds(plain)
    expected, found = (session.run(None, feeds)[0] for session in (plain, whole))
    assert np.linalg.norm(found - expected) <= 3e-3 * np.linalg.norm(expected)
    names = [output.name for output in own[CONSTANTS].outputs]
    kept = dict(zip(names, first.run(names, {name: feeds[name] for name in INVARIANTS}), strict=True))
    for tensor in own[CONSTANTS].outputs:
        assert kept[tensor.name].dtype == tensor.dtype and tensor.shape[0] == "batch"
    in_parts = step.run(None, {**kept, **{name: feeds[name] for name in ("x", "time_features")}})[0]
    assert np.linalg.norm(in_parts - expected) <= 3e-3 * np.linalg.norm(expected)


def test_a_float32_bundle_has_no_graph_for_cuda_alone(tiny_bundle: Exported) -> None:
    assert "cuda" not in Manifest.read(tiny_bundle.folder).variants


def test_an_operator_that_opset_18_lacks_is_a_fault_of_ours() -> None:
    model = attention()
    model.graph.node.append(helper.make_node("Gelu", ["y"], ["z"]))
    with pytest.raises(AssertionError, match="Gelu"):
        pad_as_before(model)
