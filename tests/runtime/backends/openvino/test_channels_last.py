"""Graphs that are rewritten for OpenVINO give the numbers that they gave before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flowsep_runtime.backends import offline
from flowsep_runtime.backends.openvino.accuracy import worst_snr_db
from flowsep_runtime.backends.openvino.channels_last import rewrite

pytest.importorskip("openvino")

Array = np.ndarray[Any, np.dtype[Any]]
Layers = Callable[["Graph", Any], Any]


class Graph:
    """Layers of a bundle's graphs, with seeded weights stored in half precision."""

    def __init__(self) -> None:
        import openvino.opset13

        self.op: Any = openvino.opset13
        self.random = np.random.default_rng(0)

    def ints(self, *values: int) -> Any:
        return self.op.constant(np.array(values, np.int64))

    def weight(self, *shape: int) -> Any:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        stored = self.op.constant((self.random.standard_normal(shape) * scale).astype(np.float16))
        return self.op.convert(stored, "f32")

    def vector(self, *shape: int) -> Any:
        return self.op.constant(self.random.standard_normal(shape).astype(np.float32))

    def convolution(self, x: Any, outputs: int, size: int = 3, stride: int = 1) -> Any:
        pads = [size // 2] * 2
        weight = self.weight(outputs, x.output(0).get_shape()[1], size, size)
        total = self.op.convolution(x, weight, [stride] * 2, pads, pads, [1, 1])
        return self.op.add(total, self.vector(1, outputs, 1, 1))

    def doubled(self, x: Any, outputs: int) -> Any:
        weight = self.weight(x.output(0).get_shape()[1], outputs, 4, 4)
        total = self.op.convolution_backprop_data(
            x, weight, strides=[2, 2], pads_begin=[1, 1], pads_end=[1, 1]
        )
        return self.op.add(total, self.vector(1, outputs, 1, 1))

    def group_norm(self, x: Any, groups: int = 8, scale: float = 1.0) -> Any:
        op, shape = self.op, list(x.output(0).get_shape())
        rows = op.reshape(x, self.ints(1, groups, -1), False)
        norm = op.mvn(rows, self.ints(2), True, 1e-5, "inside_sqrt")
        ones = op.constant(np.full((1, groups, 1), scale, np.float32))
        zeros = op.constant(np.zeros((1, groups, 1), np.float32))
        back = op.reshape(op.add(op.multiply(norm, ones), zeros), self.ints(*shape), False)
        return op.add(op.multiply(back, self.vector(shape[1], 1, 1)), self.vector(shape[1], 1, 1))

    def silu(self, x: Any) -> Any:
        return self.op.multiply(x, self.op.sigmoid(x))

    def model(self, layers: Layers, shape: tuple[int, ...]) -> Any:
        x = self.op.parameter(shape, np.float32)
        return offline.openvino().Model([self.op.result(layers(self, x))], [x])


def run(model: Any, x: Array, precision: str = "f32") -> Array:
    compiled = (
        offline.openvino()
        .Core()
        .compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1})
    )
    return np.array(compiled([x])[0])


def both(layers: Layers, shape: tuple[int, ...], quick: bool = False) -> tuple[int, float, Counter[str]]:
    """Number of rewritten convolutions, dB between before and after, and the nodes that are left."""
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32) + 0.5
    expected = run(Graph().model(layers, shape), x)
    model = Graph().model(layers, shape)
    convolutions = rewrite(model, quick)
    found = run(model, x)
    assert found.shape == expected.shape
    kinds = Counter(node.get_type_name() for node in model.get_ops())
    return convolutions, worst_snr_db({"": expected}, {"": found}), kinds


