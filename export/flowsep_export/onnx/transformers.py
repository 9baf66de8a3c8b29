"""Transformers of the velocity network in fewer kernels, for TensorRT.

A layer normalisation stands between every two products of a transformer, and whatever is between two products
keeps them apart. What it does to a row is linear but for one factor: the mean goes out by a product, and the
deviation is a number that the next product's result can be divided by as well. So products that follow each
other become one. docs/rewrites.md has the algebra.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from flowsep_export.onnx.editing import Editor, Values, at_every, attributes


class _Normalised(NamedTuple):
    """Cast, LayerNormalization, Cast, MatMul of a state."""

    norm: onnx.NodeProto
    product: onnx.NodeProto


class _Summed(NamedTuple):
    """Add(state, Add(MatMul(input, weights), bias))."""

    source: str
    weights: str
    bias: str
    output: str


class _Transformer(NamedTuple):
    """Parts of a spatial transformer, from the projection into it to the one out of it."""

    into: onnx.NodeProto
    attended: tuple[_Summed, _Summed]
    normalised: tuple[_Normalised, _Normalised, _Normalised]
    biased: onnx.NodeProto  # the bias of the feed-forward's first layer
    hidden: _Summed
    view: onnx.NodeProto  # back to an image
    out: onnx.NodeProto


@at_every("Conv")
def join_transformer(editor: Editor, into: onnx.NodeProto) -> bool:
    """Joins the products of a transformer that only a normalisation or a sum keeps apart.

    The state is kept in a basis Q whose first axis is the mean, so that its deviation is the length of the
    others. The projection in gives the state, the first attention's queries, keys and values and the start's
    share of the second's; the first attention's output layer gives the sum's and the second's; the
    feed-forward's second layer is one with the projection out.
    """
    found = _transformer(editor, into)
    if found is None:
        return False
    name = into.output[0]
    first, second, third = found.normalised
    basis = mean_first(len(editor.constant(first.norm.input[1])))
    channels = len(basis)
    one, two, three = (_weights(editor, normal, basis) for normal in found.normalised)
    into_state = _projection(editor, into) @ basis
    into_bias = _exact(editor, into.input[2]) @ basis
    carried = [channels, two.shape[1]]
    # the projection in
    flat = editor.store(f"flat_{channels}", np.array([0, channels, -1]))
    editor.put("Reshape", [into.input[0], flat], [f"{name}.flat"])
    editor.put("Transpose", [f"{name}.flat"], [f"{name}.tokens"], perm=[0, 2, 1])
    weights, bias = (np.concatenate([x @ one, x, x @ two], axis=-1) for x in (into_state, into_bias))
    _product(editor, f"{name}.tokens", weights, bias, f"{name}.start")
    _split(editor, f"{name}.start", [one.shape[1], sum(carried)], [f"{name}.first", f"{name}.carried"])
    _split(editor, f"{name}.carried", carried, [f"{name}.state", f"{name}.of_start"])
    _normalise(editor, f"{name}.state", f"{name}.first", first, first.product.output[0])
    # the first attention's output layer
    layer = found.attended[0]
    weights, bias = (_exact(editor, constant) @ basis for constant in (layer.weights, layer.bias))
    weights, bias = (np.concatenate([x, x @ two], axis=-1) for x in (weights, bias))
    _product(editor, layer.source, weights, bias, f"{layer.output}.change")
    editor.put("Add", [f"{name}.carried", f"{layer.output}.change"], [f"{layer.output}.both"])
    _split(editor, f"{layer.output}.both", carried, [f"{layer.output}.state", f"{layer.output}.second"])
    _normalise(editor, f"{layer.output}.state", f"{layer.output}.second", second, second.product.output[0])
    # the second's
    before, layer = f"{layer.output}.state", found.attended[1]
    weights, bias = (_exact(editor, constant) @ basis for constant in (layer.weights, layer.bias))
    _product(editor, layer.source, weights, bias, f"{layer.output}.change")
    editor.put("Add", [before, f"{layer.output}.change"], [f"{layer.output}.state"])
    # the feed-forward and the projection out
    editor.put(
        "MatMul",
        [f"{layer.output}.state", editor.store(f"{layer.output}.layer", three.astype(np.float16))],
        [f"{layer.output}.third"],
    )
    bias = _exact(editor, found.biased.input[1])
    _normalise(editor, f"{layer.output}.state", f"{layer.output}.third", third, found.biased.output[0], bias)
    out = found.out.output[0]
    projection = _projection(editor, found.out)
    weights = np.concatenate([basis @ projection, _exact(editor, found.hidden.weights) @ projection])
    bias = _exact(editor, found.hidden.bias) @ projection + _exact(editor, found.out.input[2])
    editor.put("Concat", [f"{layer.output}.state", found.hidden.source], [f"{out}.both"], axis=-1)
    _product(editor, f"{out}.both", weights, bias, f"{out}.tokens")
    editor.put("Transpose", [f"{out}.tokens"], [f"{out}.turned"], perm=[0, 2, 1])
    editor.put("Reshape", [f"{out}.turned", found.view.input[1]], [out])
    return True


def mean_first(channels: int) -> Values:
    """The symmetric orthogonal matrix [C, C] that turns a row of equal numbers into a multiple of the first
    axis (Householder's)."""
    across = np.full(channels, channels**-0.5)
    across[0] -= 1
    return np.eye(channels) - 2 * np.outer(across, across) / (across @ across)


def _transformer(editor: Editor, into: onnx.NodeProto) -> _Transformer | None:
    view = editor.only_user(into.output[0], "Reshape")
    turned = editor.only_user(view.output[0], "Transpose") if view is not None else None
    if turned is None or not _is_projection(editor, into):
        return None
    states = [turned.output[0]]
    normalised, summed = [], []
    for _ in range(3):
        normal, added = _normalised(editor, states[-1]), _summed(editor, states[-1])
        if normal is None or added is None:
            return None
        normalised.append(normal)
        summed.append(added)
        states.append(added.output)
    biased = editor.only_user(normalised[2].product.output[0], "Add")
    back = editor.only_user(states[3], "Transpose")
    image = editor.only_user(back.output[0], "Reshape") if back is not None else None
    out = editor.only_user(image.output[0], "Conv") if image is not None else None
    if biased is None or image is None or out is None or not _is_projection(editor, out):
        return None
    if editor.shape(biased.input[1]) is None:
        return None
    one, two, three = normalised
    return _Transformer(into, (summed[0], summed[1]), (one, two, three), biased, summed[2], image, out)


def _is_projection(editor: Editor, conv: onnx.NodeProto) -> bool:
    """True for a convolution of 1x1 with a bias, which is a product of every pixel."""
    settings = attributes(conv)
    return (
        (editor.shape(conv.input[1]) or ())[2:] == (1, 1)
        and len(conv.input) == 3
        and editor.shape(conv.input[2]) is not None
        and settings.get("group", 1) == 1
        and set(settings.get("strides", [1])) == {1}
        and not any(settings.get("pads", []))
    )


def _normalised(editor: Editor, state: str) -> _Normalised | None:
    casts = [node for node in editor.users.get(state, []) if node.op_type == "Cast"]
    norm = editor.only_user(casts[0].output[0], "LayerNormalization") if len(casts) == 1 else None
    narrowed = editor.only_user(norm.output[0], "Cast") if norm is not None else None
    product = editor.only_user(narrowed.output[0], "MatMul") if narrowed is not None else None
    if norm is None or product is None or editor.shape(product.input[1]) is None:
        return None
    if len(norm.input) != 3 or None in map(editor.shape, norm.input[1:]) or attributes(norm)["axis"] != -1:
        return None
    return _Normalised(norm, product)


def _summed(editor: Editor, state: str) -> _Summed | None:
    users = editor.users.get(state, [])
    sums = [node for node in users if node.op_type == "Add" and node.input[0] == state]
    if len(users) != 2 or len(sums) != 1:
        return None
    biased = editor.source(sums[0].input[1], "Add")
    product = editor.source(biased.input[0], "MatMul") if biased is not None else None
    if biased is None or product is None or None in map(editor.shape, (product.input[1], biased.input[1])):
        return None
    return _Summed(product.input[0], product.input[1], biased.input[1], sums[0].output[0])


def _exact(editor: Editor, name: str) -> Values:
    return editor.constant(name).astype(np.float64)


def _projection(editor: Editor, conv: onnx.NodeProto) -> Values:
    """The weights of a 1x1 convolution for rows, [in, out]."""
    return _exact(editor, conv.input[1])[:, :, 0, 0].T


def _weights(editor: Editor, normal: _Normalised, basis: Values) -> Values:
    """The weights behind a normalisation for what it normalises, in the basis, but for the deviation."""
    scale = _exact(editor, normal.norm.input[1])
    weights = basis @ (scale[:, None] * _exact(editor, normal.product.input[1]))
    weights[0] = 0  # the mean
    return weights


def _normalise(
    editor: Editor, state: str, product: str, normal: _Normalised, output: str, bias: Values | float = 0
) -> None:
    """Divides a product of a state by the state's deviation and adds what the normalisation adds."""
    channels = len(editor.constant(normal.norm.input[1]))
    mask = np.ones(channels, np.float32)
    mask[0] = 0
    mask_name = editor.store(f"all_but_the_mean_of_{channels}", mask)
    epsilon = np.array([attributes(normal.norm)["epsilon"]], np.float32)
    shift = _exact(editor, normal.norm.input[2]) @ _exact(editor, normal.product.input[1]) + bias
    editor.put("Cast", [state], [f"{state}.wide"], to=TensorProto.FLOAT)
    editor.put("Mul", [f"{state}.wide", mask_name], [f"{state}.centred"])
    editor.put("Mul", [f"{state}.centred", f"{state}.wide"], [f"{state}.squares"])
    editor.put("ReduceMean", [f"{state}.squares", editor.store("last", np.array([-1]))], [f"{state}.mean"])
    editor.put("Add", [f"{state}.mean", editor.store(f"epsilon_{epsilon[0]}", epsilon)], [f"{state}.above_0"])
    editor.put("Sqrt", [f"{state}.above_0"], [f"{state}.deviation"])
    editor.put("Reciprocal", [f"{state}.deviation"], [f"{state}.factor"])
    editor.put("Cast", [f"{state}.factor"], [f"{state}.in_half"], to=TensorProto.FLOAT16)
    editor.put("Mul", [product, f"{state}.in_half"], [f"{product}.divided"])
    shift_name = editor.store(f"{output}.shift", shift.astype(np.float16))
    editor.put("Add", [f"{product}.divided", shift_name], [output])


def _product(editor: Editor, source: str, weights: Values, bias: Values, output: str) -> None:
    weights_name = editor.store(f"{output}.weights", weights.astype(np.float16))
    editor.put("MatMul", [source, weights_name], [f"{output}.unbiased"])
    editor.put(
        "Add", [f"{output}.unbiased", editor.store(f"{output}.bias", bias.astype(np.float16))], [output]
    )


def _split(editor: Editor, source: str, sizes: list[int], outputs: list[str]) -> None:
    pieces = editor.store(f"pieces_{'_'.join(map(str, sizes))}", np.array(sizes))
    editor.put("Split", [source, pieces], outputs, axis=-1)
