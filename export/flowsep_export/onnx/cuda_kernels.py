"""Launches that ONNX Runtime's CUDA provider can do without: casts around normalisations, whose half
kernels compute in float32 inside, additions before a normalisation, factors and summands of a channel that a
1x1 convolution can take over.

Each pass changes a half-precision graph in place and says how often it found its pattern. Where it writes an
operator of ONNX Runtime's own, that has a kernel for CPUs as well, so that the exporter verifies it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from flowsep_export.onnx.editing import Editor, Values

MICROSOFT = "com.microsoft"


def use_microsoft(model: onnx.ModelProto) -> None:
    """Lets a graph have ONNX Runtime's own operators."""
    if all(entry.domain != MICROSOFT for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))


def normalise_in_half(model: onnx.ModelProto, folder: Path) -> int:
    """Normalisations between casts to float32 and back take and give half instead, in place.

    Args:
        model: The graph.
        folder: Where its external weights lie.

    Returns:
        How many normalisations were changed.
    """
    editor = Editor(model, folder)
    changed = 0
    for node in list(model.graph.node):
        widened = editor.source(node.input[0], "Cast") if node.op_type == "LayerNormalization" else None
        narrowed = editor.only_user(node.output[0], "Cast") if widened is not None else None
        if widened is not None and narrowed is not None and _casts_to(widened, TensorProto.FLOAT):
            scale, bias = (_in_half(editor, name) for name in node.input[1:])
            attributes = _attributes(node)
            editor.put(node.op_type, [widened.input[0], scale, bias], [narrowed.output[0]], **attributes)
            changed += 1
        if node.op_type == "InstanceNormalization":
            changed += _groups_in_half(editor, node)
    editor.finish()
    return changed


def _groups_in_half(editor: Editor, norm: onnx.NodeProto) -> bool:
    """Cast, Reshape, norm, Reshape, Mul, Add, Cast."""
    apart = editor.source(norm.input[0], "Reshape")
    widened = editor.source(apart.input[0], "Cast") if apart is not None else None
    together = editor.only_user(norm.output[0], "Reshape")
    scaled = editor.only_user(together.output[0], "Mul") if together is not None else None
    shifted = editor.only_user(scaled.output[0], "Add") if scaled is not None else None
    narrowed = editor.only_user(shifted.output[0], "Cast") if shifted is not None else None
    if apart is None or widened is None or together is None or scaled is None:
        return False
    if shifted is None or narrowed is None or not _casts_to(narrowed, TensorProto.FLOAT16):
        return False
    source, name = widened.input[0], narrowed.output[0]
    ones, zeros = (_in_half(editor, constant) for constant in norm.input[1:])
    editor.put("Shape", [source], [f"{name}.shape"])
    editor.put("Reshape", [source, apart.input[1]], [f"{name}.groups"])
    editor.put(
        "InstanceNormalization", [f"{name}.groups", ones, zeros], [f"{name}.normal"], **_attributes(norm)
    )
    editor.put("Reshape", [f"{name}.normal", f"{name}.shape"], [f"{name}.together"])
    editor.put("Mul", [f"{name}.together", _in_half(editor, scaled.input[1])], [f"{name}.scaled"])
    editor.put("Add", [f"{name}.scaled", _in_half(editor, shifted.input[1])], [name])
    return True


def fold_into_projections(model: onnx.ModelProto, folder: Path) -> int:
    """Fold what is done to each channel before a 1x1 convolution into its weights, in place.

    P (g x + b) + c = (P g) x + (P b + c), for a normalisation's factor and summand, and for the bias of the
    linear layer before a projection.

    Args:
        model: The graph.
        folder: Where its external weights lie.

    Returns:
        How many convolutions were changed.
    """
    editor = Editor(model, folder)
    changed = 0
    for conv in [node for node in model.graph.node if node.op_type == "Conv"]:
        shape = editor.shape(conv.input[1])
        if shape is None or shape[2:] != (1, 1) or len(conv.input) != 3:
            continue
        changed += _fold_affine(editor, conv) or _fold_bias(editor, conv)
    editor.finish()
    return changed


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
    view = editor.source(conv.input[0], "Reshape")
    turned = editor.source(view.input[0], "Transpose") if view is not None else None
    summed = editor.source(turned.input[0], "Add") if turned is not None else None
    linear = editor.source(summed.input[1], "Add") if summed is not None else None
    if view is None or turned is None or summed is None or linear is None:
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
    editor.put("Conv", [source, new_weight, new_bias], [name], **_attributes(conv))


def add_within_normalisations(model: onnx.ModelProto, folder: Path) -> int:
    """SkipLayerNormalization for a linear layer's bias, the residual sum and the normalisation of it.

    Args:
        model: The graph, its normalisations in half.
        folder: Where its external weights lie.

    Returns:
        How many normalisations were changed.
    """
    editor = Editor(model, folder)
    changed = 0
    for norm in [node for node in model.graph.node if node.op_type == "LayerNormalization"]:
        summed = editor.source(norm.input[0], "Add")
        linear = editor.source(summed.input[1], "Add") if summed is not None else None
        if summed is None or linear is None or len(editor.shape(linear.input[1]) or ()) != 1:
            continue
        inputs = [linear.input[0], summed.input[0], norm.input[1], norm.input[2], linear.input[1]]
        editor.put(
            "SkipLayerNormalization",
            inputs,
            [norm.output[0], "", "", summed.output[0]],
            MICROSOFT,
            epsilon=_attributes(norm)["epsilon"],
        )
        changed += 1
    editor.finish()
    if changed:
        use_microsoft(model)
    return changed


def gate_by_sigmoid(model: onnx.ModelProto, folder: Path) -> int:
    """QuickGelu of factor 1, one kernel, for x times its own sigmoid.

    Args:
        model: The graph.
        folder: Where its external weights lie.

    Returns:
        How many were changed.
    """
    editor = Editor(model, folder)
    changed = 0
    for gate in [node for node in model.graph.node if node.op_type == "Sigmoid"]:
        product = editor.only_user(gate.output[0], "Mul")
        if product is not None and set(product.input) == {gate.input[0], gate.output[0]}:
            editor.put("QuickGelu", [gate.input[0]], [product.output[0]], MICROSOFT, alpha=1.0)
            changed += 1
    editor.finish()
    if changed:
        use_microsoft(model)
    return changed


def slice_unevenly(model: onnx.ModelProto, folder: Path) -> int:
    """Slices for a split into pieces of several sizes.

    ONNX Runtime copies such sizes from host memory that it gives back at the end of the run: a captured run
    would read there again. What all pieces are cast to is cast once.

    Args:
        model: The graph.
        folder: Where its external weights lie.

    Returns:
        How many splits were changed.
    """
    editor = Editor(model, folder)
    changed = 0
    for split in [node for node in model.graph.node if node.op_type == "Split" and len(node.input) == 2]:
        sizes = editor.constant(split.input[1])
        source, axis = split.input[0], int(_attributes(split)["axis"])
        if len(set(sizes.tolist())) == 1:
            continue
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
        changed += 1
    editor.finish()
    return changed


def _in_half(editor: Editor, name: str) -> str:
    return editor.store(f"{name}.in_half", editor.constant(name).astype(np.float16))


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return bool(node.attribute[0].i == kind)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
