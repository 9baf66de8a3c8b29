"""The two rewrites of the exported graphs: neither changes a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from flowsep_export.onnx.convert import save
from flowsep_export.onnx.half_weights import store_as_half
from flowsep_export.onnx.reshapes import make_reshapes_static


def model(text: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return ir.serde.deserialize_model(proto)


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    (output,) = onnxruntime.InferenceSession(str(path)).run(None, inputs)
    return np.asarray(output)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


MATMUL = "g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, w) }"


def test_weights_that_are_exact_in_half_are_stored_in_half_the_space(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = rng.standard_normal((64, 128)).astype(np.float16).astype(np.float32)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    (plain,) = save(model(MATMUL, w=weight), tmp_path / "plain.onnx")
    smaller = model(MATMUL, w=weight)
    assert store_as_half(smaller) == 1
    (stored,) = save(smaller, tmp_path / "stored.onnx")
    assert stored.stat().st_size < 0.6 * plain.stat().st_size
    np.testing.assert_array_equal(run(stored, x=x), run(plain, x=x))


@pytest.mark.parametrize("value", [1.0 + 2**-20, 1e5, np.nan])
def test_one_weight_that_is_not_exact_keeps_float32(value: float) -> None:
    weight = np.ones((64, 128), np.float32)
    weight[3, 5] = value
    unchanged = model(MATMUL, w=weight)
    assert store_as_half(unchanged) == 0
    assert unchanged.graph.initializers["w"].const_value is not None
    np.testing.assert_array_equal(unchanged.graph.initializers["w"].const_value.numpy(), weight)


def test_small_weights_stay_float32() -> None:
    assert (
        store_as_half(
            model("g (float[n, 8] x) => (float[n, 8] y) { y = Add(x, w) }", w=np.ones(8, np.float32))
        )
        == 0
    )


def reshaped(source: list[int | str], target: list[int | str]) -> tuple[ir.Model, int]:
    text = "g (float x, int64[1] s) => (float y) { y = Reshape(x, s) }"
    graph = model(text)
    graph.graph.inputs[0].shape = ir.Shape(source)
    graph.graph.outputs[0].shape = ir.Shape(target)
    return graph, make_reshapes_static(graph)


@pytest.mark.parametrize(
    "source, target, constant",
    [
        (["b", 8, "2*s", 4], ["b", 8, "8*s"], [0, 8, -1]),
        (["b", "8*s", 64], ["b", "8*s", 2, 32], [0, 0, 2, 32]),
        (["b", 64, "8*s"], ["b", 64, "2*s", 4], [0, 64, -1, 4]),
        (["a", "b"], ["b", "a"], None),
        (["a", 4], [None, "a"], None),
    ],
)
def test_a_shape_becomes_constant_where_the_input_tells_it(
    source: list[int | str], target: list[int | str], constant: list[int] | None
) -> None:
    graph, changed = reshaped(source, target)
    assert changed == (constant is not None)
    if constant is not None:
        shape = graph.graph[0].inputs[1]
        assert shape is not None and shape.const_value is not None
        assert shape.const_value.numpy().tolist() == constant
