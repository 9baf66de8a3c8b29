"""Attention as one operator of ONNX Runtime, and in half precision without casts around its softmax.

ONNX Runtime fuses MatMul, Softmax, MatMul by itself only in the graphs of models that it knows. Its own
operator `com.microsoft.MultiHeadAttention` never holds the scores.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from flowsep_export.onnx.editing import MICROSOFT, Editor, at_every, attributes, casts_to

ATTENTION = "MultiHeadAttention"

#: Permutations of `[B, N, H, D]`: for queries and values, and for keys.
HEADS_BEFORE_TOKENS, KEYS_TRANSPOSED = [0, 2, 1, 3], [0, 2, 3, 1]

#: Channels of a head up to which the operator is the quicker one on a CPU (docs/rewrites.md).
WIDEST = 256

#: Bias of a masked score in half precision: e^-1e4 is zero, and half's own lowest number plus a score is not
#: finite any more.
LOWEST_BIAS = -1e4


@at_every("Softmax")
def soften_in_half(editor: Editor, softmax: onnx.NodeProto) -> bool:
    """Removes the casts to float32 and back around the softmax of half-precision attention.

    MatMul, Add, Softmax, MatMul in one type is the pattern that TensorRT turns into one kernel, which
    computes the softmax in float32 inside. Scores that are float32 themselves (T5's) stay as they are.
    """
    narrowed = editor.only_user(softmax.output[0], "Cast")
    if narrowed is None or not casts_to(narrowed, TensorProto.FLOAT16):
        return False
    scores = _widened_product(editor, softmax.input[0])
    masked = editor.source(softmax.input[0], "Add")
    if masked is not None:
        # the product is one of the two, and the bias the other
        for name, bias in (masked.input, reversed(masked.input)):
            product = _widened_product(editor, name)
            if product is not None:
                scores = f"{masked.output[0]}.in_half"
                editor.put("Add", [product, _half_bias(editor, bias)], [scores])
                break
    if scores is None:
        return False
    editor.put("Softmax", [scores], [narrowed.output[0]], **attributes(softmax))
    return True


def _widened_product(editor: Editor, name: str) -> str | None:
    """The product in half precision that is cast to float32."""
    widened = editor.source(name, "Cast")
    if widened is None or not casts_to(widened, TensorProto.FLOAT):
        return None
    product = editor.source(widened.input[0], "MatMul")
    return None if product is None else product.output[0]


def _half_bias(editor: Editor, bias: str) -> str:
    half = f"{bias}.half"
    if half not in editor.maker:
        lowest = editor.store("lowest_bias", np.array(LOWEST_BIAS, np.float32))
        editor.put("Max", [bias, lowest], [f"{bias}.bounded"])
        editor.put("Cast", [f"{bias}.bounded"], [half], to=TensorProto.FLOAT16)
    return half


@at_every("Softmax")
def fuse_attention(editor: Editor, softmax: onnx.NodeProto) -> bool:
    """Puts one operator for softmax(s · q kᵀ) v over heads.

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
    if len(tensors) != 3 or len(heads) != 1:
        return False
    scale = float(editor.constant(scaled.input[1]))
    editor.put(ATTENTION, tensors, [output.output[0]], MICROSOFT, num_heads=heads.pop(), scale=scale)
    return True


@at_every("Softmax")
def fuse_narrow_attention(editor: Editor, softmax: onnx.NodeProto) -> bool:
    """Puts one operator for softmax(s · q kᵀ) v of one head (the VAE's), if it is narrow."""
    scores = editor.source(softmax.input[0], "MatMul")
    weighted = editor.only_user(softmax.output[0], "MatMul")
    output = editor.only_user(weighted.output[0], "Gather") if weighted is not None else None
    if scores is None or weighted is None or output is None or attributes(output).get("axis") != 1:
        return False
    queries = editor.chain(scores.input[0], "Mul", "Unsqueeze", "Transpose", "Reshape")
    keys = editor.chain(scores.input[1], "Transpose", "Unsqueeze")
    values = editor.chain(weighted.input[1], "Unsqueeze")
    if not (queries and keys and values) or editor.shape(queries[0].input[1]) != ():
        return False
    views = (queries[1], keys[1], values[0])
    if list(attributes(keys[0])["perm"]) != [0, 1, 3, 2]:
        return False
    if any(editor.constant(view.input[1]).tolist() != [1] for view in views):
        return False
    _, width, _ = editor.constant(queries[-1].input[1]).tolist()  # [0, width, -1], transposed afterwards
    if not 0 < width <= WIDEST:
        return False
    scale = float(editor.constant(queries[0].input[1]))
    tensors = [view.input[0] for view in views]
    editor.put(ATTENTION, tensors, [output.output[0]], MICROSOFT, num_heads=1, scale=scale)
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
