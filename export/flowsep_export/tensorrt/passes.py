"""Passes over a bundle's graph for TensorRT, just before parsing.

One stage definition, one ONNX file; an engine's own wishes are passes over it (the CUDA provider's are in
`onnx/cuda_variant.py`), whose results ONNX Runtime can still run, so that tests hold them to the file they
came from. Weights stay outside: `load` reads none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from flowsep_export.onnx.attention import soften_in_half

PASSES = 1  # counted up when a pass changes what it makes, so that engines are built again


def prepared(path: Path, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """A graph for TensorRT, its external weights left where they are.

    Args:
        path: The ONNX file.
        sizes: Of the axes that are fixed, by name.
    """
    model = onnx.load(path, load_external_data=False)
    fix_axes(model, sizes)
    soften_in_half(model)
    return model


def fix_axes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Give dynamic axes of the inputs their size, in place. TensorRT folds whatever follows from it."""
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in sizes:
                axis.dim_value = sizes[axis.dim_param]
    for value in model.graph.output:
        # said again by shape inference; a name would contradict the sizes
        value.type.tensor_type.ClearField("shape")
