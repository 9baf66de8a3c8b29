"""Conversion of a row of the graph table to an ONNX file.

Opset 20: Gelu is one operator from 20 on and LayerNormalization from 17 on, ONNX Runtime has CPU
kernels for both, and TensorRT 10's and 11's parsers read all of it.  From 21 on GroupNormalization
would be one operator too, but ONNX Runtime expands it into slow primitives; torch writes it as
Reshape, InstanceNormalization, Reshape, scale and shift, which is the pattern that backends look for.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules
from torch.export import ExportedProgram

from flowsep_export.graphs import Graph, TensorSpec
from flowsep_export.onnx.half_weights import store_as_half
from flowsep_export.onnx.reshapes import make_reshapes_static
from flowsep_export.rewrites.snake import TRANSLATIONS
from flowsep_runtime.bundle.manifest import FileEntry

OPSET = 20
EMBED_AT_MOST = 64 << 20  # bytes of weights; larger ones go into a file of their own, which backends can map
EMBED_TENSOR = 64 << 10  # bytes; smaller tensors stay in the graph even if there is a file of weights
FOLD_AT_MOST = 1 << 40  # elements; slices and transposes of weights are computed here, once

# The default rules of onnxscript that apply here; all of them would double the time. Without the rule that
# merges two Casts: from float32 to half and back is a rounding, not an identity.
REWRITES = (
    rules.no_op_cast_rule,
    rules.transpose_transpose_rule,
    rules.no_op_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
)


def trace(graph: Graph) -> ExportedProgram:
    """The graph traced by torch.export, dynamic in the table's axes."""
    with _quiet(), torch.no_grad():
        return torch.export.export(
            graph.module, graph.example(), dynamic_shapes=graph.dynamic_shapes(), strict=False
        )


def to_onnx(graph: Graph, program: ExportedProgram) -> ir.Model:
    """The traced graph in ONNX, optimised, with the table's names."""
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            custom_translation_table=TRANSLATIONS,
            optimize=False,
            verbose=False,
        )
        assert exported is not None
        model = exported.model
        _optimise(model)
    _name_axes(model.graph.inputs, graph.inputs)
    _name_axes(model.graph.outputs, graph.outputs)
    _forget_the_exporter(model)
    return model


def _optimise(model: ir.Model) -> None:
    common.InlinePass()(model)
    fold_constants_ir(
        model, onnx_shape_inference=True, input_size_limit=FOLD_AT_MOST, output_size_limit=FOLD_AT_MOST
    )
    RewritePass(REWRITES)(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    make_reshapes_static(model)
    common.RemoveUnusedNodesPass()(model)
    store_as_half(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)


def save(model: ir.Model, path: Path) -> list[Path]:
    """Write the ONNX file, large weights beside it.

    Returns:
        The files written, the `.onnx` first.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if size <= EMBED_AT_MOST:
        ir.save(model, path)
        return [path]
    data = path.with_name(path.name + ".data")
    ir.save(model, path, external_data=data.name, size_threshold_bytes=EMBED_TENSOR)
    return [path, data]


def share_weights(
    folder: Path, files: Sequence[FileEntry], others: Sequence[FileEntry]
) -> tuple[FileEntry, ...]:
    """Let a graph read the weights file of another, if it is the same, and delete its own.

    Args:
        folder: where all of them are.
        files: of the graph, the `.onnx` first.
        others: of the other graph.

    Returns:
        The graph's files now.
    """
    path, *data = files
    same = [other for other in others[1:] if data and other.sha256 == data[0].sha256]
    if not same:
        return tuple(files)
    proto = onnx.load(folder / path.name, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = same[0].name
    onnx.save(proto, folder / path.name)
    (folder / data[0].name).unlink()
    return FileEntry.of(folder / path.name), same[0]


def _name_axes(values: Sequence[ir.Value], specs: tuple[TensorSpec, ...]) -> None:
    for value, spec in zip(values, specs, strict=True):
        value.name = spec.name
        value.shape = ir.Shape(spec.shape)


def _forget_the_exporter(model: ir.Model) -> None:
    """Drop inferred shapes, and the stack traces that name the files of this machine."""
    common.ClearMetadataAndDocStringPass()(model)
    kept = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in kept:
                value.shape = None
                value.type = None
    model.producer_name, model.producer_version = "flowsep-export", None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages, which no user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
