"""Launches that ONNX Runtime's CUDA provider can do without: casts around normalisations, whose half
kernels compute in float32 inside, additions before a normalisation, factors and summands of a channel that a
1x1 convolution can take over.

Each pass changes a half-precision graph in place and says how often it found its pattern. Where it writes an
operator of ONNX Runtime's own, that has a kernel for CPUs as well, so that the exporter verifies it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from flowsep_export.onnx.editing import MICROSOFT, Editor, Values, at_every, attributes, casts_to


@at_every("LayerNormalization")
def normalise_in_half(editor: Editor, norm: onnx.NodeProto) -> bool:
    """Lets a normalisation between casts to float32 and back take and give half instead."""
    widened = editor.source(norm.input[0], "Cast")
    narrowed = editor.only_user(norm.output[0], "Cast")
    if widened is None or narrowed is None or not casts_to(widened, TensorProto.FLOAT):
        return False
    scale, bias = (_in_half(editor, name) for name in norm.input[1:])
    editor.put(norm.op_type, [widened.input[0], scale, bias], [narrowed.output[0]], **attributes(norm))
    return True


@at_every("InstanceNormalization")
def normalise_groups_in_half(editor: Editor, norm: onnx.NodeProto) -> bool:
    """Lets Reshape, norm, Reshape, Mul, Add between casts to float32 and back take and give half instead."""
    apart = editor.source(norm.input[0], "Reshape")
    widened = editor.source(apart.input[0], "Cast") if apart is not None else None
    together = editor.only_user(norm.output[0], "Reshape")
    scaled = editor.only_user(together.output[0], "Mul") if together is not None else None
    shifted = editor.only_user(scaled.output[0], "Add") if scaled is not None else None
    narrowed = editor.only_user(shifted.output[0], "Cast") if shifted is not None else None
    if apart is None or widened is None or together is None or scaled is None:
        return False
    if shifted is None or narrowed is None or not casts_to(narrowed, TensorProto.FLOAT16):
        return False
    source, name = widened.input[0], narrowed.output[0]
    ones, zeros = (_in_half(editor, constant) for constant in norm.input[1:])
    editor.put("Shape", [source], [f"{name}.shape"])
    editor.put("Reshape", [source, apart.input[1]], [f"{name}.groups"])
    editor.put(
        "InstanceNormalization", [f"{name}.groups", ones, zeros], [f"{name}.normal"], **attributes(norm)
    )
    editor.put("Reshape", [f"{name}.normal", f"{name}.shape"], [f"{name}.together"])
    editor.put("Mul", [f"{name}.together", _in_half(editor, scaled.input[1])], [f"{name}.scaled"])
    editor.put("Add", [f"{name}.scaled", _in_half(editor, shifted.input[1])], [name])
    return True


@at_every("Conv")
def fold_into_projections(editor: Editor, conv: onnx.NodeProto) -> bool:
    """Folds what is done to each channel before a 1x1 convolution into its weights.

    P (g x + b) + c = (P g) x + (P b + c), for a normalisation's factor and summand, and for the bias of the
    linear layer before a projection.
    """
    shape = editor.shape(conv.input[1])
    if shape is None or shape[2:] != (1, 1) or len(conv.input) != 3:
        return False
    return _fold_affine(editor, conv) or _fold_bias(editor, conv)


def _fold_affine(editor: Editor, conv: onnx.NodeProto) -> bool:
    shifted = editor.source(conv.input[0], "Add")
    scaled = editor.source(shifted.input[0], "Mul") if shifted is not None else None
    if shifted is None or scaled is None or editor.only_user(shifted.output[0], "Conv") is None:
        return False
    if editor.shape(shifted.input[1]) is None or editor.shape(scaled.input[1]) is None:
        return False
    factor, summand = (editor.constant(node.input[1]).ravel() for node in (scaled, shifted))
    _put_projection(editor, conv, scaled.input[0], factor, summand)
    return True


def _fold_bias(editor: Editor, conv: onnx.NodeProto) -> bool:
    """Add(state, Add(product, bias)), Transpose, Reshape, Conv."""
    found = editor.chain(conv.input[0], "Reshape", "Transpose", "Add")
    summed = found[-1] if found else None
    linear = editor.source(summed.input[1], "Add") if summed is not None else None
    if summed is None or linear is None:
        return False
    shape = editor.shape(linear.input[1])
    if shape is None or len(shape) != 1 or editor.only_user(summed.output[0], "Transpose") is None:
        return False
    summand = editor.constant(linear.input[1])
    editor.put("Add", [summed.input[0], linear.input[0]], [summed.output[0]])
    _put_projection(editor, conv, conv.input[0], np.ones_like(summand), summand)
    return True


def _put_projection(
    editor: Editor, conv: onnx.NodeProto, source: str, factor: Values, summand: Values
) -> None:
    weight, bias = (editor.constant(name).astype(np.float64) for name in conv.input[1:])
    name = conv.output[0]
    of_summand = weight[:, :, 0, 0] @ summand.astype(np.float64)
    new_weight = editor.store(f"{name}.weight", (weight * factor[None, :, None, None]).astype(np.float16))
    new_bias = editor.store(f"{name}.bias", (bias + of_summand).astype(np.float16))
    editor.put("Conv", [source, new_weight, new_bias], [name], **attributes(conv))


@at_every("LayerNormalization")
def add_within_normalisations(editor: Editor, norm: onnx.NodeProto) -> bool:
    """Puts SkipLayerNormalization for a linear layer's bias, the residual sum and the normalisation of it,
    which is in half."""
    summed = editor.source(norm.input[0], "Add")
    linear = editor.source(summed.input[1], "Add") if summed is not None else None
    if summed is None or linear is None or len(editor.shape(linear.input[1]) or ()) != 1:
        return False
    inputs = [linear.input[0], summed.input[0], norm.input[1], norm.input[2], linear.input[1]]
    outputs = [norm.output[0], "", "", summed.output[0]]
    epsilon = attributes(norm)["epsilon"]
    editor.put("SkipLayerNormalization", inputs, outputs, MICROSOFT, epsilon=epsilon)
    return True


@at_every("Sigmoid")
def gate_by_sigmoid(editor: Editor, gate: onnx.NodeProto) -> bool:
    """Puts QuickGelu of factor 1, one kernel, for x times its own sigmoid."""
    product = editor.only_user(gate.output[0], "Mul")
    if product is None or set(product.input) != {gate.input[0], gate.output[0]}:
        return False
    editor.put("QuickGelu", [gate.input[0]], [product.output[0]], MICROSOFT, alpha=1.0)
    return True


@at_every("Split")
def slice_unevenly(editor: Editor, split: onnx.NodeProto) -> bool:
    """Puts slices for a split into pieces of several sizes.

    ONNX Runtime copies such sizes from host memory that it gives back at the end of the run: a captured run
    would read there again. What all pieces are cast to is cast once.
    """
    if len(split.input) != 2:
        return False
    sizes = editor.constant(split.input[1])
    source, axis = split.input[0], int(attributes(split)["axis"])
    if len(set(sizes.tolist())) == 1:
        return False
    views = [editor.only_user(name, "Unsqueeze") for name in split.output]
    casts = [editor.only_user(view.output[0], "Cast") if view is not None else None for view in views]
    if None not in casts:
        editor.put("Cast", [source], [f"{source}.half"], to=TensorProto.FLOAT16)
        source = f"{source}.half"
        for name, view, cast in zip(split.output, views, casts, strict=True):
            assert view is not None and cast is not None
            editor.put("Unsqueeze", [name, view.input[1]], [cast.output[0]])
    ends = np.cumsum(sizes)
    editor.store(f"axis_{axis}", np.array([axis]))
    for name, begin, end in zip(split.output, ends - sizes, ends, strict=True):
        bounds = [editor.store(f"at_{place}", np.array([place])) for place in (begin, end)]
        editor.put("Slice", [source, *bounds, f"axis_{axis}"], [name])
    return True


def _in_half(editor: Editor, name: str) -> str:
    return editor.store(f"{name}.in_half", editor.constant(name).astype(np.float16))
