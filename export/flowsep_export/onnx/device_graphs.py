"""Script that makes the small graphs of the runtime (`flowsep_runtime.backends.device_graphs`).

python -m flowsep_export.onnx.device_graphs
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from flowsep_export.onnx.convert import OPSET
from flowsep_runtime.backends.device_graphs import (
    DEVICE_GRAPHS,
    INDICES,
    device_graph_path,
    device_graph_shape,
)


def device_graphs() -> dict[str, onnx.ModelProto]:
    """The graphs by name."""
    posterior = [
        helper.make_node("Mul", ["std", "noise"], ["deviation"]),
        helper.make_node("Add", ["mean", "deviation"], ["mixture_latent"]),
    ]
    pick = [helper.make_node("Gather", ["values", "index"], ["picked"], axis=0)]
    guide = [
        helper.make_node("Gather", ["rows", "wanted"], ["towards"], axis=0),
        helper.make_node("Gather", ["rows", "unwanted"], ["from"], axis=0),
        helper.make_node("Sub", ["towards", "from"], ["way"]),
        helper.make_node("Mul", ["way", "scale"], ["farther"]),
        helper.make_node("Add", ["from", "farther"], ["guided"]),
    ]
    advance = [
        *sum_nodes(),
        # [batch, 1]: the row is repeated by broadcasting it over
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "one"], ["rows"], axis=0),
        helper.make_node("Expand", ["row", "rows"], ["time_features"]),
    ]
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    return {
        "posterior": _model("posterior", posterior, []),
        "pick": _model("pick", pick, []),
        "guide": _model("guide", guide, []),
        "advance": _model("advance", advance, [one]),
    }


def sum_nodes() -> list[onnx.NodeProto]:
    """next_x = x + weights[0] * velocity + weights[1] * before."""
    return [
        helper.make_node("Split", ["weights"], ["of_velocity", "of_before"], axis=0, num_outputs=2),
        helper.make_node("Mul", ["velocity", "of_velocity"], ["change"]),
        helper.make_node("Add", ["x", "change"], ["changed_x"]),
        helper.make_node("Mul", ["before", "of_before"], ["change_before"]),
        helper.make_node("Add", ["changed_x", "change_before"], ["next_x"]),
    ]


def _model(name: str, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    inputs, outputs = (
        [
            helper.make_tensor_value_info(
                tensor,
                TensorProto.INT64 if tensor in INDICES else TensorProto.FLOAT,
                device_graph_shape(tensor),
            )
            for tensor in tensors
        ]
        for tensors in DEVICE_GRAPHS[name]
    )
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="flowsep-export"
    )
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    for _name, _graph in device_graphs().items():
        onnx.save(_graph, device_graph_path(_name))
