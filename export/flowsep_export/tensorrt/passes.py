"""Passes over a bundle's graph for TensorRT, just before parsing.

One stage definition, one ONNX file; an engine's own wishes are passes over it (the CUDA provider's are in
`onnx/cuda_variant.py`), whose results ONNX Runtime can still run, so that tests hold them to the file they
came from. Weights stay outside: `load` reads none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flowsep_export.onnx.attention import soften_in_half
from flowsep_export.onnx.device_graphs import sum_nodes
from flowsep_export.onnx.fewer_kernels import join_projections
from flowsep_export.onnx.loop_parts import split_loop
from flowsep_export.onnx.transformers import join_transformer
from flowsep_runtime.backends.loop_parts import CONSTANTS, STEP

PASSES = 3  # counted up when a pass changes what it makes, so that engines are built again

CONVOLUTIONS = ("Conv", "ConvTranspose")


def prepared(path: Path, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """A graph for TensorRT, its external weights left where they are.

    Args:
        path: The ONNX file.
        sizes: Of the axes that are fixed, by name.
    """
    model = onnx.load(path, load_external_data=False)
    fix_axes(model, sizes)
    for spell in (widen_filters, soften_in_half):
        spell(model, path.parent)
    return model


def prepared_loop(path: Path, sizes: Mapping[str, int]) -> dict[str, onnx.ModelProto]:
    """The velocity graph for TensorRT, in fewer kernels and in the two parts of a solver's loop, of which the
    step gives the next state too.

    Args:
        path: The ONNX file of `velocity`.
        sizes: Of the axes that are fixed, by name.
    """
    model = onnx.load(path, load_external_data=False)
    for spell in (widen_filters, soften_in_half, join_projections, join_transformer):
        spell(model, path.parent)
    parts = dict(zip((CONSTANTS, STEP), split_loop(model), strict=True))
    give_next_state(parts[STEP])
    for part in parts.values():
        fix_axes(part, sizes)
    return parts


def give_next_state(step: onnx.ModelProto) -> None:
    """Adds a solver's sum to a step, in place: inputs `before` and `weights`, output `next_x`."""
    graph = step.graph
    (state,) = (value for value in graph.input if value.name == "x")
    for name, values in (("before", graph.input), ("next_x", graph.output)):
        values.add().CopyFrom(state)
        values[-1].name = name
    graph.input.append(helper.make_tensor_value_info("weights", TensorProto.FLOAT, [2]))
    graph.node.extend(sum_nodes())


def fixed(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of a graph, with `fix_axes`."""
    result = onnx.ModelProto.FromString(model.SerializeToString())
    fix_axes(result, sizes)
    return result


def fix_axes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Give dynamic axes of the inputs their size, in place. TensorRT folds whatever follows from it."""
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in sizes:
                axis.dim_value = sizes[axis.dim_param]
    for value in model.graph.output:
        # said again by shape inference; a name would contradict the sizes
        for axis in value.type.tensor_type.shape.dim:
            axis.Clear()


def widen_filters(model: onnx.ModelProto, folder: Path) -> int:
    """Put the float32 values of convolutions' weights in place of their Casts from half, in place: TensorRT
    wants these weights to be constants.

    Args:
        model: A graph, its external weights not loaded.
        folder: Where they lie.

    Returns:
        How many weights were widened.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    casts = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in stored and node.attribute[0].i == TensorProto.FLOAT
    }
    filters = {
        name
        for node in graph.node
        if node.op_type in CONVOLUTIONS
        for name in node.input[1:]
        if name in casts
    }
    replaced = {casts[name].input[0] for name in filters}
    for name in filters:
        tensor = stored[casts[name].input[0]]
        values = numpy_helper.to_array(tensor, str(folder)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, name))
        graph.node.remove(casts[name])
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read or tensor.name not in replaced]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return len(filters)
