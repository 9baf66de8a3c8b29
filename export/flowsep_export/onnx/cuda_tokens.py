"""Transformers and group normalisations of the velocity network in the CUDA provider's fewest launches.

Two facts carry it. A product may read either operand transposed, so that no image is turned into tokens by a
kernel of its own. And a normalised row n sums to zero: with factor and summand 1 the output y = n + 1 has
Σ y / C = 1, so that whatever is added to all rows behind a product, a bias or a mask, can be a part of its
weights. Both are equal in exact arithmetic; docs/rewrites.md has the algebra.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from flowsep_export.onnx.editing import MICROSOFT, Editor, Values, at_every, attributes

#: Tokens as ONNX has them, [B, N, C], from [B, C, N] and back.
TURNED = [0, 2, 1]
#: gelu(8) is 8 in half precision, and 1/8 is exact: the hidden unit that carries a bias.
CONSTANT_UNIT, UNITS_ADDED = 8.0, 8


@at_every("InstanceNormalization")
def normalise_groups_at_once(editor: Editor, norm: onnx.NodeProto) -> bool:
    """Normalises groups as the rows of a LayerNormalization, with every channel's factor and summand in it.

    ONNX Runtime's InstanceNormalization in half is three kernels, factor and summand are two more. Its
    LayerNormalization takes a factor for every element of every row, beyond ONNX's own rule.
    """
    together = editor.only_user(norm.output[0], "Reshape")
    apart = editor.source(norm.input[0], "Reshape")
    if together is None or apart is None:
        return False
    name, epsilon = norm.output[0], attributes(norm)["epsilon"]
    scaled = editor.only_user(together.output[0], "Mul")
    shifted = editor.only_user(scaled.output[0], "Add") if scaled is not None else None
    if scaled is None or shifted is None:
        one = editor.store("one_in_half", np.ones(1, np.float16))
        editor.put("Shape", [norm.input[0]], [f"{name}.size"], start=2)
        editor.put("Expand", [one, f"{name}.size"], [f"{name}.ones"])
        editor.put("LayerNormalization", [norm.input[0], f"{name}.ones"], [name], axis=-1, epsilon=epsilon)
        return True
    groups = editor.shape(norm.input[1])
    assert groups is not None
    editor.store(f"rows_of_{groups[0]}", np.array([1, groups[0], -1]))
    editor.put("Shape", [apart.input[0]], [f"{name}.size"], start=1)
    spread = []
    for constant in (scaled.input[1], shifted.input[1]):
        editor.put("Expand", [constant, f"{name}.size"], [f"{name}.{constant}.spread"])
        spread.append(f"{name}.{constant}.rows")
        editor.put("Reshape", [f"{name}.{constant}.spread", f"rows_of_{groups[0]}"], [spread[-1]])
    editor.put("LayerNormalization", [norm.input[0], *spread], [f"{name}.rows"], axis=-1, epsilon=epsilon)
    editor.put("Reshape", [f"{name}.rows", together.input[1]], [shifted.output[0]])
    return True


@at_every("LayerNormalization")
def project_to_tokens(editor: Editor, norm: onnx.NodeProto) -> bool:
    """Projects an image's channels to tokens in one product, with its bias in the normalisation behind it.

    SkipLayerNormalization normalises the sum of two tensors and a bias; both tensors are half the product.
    """
    found = editor.chain(norm.input[0], "Transpose", "Reshape", "Conv")
    if not found or list(attributes(found[0])["perm"]) != TURNED:
        return False
    turned, _, conv = found
    shape = editor.shape(conv.input[1])
    if shape is None or shape[2:] != (1, 1) or editor.only_user(conv.output[0], "Reshape") is None:
        return False
    name, (_, channels) = conv.output[0], shape[:2]
    half = editor.constant(conv.input[1])[:, :, 0, 0].T / 2
    weights = editor.store(f"{name}.halved", half)
    flat = editor.store(f"flat_{channels}", np.array([0, channels, -1]))
    editor.put("Reshape", [conv.input[0], flat], [f"{name}.flat"])
    editor.put("FusedMatMul", [f"{name}.flat", weights], [f"{name}.tokens"], MICROSOFT, transA=1)
    editor.put(
        "SkipLayerNormalization",
        [f"{name}.tokens", f"{name}.tokens", *norm.input[1:], conv.input[2]],
        [norm.output[0], "", "", turned.output[0]],
        MICROSOFT,
        epsilon=attributes(norm)["epsilon"],
    )
    return True


@at_every("Add")
def fold_feed_forward(editor: Editor, residual: onnx.NodeProto) -> bool:
    """Folds a feed-forward's second layer into the projection behind it, which gives an image at once.

    P (x + W₂ h) + c = P x + (P W₂) h + c. The first layer's bias is in its weights, and c is the weight of
    a hidden unit that is always the same.
    """
    found = _feed_forward(editor, residual)
    if found is None:
        return False
    name = residual.output[0]
    scale, shift, first, bias, second, projection, summand = (
        editor.constant(constant).astype(np.float64)
        for constant in (*found.norm.input[2:4], *found.layer, found.second, *found.conv.input[1:])
    )
    channels, hidden = len(first), len(second)
    projection = projection[:, :, 0, 0]
    # y W = (n + 1) (scale W) with the rest spread evenly, as every row of y sums to C
    rest = bias + (shift - scale) @ first
    gate = np.zeros((2, hidden + UNITS_ADDED))
    gate[:, :hidden] = rest.reshape(2, hidden)
    gate[:, hidden] = 1, CONSTANT_UNIT
    weights = np.zeros((channels, 2, hidden + UNITS_ADDED))
    weights[:, :, :hidden] = (scale[:, None] * first).reshape(channels, 2, hidden)
    weights += gate / channels
    folded = np.zeros((len(projection), hidden + UNITS_ADDED))
    folded[:, :hidden] = projection @ second.T
    folded[:, hidden] = summand / CONSTANT_UNIT
    _normalise_by_ones(editor, found.norm)
    editor.put("MatMul", [found.norm.output[0], _stored(editor, f"{name}.first", weights)], [found.linear])
    editor.put("Shape", [found.image], [f"{name}.shape"])
    parts = [found.image]
    for label, values, tokens in (("state", projection, found.state), ("hidden", folded, found.hidden)):
        constant = editor.store(f"{name}.{label}", values[None].astype(np.float16))
        product = f"{name}.{label}_projected"
        operands = [_of_batch(editor, constant), tokens]
        editor.put("FusedMatMul", operands, [f"{product}.flat"], MICROSOFT, transB=1)
        editor.put("Reshape", [f"{product}.flat", f"{name}.shape"], [product])
        parts.append(product)
    editor.put("Sum", parts, [name])
    return True


class _FeedForward(NamedTuple):
    """SkipLayerNormalization, MatMul, Add, Split, Gelu, Mul, MatMul, Add, Transpose, Reshape, Conv."""

    norm: onnx.NodeProto
    layer: tuple[str, str]  # weights and bias of the first layer
    linear: str  # its result, before the split
    hidden: str  # [B, N, 4 C]
    second: str  # weights of the second layer
    state: str  # what it is added to [B, N, C]
    conv: onnx.NodeProto
    image: str  # what the projection is added to


def _feed_forward(editor: Editor, residual: onnx.NodeProto) -> _FeedForward | None:
    projected = editor.chain(residual.input[1], "Conv", "Reshape", "Transpose", "Add")
    weighted = editor.chain(projected[-1].input[1], "MatMul", "Mul") if projected else []
    gate = ("Gelu", "Split", "Add", "MatMul", "SkipLayerNormalization")
    gated = editor.chain(weighted[-1].input[1], *gate) if weighted else []
    if not gated:
        return None
    (conv, _, _, summed), (second, product), (_, split, biased, first, norm) = projected, weighted, gated
    if product.input[0] != split.output[0]:
        return None
    if editor.only_user(norm.output[0], "MatMul") is None or editor.only_user(conv.output[0], "Add") is None:
        return None
    layer = (first.input[1], biased.input[1])
    state, image = summed.input[0], residual.input[0]
    return _FeedForward(norm, layer, biased.output[0], product.output[0], second.input[1], state, conv, image)


@at_every("Softmax")
def add_mask_within_keys(editor: Editor, softmax: onnx.NodeProto) -> bool:
    """Adds the query's mask to the keys, once a clip, in place of adding it to the scores of every step."""
    masked = editor.source(softmax.input[0], "Add")
    found = editor.chain(masked.input[1], "Reshape", "MatMul", "SkipLayerNormalization") if masked else []
    behind = editor.chain(found[1].input[1], "Reshape", "Transpose", "MatMul") if found else []
    if masked is None or not behind:
        return False
    (view, _, norm), (_, turned, keys) = found, behind
    if editor.only_user(norm.output[0], "MatMul") is None or editor.shape(keys.input[0]) is None:
        return False
    name = keys.output[0]
    scale, shift, query = (
        editor.constant(constant).astype(np.float64) for constant in (*norm.input[2:4], keys.input[0])
    )
    channels = len(scale)
    rest = np.einsum("c,bhcd->bhd", shift - scale, query)[:, :, None]
    share = editor.store(f"share_of_{channels}", np.array(1 / channels, np.float16))
    weights = editor.store(f"{name}.query", (scale[:, None] * query).astype(np.float16))
    _normalise_by_ones(editor, norm)
    text = keys.input[1]
    editor.put("MatMul", [editor.store(f"{name}.rest", rest.astype(np.float16)), text], [f"{name}.of_rest"])
    editor.put("Add", [masked.input[0], f"{name}.of_rest"], [f"{name}.added"])
    editor.put("Mul", [f"{name}.added", share], [f"{name}.shared"])
    editor.put("MatMul", [weights, text], [f"{name}.plain"])
    editor.put("Add", [f"{name}.plain", f"{name}.shared"], [f"{name}.masked"])
    editor.put("Transpose", [f"{name}.masked"], [turned.output[0]], **attributes(turned))
    editor.put("Softmax", [view.output[0]], [softmax.output[0]], **attributes(softmax))
    return True


