"""Reshapes with constant shapes.

The exporter computes the shape of every Reshape from Shape, Gather and Concat, even where it is known. If at
most one dynamic axis differs from the input's, ONNX can express the shape as a constant: 0 keeps the input's
axis, -1 is the rest. Backends fuse attention only around such Reshapes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def make_reshapes_static(model: ir.Model) -> int:
    """Replace computed shapes by constants, in place.

    Returns:
        Number of changed Reshapes.
    """
    constants: dict[tuple[int, ...], ir.Value] = {}
    changed = 0
    for node in model.graph:
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is not None:
            continue
        shape = _constant_shape(node)
        if shape is None:
            continue
        if shape not in constants:
            name = "reshape_to_" + "_".join(str(size) for size in shape).replace("-1", "rest")
            constants[shape] = ir.Value(
                name=name,
                type=ir.TensorType(ir.DataType.INT64),
                shape=ir.Shape([len(shape)]),
                const_value=ir.tensor(np.array(shape, dtype=np.int64), name=name),
            )
            model.graph.register_initializer(constants[shape])
        node.replace_input_with(1, constants[shape])
        node.attributes.pop("allowzero", None)
        changed += 1
    return changed


def _constant_shape(node: ir.Node) -> tuple[int, ...] | None:
    source, target = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or target.shape is None:
        return None
    result = []
    for index, size in enumerate(target.shape):
        if isinstance(size, int):
            result.append(size)
        elif size.value is None:
            return None
        elif index < len(source.shape) and source.shape[index] == size:
            result.append(0)
        else:
            result.append(-1)
    if result.count(-1) > 1:
        return None
    return tuple(result)
