"""Variants of graphs for ONNX Runtime's CPU provider.

What the passes make of weights is written as operators on the common graph's weights, which ONNX Runtime
folds into constants when it loads the graph: a variant adds no weights to those that it shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from flowsep_export.onnx.attention import fuse_attention, fuse_narrow_attention
from flowsep_export.onnx.editing import Editor, Pass, at_every, attributes
from flowsep_runtime.bundle.manifest import FileEntry, GraphEntry

#: Taps of a transposed convolution of 4 and stride 2 along an axis: the first one for even and for odd
#: outputs, and the way to the second. Output 2i reads inputs i-1 and i, 2i+1 reads i and i+1.
FIRST_TAPS, STEP, END = (3, 2), -2, -5


@at_every("ConvTranspose")
def split_into_phases(editor: Editor, conv: onnx.NodeProto) -> bool:
    """Puts four convolutions of 2x2, one for each parity of row and column, and interleaves their results,
    for a transposed convolution of 4x4 and stride 2.

    ONNX Runtime has a quick kernel for convolutions and a slow one for transposed ones.
    """
    found = attributes(conv)
    if [found.get(name) for name in ("kernel_shape", "strides", "pads")] != [[4, 4], [2, 2], [1] * 4]:
        return False
    if (
        found.get("group", 1) != 1
        or set(found.get("dilations", [1])) != {1}
        or any(found.get("output_padding", []))
    ):
        return False
    source, weight, *bias = conv.input
    name = conv.output[0]

    def constant(key: str, *values: int) -> str:
        return editor.store(f"phases.{key}", np.array(values))

    def joined(parts: list[str], axis: int, result: str) -> None:
        """The parts one beside the other along a new axis."""
        for part in parts:
            editor.put("Unsqueeze", [part, constant(f"axis_{axis}", axis)], [f"{part}.apart"])
        editor.put("Concat", [f"{part}.apart" for part in parts], [result], axis=axis)

    for a in (0, 1):
        for b in (0, 1):
            phase = f"{name}.{a}{b}"
            bounds = [
                constant(f"first_{a}{b}", FIRST_TAPS[a], FIRST_TAPS[b]),
                constant("end", END, END),
                constant("axes", 2, 3),
                constant("step", STEP, STEP),
            ]
            editor.put("Slice", [weight, *bounds], [f"{phase}.taps"])
            editor.put("Transpose", [f"{phase}.taps"], [f"{phase}.weight"], perm=[1, 0, 2, 3])
            pads = [1 - a, 1 - b, a, b]
            editor.put("Conv", [source, f"{phase}.weight", *bias], [phase], kernel_shape=[2, 2], pads=pads)
        joined([f"{name}.{a}0", f"{name}.{a}1"], 4, f"{name}.{a}")
    joined([f"{name}.0", f"{name}.1"], 3, f"{name}.rows")
    editor.put("Shape", [source], [f"{name}.height"], start=2, end=3)
    editor.put("Mul", [f"{name}.height", constant("two", 2)], [f"{name}.twice"])
    shape = [constant("kept", 0, 0), f"{name}.twice", constant("rest", -1)]
    editor.put("Concat", shape, [f"{name}.shape"], axis=0)
    editor.put("Reshape", [f"{name}.rows", f"{name}.shape"], [name])
    return True


@at_every("InstanceNormalization")
def normalise_single_channels(editor: Editor, norm: onnx.NodeProto) -> bool:
    """Lets the normalisation of groups of one channel each scale and shift the channels too."""
    apart = editor.source(norm.input[0], "Reshape")
    together = editor.only_user(norm.output[0], "Reshape")
    scaled = editor.only_user(together.output[0], "Mul") if together is not None else None
    shifted = editor.only_user(scaled.output[0], "Add") if scaled is not None else None
    groups = editor.shape(norm.input[1])
    if apart is None or scaled is None or shifted is None or groups is None:
        return False
    if any(editor.shape(node.input[1]) != (*groups, 1, 1) for node in (scaled, shifted)):
        return False
    if (editor.constant(norm.input[1]) != 1).any() or editor.constant(norm.input[2]).any():
        return False
    of_channels = [
        editor.store(f"{name}.of_channels", editor.constant(name).ravel())
        for name in (scaled.input[1], shifted.input[1])
    ]
    editor.put(norm.op_type, [apart.input[0], *of_channels], [shifted.output[0]], **attributes(norm))
    return True


PASSES: tuple[Pass, ...] = (
    fuse_attention,
    fuse_narrow_attention,
    split_into_phases,
    normalise_single_channels,
)

#: The graphs that gain.
GRAPHS = ("encode_mixture", "velocity", "decode_latent")


def write_for_cpu(folder: Path, exported: Mapping[str, GraphEntry]) -> dict[str, GraphEntry]:
    """Write the variants of a bundle's graphs into its folder.

    Args:
        folder: Where the graphs are.
        exported: The graphs by name.

    Returns:
        The entries of the variants that differ from their graphs.
    """
    entries = {}
    for name in GRAPHS:
        graph, *data = exported[name].files
        if name == "velocity" and not data:  # it gains little; the other two are a small part of the bundle
            continue
        model = onnx.load(folder / graph.name, load_external_data=False)
        if not sum(spell(model, folder) for spell in PASSES):
            continue
        path = folder / f"{name}.cpu.onnx"
        onnx.save(model, path)
        entries[name] = replace(exported[name], files=(FileEntry.of(path), *data))
    return entries
