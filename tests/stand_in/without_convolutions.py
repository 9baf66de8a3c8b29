"""A bundle whose convolutions are slices: cuDNN plans a convolution by asking for engines, of which the
stand-in has none. Everything else stays, shapes and types too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.cost.operators import shapes_of

CONVOLUTIONS = ("Conv", "ConvTranspose")


def replace_convolutions(path: Path, sizes: Mapping[str, int]) -> None:
    """Puts Slice and Expand for every convolution of a file, for one size of every axis.

    Args:
        path: An ONNX file; rewritten.
        sizes: Of its dynamic axes, by name.
    """
    model = onnx.load(path, load_external_data=False)
    shapes = shapes_of(model, sizes)
    nodes = []
    for node in model.graph.node:
        if node.op_type not in CONVOLUTIONS:
            nodes.append(node)
            continue
        (out,) = node.output
        rank = len(shapes[out])
        constants = {
            "begin": np.zeros(rank, np.int64),
            "end": np.ones(rank, np.int64),
            "to": np.array(shapes[out]),
        }
        for name, values in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(values, f"{out}.{name}"))
        nodes.append(helper.make_node("Slice", [node.input[0], f"{out}.begin", f"{out}.end"], [f"{out}.one"]))
        nodes.append(helper.make_node("Expand", [f"{out}.one", f"{out}.to"], [out]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
