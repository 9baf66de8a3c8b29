"""A query that was encoded before is answered without the text encoder; whatever happens to the cache, the
numbers stay right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowsep_runtime import BackendError, FlowSepWarning, Separator
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.separation import query_cache as embeddings
from flowsep_runtime.separation.queries import Tokens
from flowsep_runtime.separation.query_cache import Embeddings

# The folder of the cache is the same for all examples, which is what the tests are about.
SHARED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tokens(number: int) -> Tokens:
    return Tokens(np.full((1, 50), number, np.int64), np.ones((1, 50), np.int64), False)


def text(number: int) -> Any:
    return np.random.default_rng(number).standard_normal((1, 50, 6)).astype(np.float32)


@pytest.fixture
def manifest(toy_bundle: Path) -> Manifest:
    return Manifest.read(toy_bundle)


@pytest.fixture
def kept(manifest: Manifest, own_cache: Path) -> Path:
    """The file of query 1, for the backend "cpu" in "exact"."""
    Embeddings(manifest, "cpu", "exact").keep(tokens(1), text(1))
    (path,) = (own_cache / "queries").iterdir()
    return path


@SHARED
@given(number=st.integers(2, 1 << 40))
def test_another_process_gets_the_very_same_numbers(manifest: Manifest, own_cache: Path, number: int) -> None:
    mine, others = Embeddings(manifest, "cpu", "exact"), Embeddings(manifest, "cpu", "exact")
    given_back = mine.keep(tokens(number), text(number))
    found = others.recall(tokens(number))
    assert found is not None and found.dtype == np.float32
    assert found.tobytes() == given_back.tobytes() == text(number).tobytes()
    for array in (found, given_back):
        assert not array.flags.writeable


def test_nothing_is_shared_with_another_backend_precision_or_bundle(manifest: Manifest, kept: Path) -> None:
    tokenizer = dataclasses.replace(manifest.tokenizer, sha256="0" * 64)
    graph = manifest.graphs["encode_text"]
    other = dataclasses.replace(graph, files=(dataclasses.replace(graph.files[0], sha256="0" * 64),))
    for strange in (
        Embeddings(manifest, "openvino", "exact"),
        Embeddings(manifest, "cpu", "fast"),
        Embeddings(dataclasses.replace(manifest, tokenizer=tokenizer), "cpu", "exact"),
        Embeddings(
            dataclasses.replace(manifest, graphs=manifest.graphs | {"encode_text": other}), "cpu", "exact"
        ),
    ):
        assert strange.recall(tokens(1)) is None
    assert Embeddings(manifest, "cpu", "exact").recall(tokens(2)) is None
    assert Embeddings(manifest, "cpu", "exact").recall(tokens(1)) is not None


@SHARED
@given(data=st.data())
def test_a_damaged_entry_is_ignored_and_written_again(
    manifest: Manifest, kept: Path, data: st.DataObject
) -> None:
    whole = Embeddings(manifest, "cpu", "exact")
    whole.keep(tokens(1), text(1))
    content = bytearray(kept.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    kept.write_bytes(content)
    reader = Embeddings(manifest, "cpu", "exact")
    with pytest.warns(FlowSepWarning, match="was damaged: what it held is made again"):
        assert reader.recall(tokens(1)) is None
    reader.keep(tokens(1), text(1))
    assert Embeddings(manifest, "cpu", "exact").recall(tokens(1)) is not None


def test_the_entries_used_longest_ago_go_first(
    manifest: Manifest, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "ON_DISK", 3)
    for number in (1, 2, 3):
        Embeddings(manifest, "cpu", "exact").keep(tokens(number), text(number))
    assert Embeddings(manifest, "cpu", "exact").recall(tokens(1)) is not None  # and so it is used
    Embeddings(manifest, "cpu", "exact").keep(tokens(4), text(4))
    left = [n for n in (1, 2, 3, 4) if Embeddings(manifest, "cpu", "exact").recall(tokens(n)) is not None]
    assert left == [1, 3, 4]
    assert len(list((own_cache / "queries").iterdir())) == 3


def test_memory_holds_the_last_queries_only(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "IN_MEMORY", 2)
    memory = Embeddings(manifest, "cpu", "exact", on_disk=False)
    for number in (1, 2, 3):
        memory.keep(tokens(number), text(number))
    assert [memory.recall(tokens(number)) is None for number in (1, 2, 3)] == [True, False, False]


def test_a_known_query_does_not_load_the_text_encoder(own_bundle: Path, own_cache: Path) -> None:
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 5000).astype(np.float32)
    first = Separator.load(own_bundle).separate(audio, 16000, "dog barking", steps=1)
    again = Separator.load(own_bundle)
    without_cache = Separator.load(own_bundle, cache=False)
    (own_bundle / "encode_text.onnx").write_bytes(b"no onnx")
    assert np.array_equal(again.separate(audio, 16000, "dog barking", steps=1).target, first.target)
    with pytest.raises(BackendError, match="cannot load"):
        again.separate(audio, 16000, "rain", steps=1)
    with pytest.raises(BackendError, match="cannot load"):
        without_cache.separate(audio, 16000, "dog barking", steps=1)


def test_a_cache_folder_that_cannot_be_made_is_no_error(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 5000).astype(np.float32)
    for _ in range(2):
        assert Separator.load(toy_bundle).separate(audio, 16000, "rain", steps=1).target.any()
