"""A bundle is taken as it was written, or refused in one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowsep_runtime import BundleError, FlowSepWarning, Manifest
from flowsep_runtime.bundle import checksums
from flowsep_runtime.bundle.manifest import (
    FORMAT,
    MANIFEST_NAME,
    FileEntry,
    RangeEntry,
    StageEntry,
    StageError,
)


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / MANIFEST_NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Manifest.read(bundle)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_a_written_manifest_is_read_back_equal(own_bundle: Path) -> None:
    manifest = Manifest.read(own_bundle)
    changed = dataclasses.replace(
        manifest,
        precision="float16",
        stages=manifest.stages | {"chain": StageEntry(("vocode",), StageError(1e-3, 2e-4, 71.0, 3e-4, None))},
        ranges={"vocode": RangeEntry(12.5, "hops", 65504.0)},
    )
    changed.write(own_bundle)
    assert Manifest.read(own_bundle) == changed
    assert not [path for path in own_bundle.iterdir() if path.name.startswith(".")]


def test_fields_of_a_later_minor_version_are_ignored(own_bundle: Path) -> None:
    edit(own_bundle, lambda content: content.update(novelty=1) or content["model"].update(novelty=2))
    assert Manifest.read(own_bundle).name == "toy"


def test_a_precision_has_its_own_schedule_which_the_caller_overrides(own_bundle: Path) -> None:
    edit(own_bundle, lambda content: content["model"].update(default_steps=20))
    model = Manifest.read(own_bundle).model
    assert model.schedule("fast", None, None) == model.schedule("exact", None, None) == (20, "euler")
    edit(own_bundle, lambda content: content["model"].update(fast_steps=3, fast_solver="ab2"))
    model = Manifest.read(own_bundle).model
    assert model.schedule("exact", None, None) == (20, "euler")
    assert model.schedule("fast", None, None) == (3, "ab2")
    assert model.schedule("fast", 5, None) == (5, "ab2")
    assert model.schedule("exact", None, "midpoint") == (20, "midpoint")


def test_a_bundle_from_before_masks_says_nothing_of_them(own_bundle: Path) -> None:
    def older(content: Any) -> None:
        for name in ("default_kind", "complement", "masked_steps", "masked_solver", "mask_exponent", "words"):
            del content["model"][name]

    edit(own_bundle, older)
    model = Manifest.read(own_bundle).model
    assert (model.default_kind, model.complement) == ("generated", None)
    assert model.unknown_words("anything") == []
    assert model.schedule("exact", None, None, "masked") == model.schedule("exact", None, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fast_solver", "magic"),
        ("fast_steps", 0),
        ("fast_steps", "many"),
        ("mask_exponent", 0.0),
        ("mask_exponent", 5.0),
        ("masked_solver", "magic"),
        ("masked_solver", "mean"),  # without its number of steps
        ("masked_steps", 0),
        ("default_kind", "painted"),
        ("complement", "everything"),
        ("complement", "{query} {query}"),
    ],
)
def test_defaults_that_cannot_be_run_are_refused(own_bundle: Path, field: str, value: object) -> None:
    edit(own_bundle, lambda content: content["model"].update({field: value}))
    assert f"model.{field}" in refusal(own_bundle).replace("masked_steps must be 1", "masked_solver")


def test_a_newer_format_asks_for_an_upgrade(own_bundle: Path) -> None:
    edit(own_bundle, lambda content: content.update(format=FORMAT + 1))
    assert "newer flowsep" in refusal(own_bundle)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert "no bundle at" in refusal(tmp_path / "nowhere")
    assert "is not a bundle" in refusal(tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    assert "is not a bundle" in refusal(file)


@pytest.mark.parametrize("name", ["vocode.onnx", "tokenizer.json"])
def test_missing_and_changed_files_are_named(own_bundle: Path, name: str) -> None:
    path = own_bundle / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the same size
    path.write_bytes(content)
    assert f"{path} was changed" in refusal(own_bundle)
    path.write_bytes(content + b"more")
    assert f"{path} was changed" in refusal(own_bundle)
    path.unlink()
    assert f"{path} is missing" in refusal(own_bundle)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.pop("format"), "no format number"),
        (lambda c: c.update(format="1"), "no format number"),
        (lambda c: c.pop("model"), "model is missing"),
        (lambda c: c["model"].update(sample_rate="16000"), "model.sample_rate has the wrong type"),
        (lambda c: c["model"].update(sample_rate=True), "model.sample_rate has the wrong type"),
        (lambda c: c["model"].update(hop_length=0), "model.hop_length must be at least 1"),
        (lambda c: c["model"].update(clip_samples=16000), "multiple of hop_length"),
        (lambda c: c.update(precision="float8"), "precision is none of float32, float16"),
        (lambda c: c["graphs"].pop("vocode"), "graph vocode is missing"),
        (lambda c: c["graphs"]["vocode"].update(files=[]), "graph vocode has no file"),
        (lambda c: c["graphs"]["vocode"]["inputs"][0].update(name="mel"), "graph vocode has the inputs mel"),
        (lambda c: c["graphs"]["vocode"].update(files={}), r"graphs.vocode.files is not a list"),
        (
            lambda c: c["graphs"]["vocode"]["files"][0].update(bytes=1.5),
            r"files\[0\].bytes has the wrong type",
        ),
        (lambda c: c["graphs"]["vocode"]["files"][0].update(name="../vocode.onnx"), "not a plain file name"),
        (lambda c: c["tokenizer"].update(file="/etc/passwd"), "not a plain file name"),
        (lambda c: c["stages"]["solve"].update(graphs=["guess"]), "unknown graph guess"),
    ],
)
def test_an_error_in_a_damaged_manifest_names_the_field(
    own_bundle: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    edit(own_bundle, change)
    with pytest.raises(BundleError, match=reason):
        Manifest.read(own_bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1" * 5000, "[" * 100_000, "\xff"])
def test_a_manifest_that_is_no_json_object_is_refused(own_bundle: Path, text: str) -> None:
    (own_bundle / MANIFEST_NAME).write_text(text, encoding="latin-1")
    refusal(own_bundle)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused(
    own_bundle: Path, toy_bundle: Path, data: st.DataObject
) -> None:
    content: Any = json.loads((toy_bundle / MANIFEST_NAME).read_text())
    place = content
    while True:
        key = data.draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    (own_bundle / MANIFEST_NAME).write_text(json.dumps(content))
    with contextlib.suppress(BundleError):
        Manifest.read(own_bundle)


def test_a_large_file_is_hashed_once_until_it_is_touched(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "SMALL", 0)
    hashed: list[Path] = []
    sha256_of = checksums.sha256_of

    def counted(path: Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr(checksums, "sha256_of", counted)

    Manifest.read(own_bundle)
    assert len(hashed) == 10
    Manifest.read(own_bundle)
    assert len(hashed) == 10

    path = own_bundle / "vocode.onnx"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
    assert "was changed" in refusal(own_bundle)


def test_after_a_wrong_file_no_more_are_hashed(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def wrong(path: Path) -> str:
        hashed.append(path)
        return "0" * 64 if len(hashed) == 1 else slow(path)

    def slow(path: Path) -> str:
        time.sleep(0.1)
        return checksums.sha256_of(path)

    monkeypatch.setattr("flowsep_runtime.bundle.manifest.usable_processors", lambda: 1)
    monkeypatch.setattr("flowsep_runtime.bundle.manifest.remembered_sha256", wrong)
    assert "was changed" in refusal(own_bundle)
    assert len(hashed) < 4


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_damaged_checksum_cache_is_ignored(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(checksums, "SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "flowsep").mkdir()
    (tmp_path / "flowsep" / "sha256.cache").write_text(content)
    with pytest.warns(FlowSepWarning, match="was damaged"):
        Manifest.read(own_bundle)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    Manifest.read(own_bundle)


def test_a_manifest_that_breaks_the_contract_is_not_written(own_bundle: Path) -> None:
    manifest = Manifest.read(own_bundle)
    graphs = {name: graph for name, graph in manifest.graphs.items() if name != "vocode"}
    with pytest.raises(ValueError, match="graph vocode is missing"):
        dataclasses.replace(manifest, graphs=graphs).write(own_bundle)


def test_a_backend_gets_its_variant_of_a_graph_or_else_the_common_graph(
    own_bundle: Path,
) -> None:
    manifest = Manifest.read(own_bundle)
    own = own_bundle / "vocode.other.onnx"
    own.write_bytes((own_bundle / "vocode.onnx").read_bytes())
    entry = dataclasses.replace(manifest.graphs["vocode"], files=(FileEntry.of(own),))
    dataclasses.replace(manifest, variants={"other": {"vocode": entry}}).write(own_bundle)

    manifest = Manifest.read(own_bundle)
    assert manifest.graph("vocode", "other") == entry
    assert manifest.graph("vocode", "cpu") == manifest.graphs["vocode"]
    assert manifest.graph("log_mel", "other") == manifest.graphs["log_mel"]

    own.write_bytes(b"no graph")
    assert "vocode.other.onnx was changed" in refusal(own_bundle)


def test_a_variant_has_the_inputs_of_its_graph(own_bundle: Path) -> None:
    manifest = Manifest.read(own_bundle)
    variants = {"other": {"vocode": manifest.graphs["log_mel"]}}
    with pytest.raises(ValueError, match="graph vocode has the inputs"):
        dataclasses.replace(manifest, variants=variants).write(own_bundle)
