"""Every pass that saves kernels finds its pattern in the velocity network and keeps what it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from benchmarks.cost.operators import count
from flowsep_export.onnx import cuda_kernels, fewer_kernels
from flowsep_export.onnx.attention import fuse_attention, soften_in_half
from flowsep_export.onnx.cuda_variant import PASSES, rewrite_for_cuda
from flowsep_export.onnx.editing import Editor, Pass
from flowsep_export.onnx.loop_parts import named_axes, split_loop
from flowsep_export.onnx.transformers import join_transformer, mean_first
from flowsep_export.tensorrt.passes import prepared_loop
from flowsep_runtime.backends.loop_parts import CONSTANTS, INVARIANTS, STEP
from flowsep_runtime.bundle.manifest import Manifest
from tests.export.conftest import Exported

SIZES = {"batch": 2, "t": 16}
LOWEST = float(np.finfo(np.float32).min)
#: The inputs of TensorRT's step that the velocity does not have.
SUM: dict[str, Any] = {
    "weights": np.array([0.5, -0.25], np.float32),
    "before": np.full((2, 8, 16, 16), 2, np.float32),
}

# Of the tiny model: 7 sites of two transformers each, which is 21 attentions to themselves and 7 to the text,
# 42 layer normalisations, and 37 over groups.
SITES, TRANSFORMERS, GROUPS = 7, 14, 37


def loaded(bundle: Exported) -> onnx.ModelProto:
    model = onnx.load(bundle.folder / "velocity.onnx")
    soften_in_half(model, Path())
    return model


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    onnx.checker.check_model(model)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, wanted), strict=True))


def given(model: onnx.ModelProto) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    feeds = {}
    for value in model.graph.input:
        name, _, shape = named_axes(value)
        sizes = [SIZES[axis] if isinstance(axis, str) else axis for axis in shape]
        feeds[name] = rng.standard_normal(sizes).astype(np.float32)
    feeds["mask_bias"][:] = 0
    feeds["mask_bias"][0, ..., 7:] = LOWEST
    feeds["mask_bias"][1, ..., 20:] = LOWEST
    return feeds


def error(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("spell", "times"),
    [
        (fewer_kernels.join_projections, 3 * SITES),
        (fewer_kernels.fold_projections_into_text, SITES),
        (fuse_attention, 3 * SITES),
        (cuda_kernels.slice_unevenly, 2),
        (cuda_kernels.normalise_in_half, 3 * TRANSFORMERS),
        (cuda_kernels.normalise_groups_in_half, GROUPS),
        (cuda_kernels.gate_by_sigmoid, GROUPS - TRANSFORMERS),
    ],
)
def test_a_pass_finds_what_it_is_for_and_keeps_the_velocity(
    tiny_half_bundle: Exported, spell: Pass, times: int
) -> None:
    model = loaded(tiny_half_bundle)
    feeds = given(model)
    expected = run(model, feeds)["velocity"]
    assert spell(model, tiny_half_bundle.folder) == times
    # the CPU rounds to half where an operator begins and ends: another operator, another rounding
    assert error(run(model, feeds)["velocity"], expected) < 2e-3
    assert spell(model, tiny_half_bundle.folder) == 0, "nothing is left to find"


@pytest.mark.parametrize("batch", [1, 2])
def test_transformers_are_joined_for_tensorrt_and_keep_the_velocity(
    tiny_half_bundle: Exported, batch: int
) -> None:
    model = loaded(tiny_half_bundle)
    feeds = {name: values[:batch] for name, values in given(model).items()}
    expected = run(model, feeds)["velocity"]
    assert fewer_kernels.join_projections(model, tiny_half_bundle.folder) == 3 * SITES
    before = count(onnx.ModelProto.FromString(model.SerializeToString()), SIZES)
    assert join_transformer(model, tiny_half_bundle.folder) == TRANSFORMERS
    assert error(run(model, feeds)["velocity"], expected) < 2e-3
    assert join_transformer(model, tiny_half_bundle.folder) == 0, "nothing is left to find"
    # the projection in, the first attention's output layer and the feed-forward's second layer
    assert before.kernels - count(model, SIZES).kernels == 3 * TRANSFORMERS


def test_a_mean_that_is_far_larger_than_the_deviation_is_no_loss(tiny_half_bundle: Exported) -> None:
    """In the basis it is one number, and the weights behind have none for it."""
    model = loaded(tiny_half_bundle)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("proj_in.bias"):
            raised = numpy_helper.to_array(tensor) + np.float16(20)
            tensor.CopyFrom(numpy_helper.from_array(raised, tensor.name))
    feeds = given(model)
    expected = run(model, feeds)["velocity"]
    fewer_kernels.join_projections(model, tiny_half_bundle.folder)
    assert join_transformer(model, tiny_half_bundle.folder) == TRANSFORMERS
    assert error(run(model, feeds)["velocity"], expected) < 2e-2


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("Conv", "strides", [2, 2]),
        ("Conv", "group", 2),
        ("Conv", "pads", [1] * 4),
        ("LayerNormalization", "axis", 1),
    ],
)
def test_a_transformer_of_another_kind_is_left_as_it_is(
    tiny_half_bundle: Exported, kind: str, setting: str, value: Any
) -> None:
    model = loaded(tiny_half_bundle)
    for node in model.graph.node:
        if node.op_type == kind:
            others = [entry for entry in node.attribute if entry.name != setting]
            del node.attribute[:]
            node.attribute.extend([*others, onnx.helper.make_attribute(setting, value)])
    assert join_transformer(model, tiny_half_bundle.folder) == 0


@pytest.mark.parametrize("channels", [8, 640])
def test_the_basis_of_a_transformer_has_the_mean_first(channels: int) -> None:
    basis = mean_first(channels)
    assert np.allclose(basis @ basis, np.eye(channels))
    row = np.random.default_rng(0).standard_normal(channels)
    turned = row @ basis
    assert np.isclose(turned[0], row.mean() * channels**0.5)
    assert np.isclose((turned[1:] ** 2).mean() * (channels - 1) / channels, row.var())


def test_all_passes_for_cuda_find_theirs_in_turn(tiny_half_bundle: Exported) -> None:
    model = loaded(tiny_half_bundle)
    feeds = given(model)
    first = before = run(model, feeds)["velocity"]
    found = {}
    for spell in PASSES:
        found[spell.__name__] = spell(model, tiny_half_bundle.folder)
        velocity = run(model, feeds)["velocity"]
        assert error(velocity, before) < 2e-3, spell.__name__
        before = velocity
    assert found == {
        "join_projections": 3 * SITES,
        "fold_projections_into_text": SITES,
        "fuse_attention": 3 * SITES,
        "slice_unevenly": 2,
        "normalise_in_half": 3 * TRANSFORMERS,
        "normalise_groups_in_half": GROUPS,
        "fold_into_projections": 2 * TRANSFORMERS,
        "add_within_normalisations": 2 * TRANSFORMERS,
        "project_to_tokens": TRANSFORMERS,
        "fold_feed_forward": TRANSFORMERS,
        "add_mask_within_keys": SITES,
        "normalise_groups_at_once": GROUPS,
        "gate_by_sigmoid": GROUPS - TRANSFORMERS,
    }
    assert error(before, first) < 3e-3
    assert [spell(model, tiny_half_bundle.folder) for spell in PASSES] == [0] * len(PASSES)
    left = Counter(node.op_type for node in split_loop(model)[1].graph.node)
    assert not left["Transpose"], "no image is turned into tokens"
    assert not left["InstanceNormalization"]
    uneven = [n for n in model.graph.node if n.op_type == "Split" and len(n.input) > 1]
    assert not uneven, "ONNX Runtime copies their sizes from memory that a captured run must not read"


def test_float32_graphs_lose_projections_too_and_nothing_else(tiny_bundle: Exported) -> None:
    model = onnx.load(tiny_bundle.folder / "velocity.onnx")
    feeds = given(model)
    expected = run(model, feeds)["velocity"]
    for spell in (fewer_kernels.join_projections, fewer_kernels.fold_projections_into_text):
        assert spell(model, tiny_bundle.folder) > 0
    assert error(run(model, feeds)["velocity"], expected) < 1e-5


# --- the two parts of the loop


@cache
def parts_of(path: Path, engine: str) -> dict[str, onnx.ModelProto]:
    if engine == "tensorrt":
        parts = prepared_loop(path, {})
        for part in parts.values():
            onnx.external_data_helper.load_external_data_for_model(part, str(path.parent))
        return parts
    model = onnx.load(path)
    rewrite_for_cuda(model, path.parent)
    return dict(zip((CONSTANTS, STEP), split_loop(model), strict=True))


@pytest.mark.parametrize("engine", ["cuda", "tensorrt"])
def test_the_parts_give_what_the_whole_gives(tiny_half_bundle: Exported, engine: str) -> None:
    path = tiny_half_bundle.folder / "velocity.onnx"
    whole = onnx.load(path)
    feeds = given(whole)
    expected = run(whole, feeds)["velocity"]
    parts = parts_of(path, engine)
    assert [value.name for value in parts[CONSTANTS].graph.input] == list(INVARIANTS)
    kept = run(parts[CONSTANTS], feeds)
    found = run(parts[STEP], feeds | SUM | kept)
    assert error(found["velocity"], expected) < 3e-3
    if engine == "tensorrt":
        next_x = feeds["x"] + 0.5 * found["velocity"] - 0.25 * SUM["before"]
        assert np.allclose(found["next_x"], next_x, atol=1e-6)


@pytest.mark.parametrize("engine", ["cuda", "tensorrt"])
def test_no_node_of_the_step_depends_on_what_stays_the_same_alone(
    tiny_half_bundle: Exported, engine: str
) -> None:
    step = parts_of(tiny_half_bundle.folder / "velocity.onnx", engine)[STEP].graph
    same = {tensor.name for tensor in step.initializer}
    same |= {value.name for value in step.input} - {"x", "time_features", *SUM}
    idle = []
    for node in step.node:
        if same.issuperset(filter(None, node.input)):
            idle.append(f"{node.op_type} {node.name}")
            same.update(node.output)
    assert idle == []


def test_what_a_step_reads_as_it_was_given_is_kept_by_name() -> None:
    """The mask, where no pass touched it."""
    shape = ("batch", 3)
    names = ("x", *INVARIANTS)
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in names]
    nodes = [
        helper.make_node("Add", ["mixture_features", "keys_values"], ["both"]),
        helper.make_node("Mul", ["x", "both"], ["moved"]),
        helper.make_node("Add", ["moved", "mask_bias"], ["velocity"]),
    ]
    output = helper.make_tensor_value_info("velocity", onnx.TensorProto.FLOAT, shape)
    whole = helper.make_model(
        helper.make_graph(nodes, "g", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    first, step = split_loop(whole)
    assert {value.name for value in first.graph.output} == {"both", "mask_bias.kept"}
    assert [node.op_type for node in step.graph.node] == ["Mul", "Add"]
    feeds = {name: np.full((2, 3), value, np.float32) for value, name in enumerate(names, 2)}
    assert np.array_equal(run(step, feeds | run(first, feeds))["velocity"], np.full((2, 3), 2 * 7 + 5))


# --- what nodes must be in what order


def test_an_edited_graph_is_in_order_and_holds_what_is_read() -> None:
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (2,))]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2,))
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Neg", ["e"], ["y"])]
    graph = helper.make_graph(nodes, "g", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    editor = Editor(model, Path())
    editor.put("Add", ["x", editor.store("two", np.full(2, 2, np.float32))], ["z"])
    editor.put("Abs", ["z"], ["y"])
    editor.store("unread", np.zeros(2, np.float32))
    editor.finish()
    assert [node.op_type for node in model.graph.node] == ["Add", "Abs"]
    assert [tensor.name for tensor in model.graph.initializer] == ["two"]
    assert run(model, {"x": np.array([-3, 1], np.float32)})["y"].tolist() == [1, 3]


def operators(bundle: Exported) -> Iterator[Counter[str]]:
    manifest = Manifest.read(bundle.folder)
    for entry in manifest.variants["cuda"].values():
        model = onnx.load(bundle.folder / entry.files[0].name, load_external_data=False)
        yield Counter(node.op_type for node in model.graph.node)


def test_the_exporter_writes_what_the_passes_give(tiny_half_bundle: Exported) -> None:
    found: Counter[str] = sum(operators(tiny_half_bundle), Counter())
    assert found["SkipLayerNormalization"] == 2 * 3 * TRANSFORMERS, "whole, and in the step"
