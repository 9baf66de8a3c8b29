"""Attention in half precision without casts around its softmax."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from flowsep_export.onnx.links import makers, users

#: Bias of a masked score in half precision: e^-1e4 is zero, and half's own lowest number plus a score is not
#: finite any more.
LOWEST_BIAS = -1e4


def soften_in_half(model: onnx.ModelProto) -> int:
    """Remove the casts to float32 and back around the softmax of half-precision attention, in place.

    MatMul, Add, Softmax, MatMul in one type is the pattern that TensorRT turns into one kernel, which
    computes the softmax in float32 inside. Scores that are float32 themselves (T5's) stay as they are.

    Returns:
        Number of changed attentions.
    """
    graph = model.graph
    maker, readers = makers(graph), users(graph)
    added: dict[str, list[onnx.NodeProto]] = {}
    changed = 0
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        casts_back = readers.get(softmax.output[0], [])
        if len(casts_back) != 1 or not _casts_to(casts_back[0], TensorProto.FLOAT16):
            continue
        before = maker.get(softmax.input[0])
        if before is not None and _is_widened_product(before, maker):
            softmax.input[0] = before.input[0]
        elif before is not None and before.op_type == "Add":
            # the product is one of the two, and the bias the other
            for name, bias in (before.input, reversed(before.input)):
                cast = maker.get(name)
                if cast is not None and _is_widened_product(cast, maker):
                    added.setdefault(bias, _half_bias(bias))
                    before.input[:] = [cast.input[0], f"{bias}.half"]
                    break
            else:
                continue
        else:
            continue
        (back,) = casts_back
        softmax.output[0] = back.output[0]
        graph.node.remove(back)
        changed += 1
    inputs = {value.name for value in graph.input}
    for bias, nodes in added.items():
        # a bias is an input of the graph, or made before its first use: at the start, or just after it
        place = 0 if bias in inputs else list(graph.node).index(maker[bias]) + 1
        for offset, node in enumerate(nodes):
            graph.node.insert(place + offset, node)
    if added:
        graph.initializer.append(helper.make_tensor("lowest_bias", TensorProto.FLOAT, [], [LOWEST_BIAS]))
    remove_unread(graph)
    return changed


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == kind


def _is_widened_product(node: onnx.NodeProto, maker: Mapping[str, onnx.NodeProto]) -> bool:
    if not _casts_to(node, TensorProto.FLOAT):
        return False
    product = maker.get(node.input[0])
    return product is not None and product.op_type == "MatMul"


def _half_bias(bias: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Max", [bias, "lowest_bias"], [f"{bias}.bounded"], name=f"{bias}.bounded"),
        helper.make_node(
            "Cast", [f"{bias}.bounded"], [f"{bias}.half"], name=f"{bias}.half", to=TensorProto.FLOAT16
        ),
    ]


def remove_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes whose results are not used, in place."""
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        unread = [index for index, node in enumerate(graph.node) if read.isdisjoint(node.output)]
        if not unread:
            return
        for index in reversed(unread):
            del graph.node[index]
