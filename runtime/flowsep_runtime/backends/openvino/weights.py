"""Weights of an OpenVINO graph that are stored in half precision or bf16, and cast where they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openvino import Model, Node, Output


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
