"""Compiled graphs that are kept on disk: read back, damaged, half written."""

from __future__ import annotations

import locale
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowsep_runtime import FlowSepWarning, Manifest, Separator
from flowsep_runtime.backends import Precision, open_backend
from flowsep_runtime.backends.openvino import backend as openvino
from flowsep_runtime.backends.openvino import compiled_cache
from flowsep_runtime.bundle.manifest import GRAPHS
from flowsep_runtime.separator import BUNDLED
from tests.runtime.backends.openvino.test_openvino import inputs


@pytest.mark.slow
def test_damaged_compiled_graphs_are_compiled_again(toy_bundle: Path, own_cache: Path) -> None:
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 5000).astype(np.float32)
    first = Separator.load(toy_bundle, "openvino").separate(audio, 16000, "rain", steps=1)
    blobs = sorted((own_cache / "openvino").rglob("*.blob"))
    assert len(blobs) == len(GRAPHS) - 1  # the text encoder is not kept
    for number, blob in enumerate(blobs):
        content = bytearray(blob.read_bytes())
        match number % 4:
            case 0:
                del content[len(content) // 2 :]
            case 1:
                content[:] = b"nonsense" * 100
            case 2:
                content[:] = b""
            case 3:
                content[-100] ^= 1  # in the weights, where OpenVINO would not notice
        blob.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = Separator.load(toy_bundle, "openvino").separate(audio, 16000, "rain", steps=1)
    assert np.array_equal(again.target, first.target)
    said = [str(warning.message) for warning in caught]
    assert sorted(said) == [f"{blob} was damaged: what it held is made again." for blob in blobs]
    assert len(list((own_cache / "openvino").rglob("*.blob"))) == len(blobs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Separator.load(toy_bundle, "openvino").separate(audio, 16000, "rain", steps=1)


def test_wrong_bytes_anywhere_in_a_compiled_graph_are_noticed(own_cache: Path) -> None:
    """4 kB that are others, as a failing disk gives them, at ten places of a graph with real weights."""
    manifest = Manifest.read(BUNDLED)
    given = inputs(manifest, "velocity_text")
    expected = open_backend("openvino", BUNDLED, manifest).run("velocity_text", given)
    for place in np.linspace(0, 1, 10):
        (blob,) = (own_cache / "openvino").rglob("*.blob")
        content = np.frombuffer(blob.read_bytes(), np.uint8).copy()
        start = int(place * (len(content) - 4096))
        content[start : start + 4096] = 255 - content[start : start + 4096]
        blob.write_bytes(content.tobytes())
        with pytest.warns(FlowSepWarning, match="was damaged: what it held is made again"):
            found = open_backend("openvino", BUNDLED, manifest).run("velocity_text", given)
        assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_a_half_written_cache_file_of_openvino_is_not_read(toy_bundle: Path, own_cache: Path) -> None:
    """A process that is killed while OpenVINO writes its cache leaves OpenVINO's own file."""
    manifest = Manifest.read(toy_bundle)
    given = inputs(manifest, "vocode")
    expected = open_backend("openvino", toy_bundle, manifest).run("vocode", given)
    (blob,) = (own_cache / "openvino").rglob("*.blob")
    content = bytearray(blob.read_bytes())
    content[-100] ^= 1
    # by any name that OpenVINO could give it
    for name in ("1234567890.blob", f"compiled-{len(content)}.blob"):
        blob.with_name(name).write_bytes(content)
    blob.unlink()
    found = open_backend("openvino", toy_bundle, manifest).run("vocode", given)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_what_was_compiled_once_is_read_back_and_gives_the_same_bits(
    toy_bundle: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    manifest = Manifest.read(toy_bundle)
    graphs = [graph for graph in GRAPHS if graph not in openvino.CACHED_IF_QUICK]
    first, again = (open_backend("openvino", toy_bundle, manifest, precision) for _ in range(2))
    expected = {graph: first.run(graph, inputs(manifest, graph)) for graph in graphs}
    # One file a graph: the float32 that a trial measures bf16 by is not kept.
    assert len(list((own_cache / "openvino").rglob("*"))) == 2 * len(graphs)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(openvino, "_load", refuse)
    for graph in graphs:
        found = again.run(graph, inputs(manifest, graph))
        assert all(np.array_equal(found[name], array) for name, array in expected[graph].items())


def test_of_two_that_write_one_entry_is_kept(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        with compiled_cache.writing(tmp_path) as scratch:
            (scratch / "0.blob").write_bytes(content)
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == b"one"


def test_the_locale_is_what_it_was_after_two_threads_have_written(tmp_path: Path) -> None:
    """OpenVINO sets it to C, and back to what it found there."""
    before = locale.setlocale(locale.LC_ALL)
    assert before != "C", "the tests run in a locale of their own"
    with compiled_cache.writing(tmp_path):
        locale.setlocale(locale.LC_ALL, "C")
        with compiled_cache.writing(tmp_path):
            pass
        assert locale.setlocale(locale.LC_ALL) == "C", "the first one still writes"
    assert locale.setlocale(locale.LC_ALL) == before
