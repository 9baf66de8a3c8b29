"""Variant of a half-precision velocity graph for ONNX Runtime's CUDA provider: fewer kernels, and attention
as one operator.

TensorRT's parser would look for a plugin of the name of ONNX Runtime's operator, so this variant is for the
CUDA provider only. In float32 fused kernels may multiply in TF32: float32 graphs stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from flowsep_export.onnx.attention import fuse_attention, soften_in_half
from flowsep_export.onnx.cuda_kernels import (
    add_within_normalisations,
    fold_into_projections,
    gate_by_sigmoid,
    normalise_groups_in_half,
    normalise_in_half,
    slice_unevenly,
)
from flowsep_export.onnx.cuda_tokens import (
    add_mask_within_keys,
    fold_feed_forward,
    normalise_groups_at_once,
    project_to_tokens,
)
from flowsep_export.onnx.editing import Pass
from flowsep_export.onnx.fewer_kernels import fold_projections_into_text, join_projections

PASSES: tuple[Pass, ...] = (
    join_projections,
    fold_projections_into_text,
    fuse_attention,
    slice_unevenly,
    normalise_in_half,
    normalise_groups_in_half,
    fold_into_projections,
    add_within_normalisations,
    project_to_tokens,
    fold_feed_forward,
    add_mask_within_keys,
    normalise_groups_at_once,
    gate_by_sigmoid,
)


def rewrite_for_cuda(model: onnx.ModelProto, folder: Path) -> None:
    """All passes over a half-precision velocity graph, in place.

    Args:
        model: The graph.
        folder: Where its external weights lie.
    """
    for spell in (soften_in_half, *PASSES):
        spell(model, folder)


def pad_as_before(model: onnx.ModelProto) -> None:
    """Gives a graph the opset 18, in place, whose Pad the CUDA provider has from ONNX Runtime 1.18 on.

    It has the Pad of opset 19, which differs in a mode that no graph here has, from 1.25 on only.
    """
    newer = {"Gelu", "AveragePool", "GridSample", "DFT", "Resize"} & {
        node.op_type for node in model.graph.node
    }
    assert not newer, f"{newer} mean something else in opset 18"
    next(entry for entry in model.opset_import if entry.domain == "").version = 18
