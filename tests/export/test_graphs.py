"""Content of the exported files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from flowsep_export.graphs import graphs
from flowsep_ref import FlowSep
from flowsep_runtime.bundle.manifest import GRAPHS, Manifest
from tests.export.conftest import Exported


def load(bundle: Exported, graph: str) -> onnx.GraphProto:
    return onnx.load(bundle.folder / f"{graph}.onnx").graph


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def test_every_graph_has_the_names_of_the_bundle_format(tiny_model: FlowSep) -> None:
    table = graphs(tiny_model)
    names = {
        name: (tuple(spec.name for spec in graph.inputs), tuple(spec.name for spec in graph.outputs))
        for name, graph in table.items()
    }
    assert names == dict(GRAPHS)


def test_the_files_have_the_manifests_names_types_and_axes(tiny_bundle: Exported) -> None:
    for name, entry in Manifest.read(tiny_bundle.folder).graphs.items():
        graph = load(tiny_bundle, name)
        for values, tensors in ((graph.input, entry.inputs), (graph.output, entry.outputs)):
            found = [
                (
                    value.name,
                    onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                    tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
                )
                for value in values
            ]
            assert found == [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]


def test_every_batch_is_dynamic(tiny_bundle: Exported) -> None:
    for name, entry in Manifest.read(tiny_bundle.folder).graphs.items():
        for tensor in (*entry.inputs, *entry.outputs):
            assert isinstance(tensor.shape[0], str), f"{tensor.name} of {name}"


def test_attention_scales_the_queries_and_adds_the_mask_before_softmax(tiny_bundle: Exported) -> None:
    graph = load(tiny_bundle, "velocity")
    made_by = producers(graph)
    masked = 0
    for softmax in (node for node in graph.node if node.op_type == "Softmax"):
        scores = made_by[softmax.input[0]]
        if scores.op_type == "Add":
            assert scores.input[0] == "mask_bias", "from the right it is wrong in OpenVINO's fused bf16"
            masked += 1
            scores = made_by[scores.input[1]]
        assert scores.op_type == "MatMul"
        assert made_by[scores.input[0]].op_type == "Mul", "the scale belongs on the queries"
        (user,) = (node for node in graph.node if softmax.output[0] in node.input)
        assert user.op_type == "MatMul"
    # one text attention a site, of four attentions in all
    assert masked == 7


def test_norms_are_operators_that_backends_know(tiny_bundle: Exported) -> None:
    counts = Counter(node.op_type for node in load(tiny_bundle, "velocity").node)
    assert counts["LayerNormalization"] == 3 * 2 * 7
    assert counts["InstanceNormalization"] == 37
    assert not {"ReduceMean", "Expand", "Gather", "CastLike", "Identity", "Loop", "If"} & set(counts)


def test_only_group_norm_asks_for_shapes_inside_the_loop(tiny_bundle: Exported) -> None:
    graph = load(tiny_bundle, "velocity")
    users = Counter(name for node in graph.node for name in node.input)
    made_by = producers(graph)
    for shape in (node for node in graph.node if node.op_type == "Shape"):
        assert users[shape.output[0]] == 1
        (user,) = (node for node in graph.node if shape.output[0] in node.input)
        assert user.op_type == "Reshape"
        assert made_by[user.input[0]].op_type == "InstanceNormalization"


def test_unused_outputs_are_not_computed(tiny_bundle: Exported, tiny_model: FlowSep) -> None:
    graph = load(tiny_bundle, "velocity")
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    first = next(node for node in convolutions if "x" in node.input)
    (last,) = (node for node in convolutions if "velocity" in node.output)
    assert shapes[first.input[1]][1] == 8, "the mixture's half of the first convolution is outside the loop"
    assert shapes[last.input[1]][0] == 8, "only the first half of the output channels is the velocity"


def test_an_export_holds_no_local_paths(tiny_bundle: Exported) -> None:
    for path in tiny_bundle.folder.iterdir():
        content = path.read_bytes()
        for trace in (str(Path(onnx.__file__).parents[1]), str(Path(__file__).parents[2]), "stack_trace"):
            assert trace.encode() not in content, f"{trace} in {path.name}"


@pytest.mark.parametrize("graph", GRAPHS)
def test_weights_are_in_the_file_while_they_are_small(tiny_bundle: Exported, graph: str) -> None:
    assert not (tiny_bundle.folder / f"{graph}.onnx.data").exists()
