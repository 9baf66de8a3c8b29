"""Storage in half precision for weights that are exact in it.

A model whose weights were rounded to half (the bundled one) would otherwise take twice the space in a
float32 bundle.  Each such initializer becomes float16, followed by a Cast under the old name: backends
fold it when they load the graph, and compute what they computed before, bit by bit.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

SMALLEST = 16 << 10  # bytes of float32; for smaller ones, the Cast costs more than it saves


def store_as_half(model: ir.Model) -> int:
    """Store every large float32 initializer that is exact in float16 as such, in place.

    Returns:
        Number of changed initializers.
    """
    graph = model.graph
    casts = []
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes <= SMALLEST:
            continue
        half = _exact_half(tensor.numpy())
        if half is None:
            continue
        stored = ir.Value(
            name=f"{name}.half",
            type=ir.TensorType(ir.DataType.FLOAT16),
            shape=value.shape,
            const_value=ir.tensor(half, name=f"{name}.half"),
        )
        cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT.value}, name=f"{name}.cast")
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        cast.outputs[0].name = name
        graph.register_initializer(stored)
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)
    return len(casts)


def _exact_half(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]] | None:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None
