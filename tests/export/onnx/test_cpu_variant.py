"""The CPU variant computes what the bundle's graphs compute, and stores no weights a second time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowsep_export.onnx.attention import ATTENTION, fuse_narrow_attention
from flowsep_export.onnx.cpu_variant import normalise_single_channels, split_into_phases, write_for_cpu
from flowsep_export.onnx.editing import MICROSOFT, Pass
from flowsep_export.verify import relative_error
from flowsep_runtime.bundle.manifest import FileEntry, Manifest
from tests.export.conftest import Exported

SHAPES = ((1, 1, 2), (2, 4, 16), (1, 5, 3), (2, 7, 2))


def graph_of(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], channels: int, rank: int = 4
) -> onnx.ModelProto:
    """A graph from x `[B, channels, H, W]` to y, whose number of axes is given."""
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", channels, "height", "width"))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def normal(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def upsampling(bias: bool = True, kernel: int = 4, stride: int = 2, pad: int = 1) -> onnx.ModelProto:
    """A transposed convolution from 3 to 5 channels."""
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node(
        "ConvTranspose", inputs, ["y"], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
    )
    return graph_of([node], {"w": normal(3, 5, kernel, kernel), "b": normal(5)}, 3)


def normalisation(channels: int = 32, ones: float = 1.0) -> onnx.ModelProto:
    """Group normalisation over 32 groups as the export writes it, with factor and summand of each channel."""
    nodes = [
        helper.make_node("Reshape", ["x", "groups"], ["apart"]),
        helper.make_node("InstanceNormalization", ["apart", "ones", "zeros"], ["normal"], epsilon=1e-6),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Reshape", ["normal", "shape"], ["together"]),
        helper.make_node("Mul", ["together", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "summand"], ["y"]),
    ]
    constants = {
        "groups": np.array([0, 32, -1]),
        "ones": np.full(32, ones, np.float32),
        "zeros": np.zeros(32, np.float32),
        "factor": normal(channels, 1, 1),
        "summand": normal(1, channels).reshape(channels, 1, 1),
    }
    return graph_of(nodes, constants, channels)


def attention(width: int = 12, scalar: bool = True) -> onnx.ModelProto:
    """Attention of one head over the pixels of `[B, C, H, W]` as the export writes the VAE's."""
    nodes = []
    for name in "qkv":
        nodes += [
            helper.make_node("Conv", ["x", f"w_{name}"], [name]),
            helper.make_node("Reshape", [name, "flat"], [f"{name}_flat"]),
            helper.make_node("Transpose", [f"{name}_flat"], [f"{name}_pixels"], perm=[0, 2, 1]),
            helper.make_node("Unsqueeze", [f"{name}_pixels", "one"], [f"{name}_head"]),
        ]
    nodes += [
        helper.make_node("Mul", ["q_head", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["k_head"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["scaled", "turned"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["soft"], axis=-1),
        helper.make_node("MatMul", ["soft", "v_head"], ["weighted"]),
        helper.make_node("Gather", ["weighted", "head"], ["y"], axis=1),
    ]
    scale = np.float32(0.7)
    constants = {f"w_{name}": i * normal(width, 3, 1, 1) for i, name in enumerate("qkv", 1)}
    constants |= {"flat": np.array([0, width, -1]), "one": np.array([1]), "head": np.array(0)}
    constants["scale"] = scale if scalar else np.full(width, scale)
    return graph_of(nodes, constants, 3, rank=3)


def run(model: onnx.ModelProto, x: Any) -> Any:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("spell", "model", "gone"),
    [
        (split_into_phases, upsampling(), "ConvTranspose"),
        (split_into_phases, upsampling(bias=False), "ConvTranspose"),
        (normalise_single_channels, normalisation(), "Mul"),
        (fuse_narrow_attention, attention(), "Softmax"),
    ],
)
def test_a_pass_is_an_identity_at_every_size(spell: Pass, model: onnx.ModelProto, gone: str) -> None:
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    inputs = [normal(batch, channels, height, width) for batch, height, width in SHAPES]
    expected = [run(model, x) for x in inputs]
    assert spell(model, Path()) == 1
    assert gone not in {node.op_type for node in model.graph.node}
    for x, wanted in zip(inputs, expected, strict=True):
        assert relative_error(run(model, x), wanted) < 1e-6, x.shape
    assert spell(model, Path()) == 0


@pytest.mark.parametrize(
    ("spell", "model"),
    [
        (split_into_phases, upsampling(stride=1)),
        (split_into_phases, upsampling(pad=0)),
        (split_into_phases, upsampling(kernel=3)),
        (normalise_single_channels, normalisation(channels=64)),
        (normalise_single_channels, normalisation(ones=2.0)),
        (fuse_narrow_attention, attention(width=512)),
        (fuse_narrow_attention, attention(scalar=False)),
    ],
)
def test_what_gains_nothing_or_means_something_else_stays(spell: Pass, model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    assert spell(model, Path()) == 0
    assert model.SerializeToString() == before


def test_attention_of_one_head_is_one_operator() -> None:
    model = attention()
    fuse_narrow_attention(model, Path())
    (fused,) = (node for node in model.graph.node if node.domain == MICROSOFT)
    found = {a.name: helper.get_attribute_value(a) for a in fused.attribute}
    assert (fused.op_type, found) == (ATTENTION, {"num_heads": 1, "scale": pytest.approx(0.7)})
    assert list(fused.input) == ["q_pixels", "k_pixels", "v_pixels"]


def feeds(session: Any, batch: int, t: int) -> dict[str, Any]:
    sizes = {"batch": batch, "t": t, "frames": 4 * t}
    return {
        value.name: normal(*(sizes.get(axis, axis) for axis in value.shape)) for value in session.get_inputs()
    }


def sessions(*paths: Path) -> list[Any]:
    return [onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in paths]


def test_a_bundle_has_the_autoencoder_spelt_for_the_cpu(
    tiny_bundle: Exported, tiny_half_bundle: Exported
) -> None:
    """In half precision without attention, whose operator computes in float32 on a processor."""
    for folder, tolerance in ((tiny_bundle.folder, 5e-6), (tiny_half_bundle.folder, 3e-3)):
        manifest = Manifest.read(folder)
        own = manifest.variants["cpu"]
        for name, entry in own.items():
            plain, variant = sessions(
                *(folder / graph.files[0].name for graph in (manifest.graphs[name], entry))
            )
            for batch, t in ((1, 4), (2, 12), (1, 32)):
                given = feeds(plain, batch, t)
                for found, wanted in zip(variant.run(None, given), plain.run(None, given), strict=True):
                    assert 0 < relative_error(found, wanted) < tolerance, "another graph, the same numbers"
        model = onnx.load(folder / own["decode_latent"].files[0].name)
        left = {node.op_type for node in model.graph.node}
        assert "ConvTranspose" not in left and (ATTENTION in left) == (manifest.precision == "float32")
        assert "velocity" not in own


def test_a_variant_reads_the_weights_file_of_its_graph(tiny_bundle: Exported, tmp_path: Path) -> None:
    """And the velocity has one in this case only: it gains too little to be stored twice."""
    graphs = Manifest.read(tiny_bundle.folder).graphs
    entries = {}
    for name in ("encode_mixture", "velocity", "decode_latent"):
        path = tmp_path / f"{name}.onnx"
        onnx.save(
            onnx.load(tiny_bundle.folder / path.name),
            path,
            save_as_external_data=True,
            location=f"{name}.onnx.data",
            size_threshold=1024,
        )
        files = (FileEntry.of(path), FileEntry.of(tmp_path / f"{name}.onnx.data"))
        entries[name] = replace(graphs[name], files=files)
    own = write_for_cpu(tmp_path, entries)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}{end}" for name in entries for end in (".onnx", ".onnx.data", ".cpu.onnx")
    }
    for name, entry in own.items():
        assert entry.files == (FileEntry.of(tmp_path / f"{name}.cpu.onnx"), entries[name].files[1])
    model = onnx.load(tmp_path / "velocity.cpu.onnx", load_external_data=False)
    left = Counter(node.op_type for node in model.graph.node)
    assert left[ATTENTION] and not left["ConvTranspose"]
    plain, variant = sessions(tmp_path / "velocity.onnx", tmp_path / "velocity.cpu.onnx")
    given = feeds(plain, 2, 12)
    assert 0 < relative_error(variant.run(None, given)[0], plain.run(None, given)[0]) < 5e-6
