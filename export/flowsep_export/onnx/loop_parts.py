"""The velocity graph in two: what is the same in every step of a solver's loop, and the step.

A solver repeats the step alone. What the first part gives (keys and values as the products want them, the
mask and the mixture's features in half) stays on the device.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import helper

from flowsep_runtime.backends.loop_parts import CONSTANTS, INVARIANTS, STEP


def split_loop(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Splits the velocity graph; the model stays as it is.

    Returns:
        What depends on the invariants alone, with those as its inputs; and the step, which takes its outputs
        by the same names beside what moves.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    fixed = set(INVARIANTS)
    ahead: list[onnx.NodeProto] = []
    step: list[onnx.NodeProto] = []
    for original in graph.node:
        node = onnx.NodeProto.FromString(original.SerializeToString())
        read = {name for name in node.input if name} - constants
        if read and read <= fixed:
            fixed.update(node.output)
            ahead.append(node)
        else:
            step.append(node)
    border = sorted({name for node in step for name in node.input if name in fixed})
    renamed = {name: f"{name}.kept" for name in border if name in INVARIANTS}
    ahead += [helper.make_node("Identity", [name], [kept], name=kept) for name, kept in renamed.items()]
    kept_names = [renamed.get(name, name) for name in border]
    inputs = [value for value in graph.input if value.name in INVARIANTS]
    unshaped = [onnx.ValueInfoProto(name=name) for name in kept_names]
    first = _part(model, CONSTANTS, ahead, inputs, unshaped)
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(first).graph.output}
    border_values = [known[name] for name in kept_names]
    for value in border_values:
        assert value.type.tensor_type.HasField("shape"), value.name
    del first.graph.output[:]
    first.graph.output.extend(border_values)
    for node in step:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    moving = [value for value in graph.input if value.name not in INVARIANTS]
    return first, _part(model, STEP, step, [*moving, *border_values], list(graph.output))


def _part(
    model: onnx.ModelProto,
    name: str,
    nodes: Collection[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    read = {tensor for node in nodes for tensor in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    graph = helper.make_graph(list(nodes), name, inputs, outputs, weights)
    return helper.make_model(
        graph,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
    )


def named_axes(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    """Name, dtype and shape of an input or output; a text names a dynamic axis."""
    tensor = value.type.tensor_type
    axes = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    return value.name, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), axes
