"""Variant of a half-precision velocity graph for ONNX Runtime's CUDA provider: fewer kernels, and attention
as one operator.

ONNX Runtime fuses MatMul, Softmax, MatMul by itself only in the graphs of models that it knows. Its own
operator `com.microsoft.MultiHeadAttention` is one kernel, which never holds the scores. TensorRT's parser
would look for a plugin of that name, so this variant is for the CUDA provider only. In float32 fused
kernels may multiply in TF32: float32 graphs stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

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
from flowsep_export.onnx.editing import MICROSOFT, Editor, Pass, at_every, attributes
from flowsep_export.onnx.fewer_kernels import fold_projections_into_text, join_projections

ATTENTION = "MultiHeadAttention"

#: Permutations of `[B, N, H, D]`: for queries and values, and for keys.
HEADS_BEFORE_TOKENS, KEYS_TRANSPOSED = [0, 2, 1, 3], [0, 2, 3, 1]


@at_every("Softmax")
def fuse_attention(editor: Editor, softmax: onnx.NodeProto) -> bool:
    """Puts one operator for a half-precision softmax(s · q kᵀ) v over heads.

    Attention with a bias on its scores (the query's mask) stays: fused kernels need a bias with aligned rows,
    and rows of 50 tokens are not aligned.
    """
    scores = editor.source(softmax.input[0], "MatMul")
    scaled = editor.source(scores.input[0], "Mul") if scores is not None else None
    weighted = editor.only_user(softmax.output[0], "MatMul")
    joined = editor.only_user(weighted.output[0], "Transpose") if weighted is not None else None
    output = editor.only_user(joined.output[0], "Reshape") if joined is not None else None
    if scores is None or scaled is None or weighted is None or joined is None or output is None:
        return False
    if list(attributes(joined)["perm"]) != HEADS_BEFORE_TOKENS or editor.shape(scaled.input[1]) != ():
        return False
    scale = editor.constant(scaled.input[1])
    found = [
        _before_heads(editor, name, permutation)
        for name, permutation in (
            (scaled.input[0], HEADS_BEFORE_TOKENS),
            (scores.input[1], KEYS_TRANSPOSED),
            (weighted.input[1], HEADS_BEFORE_TOKENS),
        )
    ]
    tensors = [entry[0] for entry in found if entry is not None]
    heads = {entry[1] for entry in found if entry is not None}
    if scale.dtype != np.float16 or len(tensors) != 3 or len(heads) != 1:
        return False
    editor.put(ATTENTION, tensors, [output.output[0]], MICROSOFT, num_heads=heads.pop(), scale=float(scale))
    return True


def _before_heads(editor: Editor, name: str, permutation: list[int]) -> tuple[str, int] | None:
    """The tensor `[B, N, H · D]` before its heads were split, and H."""
    found = editor.chain(name, "Transpose", "Reshape")
    if not found or list(attributes(found[0])["perm"]) != permutation:
        return None
    view = found[1]
    if editor.shape(view.input[1]) != (4,):
        return None
    rows, tokens, heads, _ = editor.constant(view.input[1]).tolist()
    return (view.input[0], heads) if (rows, tokens) == (0, 0) else None


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
    for spell in (soften_in_half, *PASSES):
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
