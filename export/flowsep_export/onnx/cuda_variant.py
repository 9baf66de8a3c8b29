"""Variant of a half-precision velocity graph for ONNX Runtime's CUDA provider: fewer kernels, and attention
as one operator.

ONNX Runtime fuses MatMul, Softmax, MatMul by itself only in the graphs of models that it knows. Its own
operator `com.microsoft.MultiHeadAttention` is one kernel, which never holds the scores. TensorRT's parser
would look for a plugin of that name, so this variant is for the CUDA provider only. In float32 fused
kernels may multiply in TF32: float32 graphs stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from flowsep_export.onnx.attention import soften_in_half
from flowsep_export.onnx.cuda_kernels import (
    add_within_normalisations,
    fold_into_projections,
    gate_by_sigmoid,
    normalise_groups_in_half,
    normalise_in_half,
    slice_unevenly,
)
from flowsep_export.onnx.cuda_tokens import (
    add_mask_within_keys,
    fold_feed_forward,
    normalise_groups_at_once,
    project_to_tokens,
)
from flowsep_export.onnx.editing import MICROSOFT, Editor, Pass
from flowsep_export.onnx.fewer_kernels import fold_projections_into_text, join_projections
from flowsep_export.onnx.links import makers, users

ATTENTION = "MultiHeadAttention"

#: Permutations of `[B, N, H, D]`: for queries and values, and for keys.
HEADS_BEFORE_TOKENS, KEYS_TRANSPOSED = [0, 2, 1, 3], [0, 2, 3, 1]


@dataclass(frozen=True)
class _Attention:
    """Queries, keys and values `[B, N, H · D]`, before the heads are split."""

    tensors: tuple[str, str, str]
    heads: int
    scale: float
    output: str  # [B, N, H · D]


def fuse_attention(model: onnx.ModelProto, folder: Path) -> int:
    """Put one operator for every half-precision softmax(s · q kᵀ) v over heads, in place.

    Attention with a bias on its scores (the query's mask) stays: fused kernels need a bias with aligned rows,
    and rows of 50 tokens are not aligned.

    Args:
        model: The graph.
        folder: Where its external weights lie; none is read.

    Returns:
        Number of fused attentions.
    """
    graph = model.graph
    maker, readers = makers(graph), users(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {
        attention.output: attention
        for node in graph.node
        if node.op_type == "Softmax"
        and (attention := _attention(node, maker, readers, constants)) is not None
    }
    for index, node in enumerate(graph.node):
        if node.output[0] in found:
            attention = found[node.output[0]]
            fused = helper.make_node(
                ATTENTION,
                attention.tensors,
                [attention.output],
                name=f"{node.name}.attention",
                domain=MICROSOFT,
                num_heads=attention.heads,
                scale=attention.scale,
            )
            graph.node[index].CopyFrom(fused)
    if found:
        Editor(model, folder).finish()
    return len(found)


def _attention(
    softmax: onnx.NodeProto,
    maker: Mapping[str, onnx.NodeProto],
    users: Mapping[str, list[onnx.NodeProto]],
    constants: Mapping[str, onnx.TensorProto],
) -> _Attention | None:
    """The attention around a softmax; None if it has another form."""
    scores = maker.get(softmax.input[0])
    weighted = _only_user(softmax.output[0], users, "MatMul")
    if scores is None or scores.op_type != "MatMul" or weighted is None:
        return None
    scaled = maker.get(scores.input[0])
    if scaled is None or scaled.op_type != "Mul" or scaled.input[1] not in constants:
        return None
    factor = constants[scaled.input[1]]
    if factor.data_type != TensorProto.FLOAT16 or factor.dims:
        return None
    split = [
        _split_heads(name, permutation, maker, constants)
        for name, permutation in (
            (scaled.input[0], HEADS_BEFORE_TOKENS),
            (scores.input[1], KEYS_TRANSPOSED),
            (weighted.input[1], HEADS_BEFORE_TOKENS),
        )
    ]
    joined = _only_user(weighted.output[0], users, "Transpose")
    if joined is None or list(joined.attribute[0].ints) != HEADS_BEFORE_TOKENS:
        return None
    output = _only_user(joined.output[0], users, "Reshape")
    heads = {entry[1] for entry in split if entry is not None}
    if output is None or None in split or len(heads) != 1:
        return None
    q, k, v = (entry[0] for entry in split if entry is not None)
    scale = float(numpy_helper.to_array(factor))
    return _Attention((q, k, v), heads.pop(), scale, output.output[0])


def _only_user(name: str, users: Mapping[str, list[onnx.NodeProto]], kind: str) -> onnx.NodeProto | None:
    found = users.get(name, [])
    return found[0] if len(found) == 1 and found[0].op_type == kind and found[0].input[0] == name else None


def _split_heads(
    name: str,
    permutation: list[int],
    maker: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
) -> tuple[str, int] | None:
    """The tensor `[B, N, H · D]` before its heads were split, and H."""
    transposed = maker.get(name)
    if transposed is None or transposed.op_type != "Transpose":
        return None
    split = maker.get(transposed.input[0])
    if split is None or split.op_type != "Reshape" or split.input[1] not in constants:
        return None
    shape = numpy_helper.to_array(constants[split.input[1]]).tolist()
    if list(transposed.attribute[0].ints) != permutation or len(shape) != 4 or shape[:2] != [0, 0]:
        return None
    return split.input[0], int(shape[2])


PASSES: tuple[Pass, ...] = (
    join_projections,
    fold_projections_into_text,
    fuse_attention,
    slice_unevenly,
    normalise_in_half,
    normalise_groups_in_half,
    fold_into_projections,
    add_within_normalisations,
    project_to_tokens,
    fold_feed_forward,
    add_mask_within_keys,
    normalise_groups_at_once,
    gate_by_sigmoid,
)


def rewrite_for_cuda(model: onnx.ModelProto, folder: Path) -> None:
    """All passes over a half-precision velocity graph, in place.

    Args:
        model: The graph.
        folder: Where its external weights lie.
    """
    soften_in_half(model)
    for spell in PASSES:
        spell(model, folder)


def pad_as_before(model: onnx.ModelProto) -> None:
    """Gives a graph the opset 18, in place, whose Pad the CUDA provider has from ONNX Runtime 1.18 on.

    It has the Pad of opset 19, which differs in a mode that no graph here has, from 1.25 on only.
    """
    newer = {"Gelu", "AveragePool", "GridSample", "DFT", "Resize"} & {
        node.op_type for node in model.graph.node
    }
    assert not newer, f"{newer} mean something else in opset 18"
    next(entry for entry in model.opset_import if entry.domain == "").version = 18
