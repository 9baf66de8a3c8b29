"""Bundles whose files are links into a store: the cache of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from flowsep_runtime import BundleError, Manifest, Separator
from flowsep_runtime.bundle.manifest import FileEntry
from tests.runtime.bundle.test_strangers import enter


@pytest.fixture
def snapshot(own_bundle: Path, tmp_path: Path) -> Path:
    """The toy bundle as the hub's cache keeps it, with the weights of a graph beside it."""
    path = own_bundle / "vocode.onnx"
    onnx.save_model(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="vocode.onnx.data",
        size_threshold=1024,
        convert_attribute=False,
    )
    enter(own_bundle, "vocode", path.name, "vocode.onnx.data")
    store = tmp_path / "hub" / "models--somebody--toy"
    folder = store / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    (store / "blobs").mkdir()
    for file in own_bundle.iterdir():
        blob = store / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.move(file, blob)
        (folder / file.name).symlink_to(Path("../../blobs") / blob.name)
    return folder


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_a_snapshot_of_the_hubs_cache_runs_as_it_is(snapshot: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32)
    separator = Separator.load(snapshot, backend)
    assert separator.separate(audio, 16000, "rain", steps=1).target.any()


def test_the_folder_that_backends_open_takes_no_room_and_is_made_once(
    snapshot: Path, own_cache: Path
) -> None:
    first, second = (Separator.load(snapshot).pipeline.folder for _ in range(2))
    assert first == second and first.parent == own_cache / "bundles"
    for path in snapshot.iterdir():
        assert (first / path.name).samefile(path) and not (first / path.name).is_symlink()
    assert [path for path in first.parent.iterdir() if path != first] == []


def test_a_bundle_without_links_and_one_without_a_cache_are_opened_where_they_are(
    toy_bundle: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Separator.load(toy_bundle).pipeline.folder == toy_bundle
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert Separator.load(snapshot).pipeline.folder == snapshot


def test_a_blob_that_was_changed_is_refused_by_name(snapshot: Path) -> None:
    blob = (snapshot / "vocode.onnx").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"vocode\.onnx was changed after the export"):
        Manifest.read(snapshot)


@pytest.mark.parametrize("place", ["refs/secret", "blobs/deep/secret", "../secret", "../other/blobs/secret"])
def test_a_link_to_another_place_is_refused(snapshot: Path, place: str) -> None:
    secret = snapshot.parent.parent / place
    secret.parent.mkdir(parents=True, exist_ok=True)
    path = snapshot / "vocode.onnx.data"
    shutil.copy(path, secret)
    assert FileEntry.of(secret).sha256 == FileEntry.of(path).sha256
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(BundleError, match=r"vocode\.onnx\.data lies outside the bundle"):
        Manifest.read(snapshot)


def test_a_blob_that_is_itself_a_link_is_judged_by_where_it_leads(snapshot: Path, tmp_path: Path) -> None:
    blob = (snapshot / "vocode.onnx.data").resolve()
    shutil.move(blob, tmp_path / "secret")
    blob.symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="lies outside the bundle"):
        Manifest.read(snapshot)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have owners on POSIX")
def test_a_store_of_somebody_else_is_refused(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(BundleError, match="lies outside the bundle"):
        Manifest.read(snapshot)


def test_links_beside_a_folder_of_another_layout_are_refused(snapshot: Path) -> None:
    renamed = snapshot.parent.rename(snapshot.parent.with_name("versions"))
    with pytest.raises(BundleError, match="lies outside the bundle"):
        Manifest.read(renamed / snapshot.name)