def _normalise_by_ones(editor: Editor, norm: onnx.NodeProto) -> None:
    """Gives a normalisation the factor and the summand 1."""
    (channels,) = editor.shape(norm.input[2]) or (0,)
    ones = editor.store(f"ones_{channels}", np.ones(channels, np.float16))
    inputs = [*norm.input[:2], ones, ones, *norm.input[4:]]
    editor.put(norm.op_type, inputs, list(norm.output), MICROSOFT, **attributes(norm))


def _stored(editor: Editor, name: str, weights: Values) -> str:
    return editor.store(name, weights.reshape(len(weights), -1).astype(np.float16))


def _of_batch(editor: Editor, constant: str) -> str:
    """A weight [1, C, N] for every row of the batch: with it ONNX Runtime multiplies in one call, whose
    addresses are not read from the host. At a fixed batch it is made when the graph is loaded."""
    ones = editor.store("one_and_one", np.ones(2, np.int64))
    if "rows_of_batch" not in editor.maker:
        editor.put("Shape", [editor.graph.input[0].name], ["batch_of_state"], start=0, end=1)
        editor.put("Concat", ["batch_of_state", ones], ["rows_of_batch"], axis=0)
    editor.put("Expand", [constant, "rows_of_batch"], [f"{constant}.of_batch"])
    return f"{constant}.of_batch"
