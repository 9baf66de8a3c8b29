"""Cost of an ONNX graph at given sizes: kernels, operations and bytes.

Counted: nodes that compute something once constants and shapes are folded, the multiplications and additions
of products and convolutions, and the bytes that these nodes read and write if each is a kernel of its own.

Estimated, because only a backend knows: how many kernels are left after fusion, and what they move. The
estimate lets every pointwise or layout node join the kernel before it. MatMul, softmax, MatMul are one kernel
where TensorRT documents it: with heads as an axis of their own, [B, heads, tokens, tokens], all the way. A
concatenation of what is computed is none: TensorRT's builder has its parts written in place ("concat
removal" in its log). Padding, resizing and reductions stay kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto
from onnxscript.optimizer import fold_constants_ir

#: No work: the same bytes under another shape.
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"}

#: Joins the kernel before it, in the estimate.
POINTWISE = {
    *(
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Cos",
        "Div",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Gelu",
        "Log",
        "Max",
        "Min",
    ),
    *(
        "Mul",
        "Neg",
        "Pow",
        "QuickGelu",
        "Reciprocal",
        "Sigmoid",
        "Sin",
        "Slice",
        "Softplus",
        "Split",
        "Sqrt",
        "Sub",
        "Sum",
        "Tanh",
    ),
    *("Transpose", "Where"),
}

#: Pieces and repetitions of something that has its place elsewhere.
COPIES = {"Slice", "Split", "Expand"}

FUSED_PRODUCT = "FusedMatMul"
PRODUCTS = {"MatMul", FUSED_PRODUCT, "Gemm", "Conv", "ConvTranspose"}

ATTENTION = "MultiHeadAttention"
#: Stands in for operators of which onnx infers no shape: their outputs have the shape of the first input.
STAND_IN = "Mean"
#: The end of names that only stand-ins have.
TURNED = ".turned"


@dataclass(frozen=True)
class Cost:
    """Cost of one run of a graph."""

    nodes: int  # in the file
    launches: int  # nodes that compute, one kernel each
    kernels: int  # estimate after fusion
    flops: float  # of products and convolutions, a multiplication and an addition are two
    bytes: float  # read and written by one kernel a node
    fused_bytes: float  # estimate after fusion
    weight_bytes: float


class SizedGraph:
    """A graph at fixed sizes, what computes shapes folded away.

    Attributes:
        nodes: What is left; those that follow from weights alone too.
        constants: Tensors that follow from weights and sizes alone.
        shapes, types: Of tensors, by name; types are onnx's numbers.

    Args:
        model: A graph; its weights are not read. Changed in place.
        sizes: Of every dynamic axis of its inputs, by name.
    """

    def __init__(self, model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
        for value in (*model.graph.input, *model.graph.output):
            for axis in value.type.tensor_type.shape.dim:
                if axis.dim_param in sizes:
                    axis.dim_value = sizes[axis.dim_param]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        self.nodes_in_file = len(model.graph.node)
        own = {node.output[0]: node for node in model.graph.node if _is_unknown(node)}
        model = _with_stand_ins(model)
        folded = ir.from_proto(model)
        # small constants only: what computes shapes, and no weights
        fold_constants_ir(folded, onnx_shape_inference=True, input_size_limit=256, output_size_limit=256)
        graph = onnx.shape_inference.infer_shapes(ir.to_proto(folded), data_prop=True).graph
        others = {name for node in own.values() for name in (*node.output[1:], f"{node.output[0]}{TURNED}")}
        self.nodes = [own.get(node.output[0], node) for node in graph.node if others.isdisjoint(node.output)]
        self.outputs = {value.name for value in graph.output}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, int] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            kind = value.type.tensor_type
            self.types[value.name] = kind.elem_type
            if kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim):
                self.shapes[value.name] = tuple(axis.dim_value for axis in kind.shape.dim)
        for tensor in graph.initializer:
            self.shapes[tensor.name], self.types[tensor.name] = tuple(tensor.dims), tensor.data_type
        self.constants = {tensor.name for tensor in graph.initializer}
        for node in self.nodes:
            # what follows from weights and shapes alone is computed when the graph is loaded
            if node.op_type in ("Shape", "Constant") or (
                node.input and all(name in self.constants for name in node.input if name)
            ):
                self.constants.update(node.output)

    def elements(self, name: str) -> int:
        if name not in self.shapes:
            raise ValueError(f"the shape of {name} does not follow from the sizes given")
        return math.prod(self.shapes[name])

    def bytes_of(self, name: str) -> int:
        return self.elements(name) * int(_itemsize(self.types[name]))


def shapes_of(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that follows from the sizes of the axes; the model stays as it is."""
    return SizedGraph(onnx.ModelProto.FromString(model.SerializeToString()), sizes).shapes


