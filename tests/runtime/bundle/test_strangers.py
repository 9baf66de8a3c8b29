"""A foreign bundle gives a backend no file other than its own, and takes bounded memory."""

from __future__ import annotations

import ast
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from flowsep_runtime import BundleError, Manifest, Separator
from flowsep_runtime.bundle.manifest import MANIFEST_NAME, FileEntry
from flowsep_runtime.bundle.onnx_references import GraphError, Reference, references

SECRET = b"the user's own file, long enough for some weights" * 10


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / MANIFEST_NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def enter(bundle: Path, graph: str, *names: str) -> None:
    """Gives a graph these files in the manifest, with their checksums: the stranger signs what he sends."""

    def change(content: dict[str, Any]) -> None:
        entries = [FileEntry.of(bundle / name) for name in names]
        content["graphs"][graph]["files"] = [vars(entry) for entry in entries]

    edit(bundle, change)


def external(location: str, **numbers: int) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": location} | numbers).items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def in_a_subgraph(tensor: onnx.TensorProto) -> onnx.NodeProto:
    branch = helper.make_graph([], "branch", [], [], [tensor])
    return helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)


#: Every place in a model where a tensor may lie.
PLACES: dict[str, Callable[[onnx.ModelProto, onnx.TensorProto], object]] = {
    "initializer": lambda model, tensor: model.graph.initializer.append(tensor),
    "attribute": lambda model, tensor: model.graph.node.append(
        helper.make_node("Constant", [], ["y"], value=tensor)
    ),
    "list of an attribute": lambda model, tensor: model.graph.node.append(
        helper.make_node("Own", [], ["y"], values=[tensor])
    ),
    "subgraph": lambda model, tensor: model.graph.node.append(in_a_subgraph(tensor)),
    "sparse initializer": lambda model, tensor: model.graph.sparse_initializer.add().values.CopyFrom(tensor),
    "indices": lambda model, tensor: model.graph.sparse_initializer.add().indices.CopyFrom(tensor),
    "function": lambda model, tensor: model.functions.add(name="f").node.append(
        helper.make_node("Constant", [], ["y"], value=tensor)
    ),
    "default of a function": lambda model, tensor: model.functions.add(name="f").attribute_proto.append(
        helper.make_attribute("a", tensor)
    ),
    "training": lambda model, tensor: model.training_info.add().algorithm.initializer.append(tensor),
}

LOCATIONS = [
    "../secret",
    "/etc/hostname",
    "sub/../../secret",
    "*/_ORT_MEM_ADDR_/*",
    "",
    "other.data",
    "\\\\x\\y",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_reference_is_found_wherever_it_stands(own_bundle: Path, place: str) -> None:
    path = own_bundle / "vocode.onnx"
    model = onnx.load(path)
    PLACES[place](model, external("../secret", offset=8, length=16))
    path.write_bytes(model.SerializeToString())
    assert set(references(path)) == {Reference("../secret", 8, 16)}


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_graph_that_reads_another_file_is_refused_by_name(
    own_bundle: Path, tmp_path: Path, location: str
) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    (own_bundle / "other.data").write_bytes(SECRET)  # in the folder, and in no checksum
    path = own_bundle / "vocode.onnx"
    model = onnx.load(path)
    model.graph.initializer.append(external(location, offset=0, length=16))
    path.write_bytes(model.SerializeToString())
    enter(own_bundle, "vocode", path.name)
    with pytest.raises(BundleError, match=r"vocode\.onnx reads a file that the manifest does not"):
        Separator.load(own_bundle)


def test_a_graph_that_was_searched_once_is_known_and_another_one_is_not(
    own_bundle: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Manifest.read(own_bundle)
    searched: list[str] = []

    def found(path: Path) -> list[Reference]:
        searched.append(path.name)
        return [Reference("../secret")]

    monkeypatch.setattr("flowsep_runtime.bundle.files.references", found)
    Manifest.read(own_bundle)
    assert not searched
    with (own_bundle / "vocode.onnx").open("ab") as file:
        file.write(bytes(2))
    enter(own_bundle, "vocode", "vocode.onnx")
    for _ in range(2):
        with pytest.raises(BundleError, match=r"vocode\.onnx reads a file that the manifest does not"):
            Manifest.read(own_bundle)
    assert searched == ["vocode.onnx"] * 2


def test_a_graph_may_read_its_own_data_and_not_beyond(own_bundle: Path) -> None:
    path, data = own_bundle / "vocode.onnx", own_bundle / "vocode.onnx.data"
    model = onnx.load(path)
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location=data.name,
        size_threshold=1024,
        convert_attribute=False,
    )
    enter(own_bundle, "vocode", path.name, data.name)
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (16000, 1)).astype(np.float32)
    assert Separator.load(own_bundle, "cpu").separate(audio, 16000, "rain", steps=1).target.any()

    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            next(entry for entry in tensor.external_data if entry.key == "length").value = str(1 << 40)
    path.write_bytes(model.SerializeToString())
    enter(own_bundle, "vocode", path.name, data.name)
    with pytest.raises(BundleError, match=r"vocode\.onnx reads beyond the end of vocode\.onnx\.data"):
        Manifest.read(own_bundle)