SIZES = [(16, 16), (12, 8), (7, 5), (32, 2), (3, 4), (6, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_a_3x3_convolution_becomes_winograds(size: tuple[int, int]) -> None:
    convolutions, snr, kinds = both(lambda g, x: g.convolution(x, 104), (1, 96, *size))
    assert (convolutions, kinds["Convolution"]) == (1, 0) and snr > 95


@pytest.mark.parametrize("size", SIZES)
def test_a_transposed_convolution_becomes_four_of_winograds(size: tuple[int, int]) -> None:
    convolutions, snr, kinds = both(lambda g, x: g.doubled(x, 104), (1, 96, *size))
    assert (convolutions, kinds["ConvolutionBackpropData"]) == (1, 0) and snr > 95


def test_narrow_layers_strides_and_wide_images_in_bf16_keep_openvinos_convolution() -> None:
    def narrow(g: Graph, x: Any) -> Any:
        return g.convolution(g.silu(g.convolution(x, 48)), 104, stride=2)

    convolutions, snr, kinds = both(narrow, (1, 104, 12, 8))
    assert (convolutions, kinds["Convolution"]) == (0, 2) and snr > 110
    for width, left in ((8, 1), (4, 0)):
        wide = both(lambda g, x: g.convolution(x, 104), (1, 104, 12, width), quick=True)
        assert wide[2]["Convolution"] == left and wide[1] > (45 if not left else 110)
    _, snr, kinds = both(lambda g, x: g.doubled(x, 104), (1, 104, 6, 4), quick=True)
    assert kinds["ConvolutionBackpropData"] == 1 and snr > 110


def block(g: Graph, x: Any) -> Any:
    """A residual block with a shift from outside, and a shortcut of 1×1."""
    hidden = g.convolution(g.silu(g.group_norm(x)), 104)
    hidden = g.op.add(hidden, g.vector(1, 104, 1, 1))
    hidden = g.convolution(g.silu(g.group_norm(hidden)), 104)
    return g.op.add(g.convolution(x, 104, size=1), hidden)


@pytest.mark.parametrize("quick", [False, True])
def test_what_lies_between_convolutions_happens_to_pixels(quick: bool) -> None:
    def layers(g: Graph, x: Any) -> Any:
        first = block(g, g.convolution(x, 96))
        second = block(g, g.convolution(first, 96, stride=2))
        joined = g.op.concat([first, g.doubled(second, 104)], 1)
        return g.convolution(g.silu(g.group_norm(joined)), 8)

    convolutions, snr, kinds = both(layers, (1, 8, 16, 8), quick)
    assert kinds["MVN"] == 0 and snr > (40 if quick else 95)
    assert convolutions == (4 if quick else 7)  # quick: the narrow half of the image, and 1×1


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_other_transpositions_are_left_unchanged(order: tuple[int, int, int]) -> None:
    """All sizes are such that the wrong order would fit, too."""

    def layers(g: Graph, x: Any) -> Any:
        first = g.convolution(x, 96)
        rows = g.op.reshape(first, g.ints(1, 96, 96), False)
        turned = g.op.transpose(g.op.reshape(rows, g.ints(1, 96, 96), False), g.ints(*order))
        back = g.op.reshape(turned, g.ints(1, 96, 12, 8), False)
        return g.convolution(g.op.add(first, back), 96)

    _, snr, _ = both(layers, (1, 96, 12, 8))
    assert snr > 95


def test_group_norm_over_a_divided_batch_is_left_unchanged() -> None:
    def layers(g: Graph, x: Any) -> Any:
        op, first = g.op, g.convolution(x, 96)
        norm = op.mvn(op.reshape(first, g.ints(2, 8, -1), False), g.ints(2), True, 1e-5, "inside_sqrt")
        ones, zeros = (op.constant(np.full((1, 8, 1), value, np.float32)) for value in (1, 0))
        back = op.reshape(op.add(op.multiply(norm, ones), zeros), g.ints(1, 96, 8, 8), False)
        return g.convolution(back, 96)

    _, snr, kinds = both(layers, (1, 96, 8, 8))
    assert kinds["MVN"] == 1 and snr > 95


def test_half_precision_weights_stay_half_precision() -> None:
    model = Graph().model(attention, (1, 96, 8, 4))
    rewrite(model, quick=False)
    sizes: Counter[str] = Counter()
    for node in model.get_ops():
        if node.get_type_name() == "Constant":
            sizes[node.output(0).get_element_type().get_type_name()] += node.output(0).get_tensor().size
    wide, half = sizes["f32"], sizes["f16"]
    assert half == 2 * (2 * 96 * 96 + 160 * 96 + 96 * 80)  # all but the 3×3
    assert wide < 4 * (36 * 96 * 96 + 6000)


@pytest.mark.parametrize("spoiled", ["scale", "tanh"])
def test_an_unknown_pattern_is_left_unchanged(spoiled: str) -> None:
    def layers(g: Graph, x: Any) -> Any:
        first = g.convolution(x, 96)
        odd = g.group_norm(first, scale=2.0) if spoiled == "scale" else g.op.tanh(first)
        return g.convolution(g.silu(g.op.add(odd, first)), 96)

    convolutions, snr, kinds = both(layers, (1, 96, 9, 6))
    assert convolutions == 2 and snr > 95
    assert kinds["MVN" if spoiled == "scale" else "Tanh"] == 1


def attention(g: Graph, x: Any) -> Any:
    """A layer on the sequence of all pixels, between two layers on the image."""
    op, image = g.op, g.convolution(g.group_norm(g.convolution(x, 96)), 96, size=1)
    _, channels, height, width = image.output(0).get_shape()
    rows = op.reshape(image, g.ints(1, channels, -1), False)
    sequence = op.transpose(rows, g.ints(0, 2, 1))
    hidden = op.add(op.matmul(sequence, g.weight(160, channels), False, True), g.vector(160))
    gate, value = op.split(hidden, op.constant(np.array(-1)), 2).outputs()
    mixed = op.matmul(op.multiply(op.gelu(gate, "erf"), value), g.weight(channels, 80), False, True)
    back = op.reshape(op.transpose(mixed, g.ints(0, 2, 1)), g.ints(1, channels, height, width), False)
    return op.add(image, g.convolution(back, 96, size=1))


def test_attention_takes_the_pixels_as_they_are() -> None:
    convolutions, snr, kinds = both(attention, (1, 96, 8, 4))
    assert convolutions == 3 and snr > 95
    assert kinds["Split"] == 0
    # of the input, within the two of Winograd's form, and of the result
    assert kinds["Transpose"] == 3