def _is_unknown(node: onnx.NodeProto) -> bool:
    return node.domain == "com.microsoft"


def _with_stand_ins(model: onnx.ModelProto) -> onnx.ModelProto:
    result: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    del result.graph.node[:]
    for node in model.graph.node:
        if node.op_type == FUSED_PRODUCT:
            result.graph.node.extend(_product(node))
        elif _is_unknown(node):
            names = filter(None, node.output)
            stand_ins = [onnx.helper.make_node(STAND_IN, node.input[:1], [name]) for name in names]
            result.graph.node.extend(stand_ins)
        else:
            result.graph.node.append(node)
    return result


def _product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Transpose and MatMul; one operand of three axes is transposed."""
    (side,) = (number for number, name in enumerate(("transA", "transB")) if _number(node, name))
    turned, inputs = f"{node.output[0]}{TURNED}", list(node.input)
    turn = onnx.helper.make_node("Transpose", [inputs[side]], [turned], perm=[0, 2, 1])
    inputs[side] = turned
    return [turn, onnx.helper.make_node("MatMul", inputs, list(node.output))]


def _number(node: onnx.NodeProto, attribute: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == attribute), 0)


def count(model: onnx.ModelProto, sizes: Mapping[str, int]) -> Cost:
    """The cost of one run.

    Args:
        model: A graph; its weights are not read. Changed in place.
        sizes: Of every dynamic axis of its inputs, by name.

    Raises:
        ValueError: If a shape does not follow from the sizes.
    """
    graph = SizedGraph(model, sizes)
    work = [n for n in graph.nodes if n.op_type not in VIEWS and not graph.constants.issuperset(n.output)]
    groups = _groups(graph, work)
    weights = {name for n in work for name in n.input if name in graph.constants}
    return Cost(
        nodes=graph.nodes_in_file,
        launches=len(work),
        kernels=len(set(groups.values())),
        flops=float(sum(_flops(graph, node) for node in work if node.op_type in PRODUCTS | {ATTENTION})),
        bytes=float(sum(_moved(graph, [node]) for node in work)),
        fused_bytes=float(_fused_bytes(graph, work, groups)),
        weight_bytes=float(sum(graph.bytes_of(name) for name in weights)),
    )


def _flops(graph: SizedGraph, node: onnx.NodeProto) -> int:
    first, second = (graph.shapes[name] for name in node.input[:2])
    out = graph.elements(node.output[0])
    if node.op_type == ATTENTION:  # two products of every query with every key, [B, N, H · D] each
        return 2 * 2 * out * second[1]
    if node.op_type == "Conv":  # weight [out, in / groups, kernel…]
        return 2 * out * math.prod(second[1:])
    if node.op_type == "ConvTranspose":  # weight [in, out / groups, kernel…]
        return 2 * math.prod(first) * math.prod(second[1:])
    if node.op_type in ("Gemm", FUSED_PRODUCT):
        return 2 * out * first[-2 if _number(node, "transA") else -1]
    return 2 * out * first[-1]


def _source(graph: SizedGraph, makers: Mapping[str, onnx.NodeProto], name: str) -> onnx.NodeProto | None:
    """The node that computes a tensor, seen through views."""
    node = makers.get(name)
    while node is not None and node.op_type in VIEWS:
        node = makers.get(node.input[0])
    return None if node is None or graph.constants.issuperset(node.output) else node


def _groups(graph: SizedGraph, work: list[onnx.NodeProto]) -> dict[int, int]:
    """Node -> its kernel, both as ids, in the estimate."""
    makers = {name: node for node in graph.nodes for name in node.output}
    order = {id(node): place for place, node in enumerate(work)}
    kernels: dict[int, int] = {}
    for node in work:
        found = [_source(graph, makers, name) for name in node.input if name not in graph.constants]
        # what needs two results can only be done behind the later one
        sources = sorted((n for n in found if n is not None), key=lambda n: order[id(n)], reverse=True)
        joins = node.op_type in POINTWISE
        if node.op_type == "Concat":
            # an input of the graph is copied, and so is a piece of something else
            joins = len(sources) == len(node.input) and COPIES.isdisjoint(n.op_type for n in sources)
        elif node.op_type == "Softmax":
            joins = _is_of_scores(graph, node, sources, kernels, work)
        elif node.op_type == "MatMul":
            first = _source(graph, makers, node.input[0])
            joins = first is not None and _is_attention(graph, first, node, makers, kernels)
            sources = [n for n in (first,) if n is not None]
        kernels[id(node)] = kernels[id(sources[0])] if joins and sources else id(node)
    return kernels


def _is_of_scores(
    graph: SizedGraph,
    softmax: onnx.NodeProto,
    sources: list[onnx.NodeProto],
    kernels: Mapping[int, int],
    work: list[onnx.NodeProto],
) -> bool:
    """True if the kernel that a softmax could join is a product of its own shape, heads and all."""
    shape = graph.shapes[softmax.input[0]]
    return bool(sources) and any(
        id(node) == kernels[id(sources[0])]
        and node.op_type == "MatMul"
        and graph.shapes[node.output[0]] == shape
        for node in work
    )


def _is_attention(
    graph: SizedGraph,
    node: onnx.NodeProto,
    product: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    kernels: Mapping[int, int],
) -> bool:
    """True if a node is a softmax within the kernel of its scores, and the product weights by it as it is."""
    weights = node.output[0]
    while node.op_type == "Cast" and node.input[0] in makers:
        node = makers[node.input[0]]
    is_fused = node.op_type == "Softmax" and kernels[id(node)] != id(node)
    return is_fused and graph.shapes[weights] == graph.shapes[product.input[0]]


def _moved(graph: SizedGraph, nodes: list[onnx.NodeProto]) -> int:
    names = {name for node in nodes for name in (*node.input, *node.output) if name}
    return sum(graph.bytes_of(name) for name in names if not _is_shape_input(graph, name))


def _is_shape_input(graph: SizedGraph, name: str) -> bool:
    """Pads, axes, slices: small integers that the host knows."""
    return name in graph.constants and graph.types.get(name) == TensorProto.INT64


def _fused_bytes(graph: SizedGraph, work: list[onnx.NodeProto], groups: Mapping[int, int]) -> int:
    """Bytes that cross the border of a kernel, each tensor once per kernel; a view counts as its source."""
    views = {node.output[0]: node.input[0] for node in graph.nodes if node.op_type in VIEWS}

    def seen(name: str) -> str:
        while name in views:
            name = views[name]
        return name

    made = {name: groups[id(node)] for node in work for name in node.output if name}
    reads = {
        (groups[id(node)], seen(name))
        for node in work
        for name in node.input
        if name and not _is_shape_input(graph, name) and made.get(seen(name)) != groups[id(node)]
    }
    written = {name for _, name in reads if name in made} | {seen(name) for name in graph.outputs}
    return sum(graph.bytes_of(name) for _, name in reads) + sum(graph.bytes_of(name) for name in written)


def _itemsize(kind: int) -> int:
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize)
