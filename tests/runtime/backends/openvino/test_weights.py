"""Weights that are stored in bf16 for graphs that compute in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowsep_runtime.backends.openvino import weights
from tests.runtime.backends.openvino.test_channels_last import Graph, run
from tests.runtime.backends.openvino.test_openvino import needs_bf16

pytest.importorskip("openvino")


def layers(g: Graph, x: Any) -> Any:
    image = g.op.convolution(x, g.vector(64, 32, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
    tokens = g.op.reshape(image, g.ints(1, 64, -1), False)
    product = g.op.matmul(tokens, g.vector(64, 256), False, False)
    return g.op.matmul(product, g.vector(128, 256), False, True)


@needs_bf16
def test_weights_are_narrowed_to_half_their_size_and_the_results_keep_their_bits() -> None:
    x = np.random.default_rng(1).standard_normal((1, 32, 8, 8)).astype(np.float32)
    expected = run(Graph().model(layers, x.shape), x, "bf16")
    model = Graph().model(layers, x.shape)
    weights.narrow(model)
    kinds = {
        tuple(node.output(0).get_shape()): node.output(0).get_element_type().get_type_name()
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
    }
    assert [kinds[shape] for shape in ((64, 32, 3, 3), (64, 256), (128, 256))] == ["bf16"] * 3
    assert np.array_equal(run(model, x, "bf16"), expected)


@needs_bf16
def test_weights_that_openvino_multiplies_by_a_constant_are_about_as_exact() -> None:
    def layers(g: Graph, x: Any) -> Any:
        image = g.op.convolution(x, g.vector(64, 32, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
        return g.op.multiply(image, g.vector(1, 64, 1, 1))

    x = np.random.default_rng(1).standard_normal((1, 32, 8, 8)).astype(np.float32)
    exact = run(Graph().model(layers, x.shape), x, "f32")
    rounded = run(Graph().model(layers, x.shape), x, "bf16")
    model = Graph().model(layers, x.shape)
    weights.narrow(model)
    narrowed = run(model, x, "bf16")
    # a second rounding, as large as the first: 3 dB
    assert np.linalg.norm(narrowed - exact) < np.sqrt(2) * np.linalg.norm(rounded - exact)


def test_bf16_is_rounded_to_the_nearest_and_a_tie_to_even() -> None:
    random = np.random.default_rng(0)
    # more than one block; every second number lies in the middle between two of bf16
    bits = random.integers(0, 0x7F7F0000, (1, 1 + (1 << 16)), np.uint32)
    bits[:, ::2] = bits[:, ::2] & 0xFFFF0000 | 0x8000
    signs = np.where(random.random(bits.shape) < 0.5, -1, 1).astype(np.float32)
    values = signs * bits.view(np.float32)
    below = values.view(np.uint32) & 0xFFFF0000
    down, up = (np.abs(each.view(np.float32).astype(float) - values) for each in (below, below + 0x10000))
    is_odd = (below >> 16 & 1).astype(bool)
    expected = (below >> 16) + ((up < down) | ((up == down) & is_odd))
    assert np.array_equal(weights.bf16_bits(values), expected)
