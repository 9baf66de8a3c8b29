"""Attention in half precision without casts around its softmax."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from flowsep_export.onnx.editing import Editor, at_every, attributes, casts_to

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