@pytest.mark.parametrize("change", ["twice", "negative", "no number", "operator", "deep", "broken"])
def test_an_ambiguous_graph_is_refused(own_bundle: Path, change: str) -> None:
    path = own_bundle / "vocode.onnx"
    model = onnx.load(path)
    tensor = external("vocode.data", offset=0)
    if change == "twice":
        tensor.external_data.add(key="location", value="../secret")
    elif change == "negative":
        tensor.external_data.add(key="length", value="-1")
    elif change == "no number":
        tensor.external_data.add(key="length", value="0x10")
    elif change == "operator":
        model.graph.node.append(helper.make_node("EPContext", [], ["y"], domain="com.microsoft"))
    model.graph.initializer.append(tensor)
    content = model.SerializeToString()
    if change == "broken":
        content = content[:-3]
    elif change == "deep":
        for _ in range(60):  # a node's attribute's graph's node, and so on
            for tag in (b"\x32", b"\x2a", b"\x0a"):
                content = tag + length(content) + content
        content = b"\x3a" + length(content) + content
    path.write_bytes(content)
    enter(own_bundle, "vocode", path.name)
    with pytest.raises(BundleError, match=r"vocode\.onnx must not be opened \("):
        Manifest.read(own_bundle)


def length(content: bytes) -> bytes:
    value, found = len(content), bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def test_a_graph_without_other_files_is_passed(toy_bundle: Path) -> None:
    for path in toy_bundle.glob("*.onnx"):
        assert references(path) == []


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"location", b"EPContext", b"\x3a\x10location"]))
def test_any_bytes_are_read_as_a_graph_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, word: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content + word)
    with contextlib.suppress(GraphError):
        references(path)


@pytest.mark.parametrize("name", ["velocity.onnx", "tokenizer.json", MANIFEST_NAME])
@pytest.mark.parametrize("what", ["link", "pipe", "circle", "folder"])
def test_a_file_outside_the_bundle_is_refused(own_bundle: Path, tmp_path: Path, name: str, what: str) -> None:
    path, elsewhere = own_bundle / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    if what == "link":
        path.symlink_to(elsewhere)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "circle":
        path.symlink_to(path)
    else:
        path.mkdir()
    with pytest.raises(BundleError):
        Manifest.read(own_bundle)


def test_a_link_within_the_bundle_and_one_to_it_are_fine(own_bundle: Path, tmp_path: Path) -> None:
    path = own_bundle / "velocity.onnx"
    path.rename(own_bundle / "blob")
    path.symlink_to("blob")
    whole = tmp_path / "whole"
    whole.symlink_to(own_bundle)
    Manifest.read(whole)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["model"].update(clip_samples=5120 * 10**9), "model.clip_samples must be at most"),
        (lambda c: c["model"].update(default_steps=10**9), "model.default_steps must be at most"),
        (
            lambda c: c["model"].update(latent_channels=4096, latent_frequencies=4096),
            "together are too large",
        ),
        (lambda c: c["model"].update(text_length=10**30), "model.text_length must be at most"),
        (lambda c: c["tokenizer"].update(pad_id=1 << 70), "tokenizer.pad_id must be a token"),
        (lambda c: c["tokenizer"].update(pad_id=-1), "tokenizer.pad_id must be a token"),
        (
            lambda c: c["graphs"]["velocity"]["inputs"][1].update(shape=["batch", 1 << 40, "t", 16]),
            "mixture_features of graph velocity is too large",
        ),
        (
            lambda c: c["graphs"]["velocity"]["inputs"][1].update(shape=["batch", -1, "t", 16]),
            "has an axis of -1",
        ),
        (lambda c: c["graphs"]["vocode"]["inputs"][0].update(dtype="object"), "is neither float32 nor int64"),
        (lambda c: c["graphs"]["vocode"]["files"][0].update(name="vocode.xml"), "vocode is in no .onnx file"),
        (lambda c: c["graphs"]["vocode"]["files"][0].update(name="..\\vocode.onnx"), "not a plain file name"),
        (lambda c: c["graphs"]["vocode"]["files"][0].update(name="C:vocode.onnx"), "not a plain file name"),
        (
            lambda c: c["graphs"]["vocode"]["files"].append(
                c["graphs"]["velocity"]["files"][0] | {"sha256": "0" * 64}
            ),
            "velocity.onnx has two checksums",
        ),
    ],
)
def test_sizes_and_names_have_bounds(
    own_bundle: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    edit(own_bundle, change)
    with pytest.raises(BundleError) as caught:
        Manifest.read(own_bundle)
    assert reason in str(caught.value)


def test_a_file_of_excessive_size_is_not_read(own_bundle: Path) -> None:
    """Sparse files: they take no room on the stranger's disk either."""
    os.truncate(own_bundle / "tokenizer.json", 1 << 40)
    with pytest.raises(BundleError, match=r"tokenizer\.json is too large for a tokenizer"):
        Manifest.read(own_bundle)
    os.truncate(own_bundle / "velocity.onnx", 1 << 40)
    with pytest.raises(BundleError, match=r"velocity\.onnx was changed after the export"):
        Manifest.read(own_bundle)
    os.truncate(own_bundle / MANIFEST_NAME, 1 << 40)
    with pytest.raises(BundleError, match="far too large to be a manifest"):
        Manifest.read(own_bundle)


def test_a_graph_beyond_what_a_graph_can_be_is_not_opened(own_bundle: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        entry = content["graphs"]["vocode"]["files"][0]
        entry["bytes"] = 3 << 30

    os.truncate(own_bundle / "vocode.onnx", 3 << 30)
    edit(own_bundle, change)
    with pytest.raises(BundleError, match=r"vocode\.onnx is too large for a graph"):
        Manifest.read(own_bundle)


def test_nothing_in_the_runtime_runs_code_from_a_file() -> None:
    sources = Path(__file__).parents[3] / "runtime" / "flowsep_runtime"
    for source in sources.rglob("*.py"):
        names = {
            getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None)
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        }
        assert not names & {"pickle", "marshal", "shelve", "eval", "exec", "system", "subprocess", "popen"}
