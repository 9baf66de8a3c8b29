"""Weights of an OpenVINO graph that are stored in half precision or bf16, and cast where they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flowsep_runtime.arrays import Array
from flowsep_runtime.backends import offline
from flowsep_runtime.backends.openvino.graph_nodes import part_of_openvino

if TYPE_CHECKING:
    from openvino import Model, Node, Output

LEAST_NARROWED = 1 << 16  # bytes of a weight; smaller ones take no time
_BLOCK = 1 << 15  # numbers that are rounded at once: their bytes stay in the processor's cache


def is_constant(output: Output) -> bool:
    """True if a value is known before the graph runs."""
    return bool(output.get_node().get_type_name() == "Constant")


def casts(model: Model) -> list[Node]:
    """The casts of stored weights."""
    return [
        node
        for node in model.get_ops()
        if node.get_type_name() == "Convert" and is_constant(node.input_value(0))
    ]


def mark(cast: Node) -> None:
    """Says of a cast what it is, decompression: without the mark OpenVINO widens the weights when it loads
    them."""
    cast.get_rt_info()["decompression_0"] = ""


def keep_half(model: Model) -> None:
    """Marks all casts of weights.

    Otherwise OpenVINO would hold widened weights twice: for a text encoder of matrix products alone, twice
    the memory in bf16. The numbers in float32 are the same bits.
    """
    for cast in casts(model):
        mark(cast)


def constant(op: Any, values: Array) -> Node:
    """A constant; a half-precision one stays half precision, marked as decompression.

    Args:
        op: OpenVINO's set of operations.
        values: In the precision that they are stored in.
    """
    node: Node = op.constant(np.ascontiguousarray(values))
    if values.dtype != np.float16:
        return node
    wide: Node = op.convert(node, "f32")
    mark(wide)
    return wide


def bf16_constant(op: Any, values: Array) -> Node:
    """A constant that is stored in bf16 and widened where it is used; arguments as for `constant`."""
    openvino, bits = offline.openvino(), bf16_bits(values)
    tensor = openvino.Tensor(bits, openvino.Shape(values.shape), openvino.Type.bf16)  # borrows them
    wide: Node = op.convert(op.constant(tensor, shared_memory=False), "f32")
    mark(wide)
    return wide


def bf16_bits(values: Array) -> Array:
    """float32 rounded to the nearest bf16, ties to even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = np.empty(bits.shape, np.uint16)
    scratch = np.empty(_BLOCK, np.uint32)
    for first in range(0, bits.size, _BLOCK):
        block = bits.reshape(-1)[first : first + _BLOCK]
        sums = scratch[: block.size]
        np.right_shift(block, 16, out=sums)
        sums &= 1
        sums += 0x7FFF
        sums += block
        sums >>= 16
        rounded.reshape(-1)[first : first + _BLOCK] = sums
    return rounded


def narrow(model: Model) -> None:
    """Stores the weights of matrix products and convolutions in bf16.

    OpenVINO would round them itself, to the same bits, each time that it reads the compiled graph from its
    cache, where they would take twice the space. Only weights that it multiplies by a constant behind the
    product are other bits: they are rounded before that, too.
    """
    op: Any = part_of_openvino("opset13")
    for node in model.get_ops():
        if node.get_type_name() in ("MatMul", "Convolution") and is_constant(node.input_value(1)):
            weight = node.input_value(1).get_node()
            is_wide = weight.get_output_element_type(0).get_type_name() == "f32"
            if is_wide and weight.get_byte_size() >= LEAST_NARROWED:
                node.input(1).replace_source_output(bf16_constant(op, weight.data).output(0))
