"""Damaged and invented files of every kind are read or refused in a sentence, and nothing else happens."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowsep_runtime.bundle.manifest import MANIFEST_NAME
from tests.runtime import fuzz

pytestmark = pytest.mark.slow

bounded = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CONTAINERS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3", "VOC", "SVX", "NIST")


@cache
def recording(container: str) -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (3000, 1)).astype(np.float32)
    soundfile.write(file, samples, 16000, format=container)
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, head: int = 200) -> bytes:
    """A file with some bytes changed, mostly in its head, and perhaps cut, repeated or filled up."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 8))):
        most = min(head, len(content)) if draw(st.booleans()) else len(content)
        content[draw(st.integers(0, most - 1))] = draw(
            st.integers(0, 255) | st.sampled_from([0, 127, 128, 255])
        )
    kind = draw(st.sampled_from(["whole", "cut", "twice", "more"]))
    if kind == "cut":
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content) + {"twice": bytes(content), "more": bytes(5000)}.get(kind, b"")


@bounded
@given(st.sampled_from(CONTAINERS).flatmap(lambda container: damaged(recording(container))))
def test_a_damaged_recording(tmp_path: Path, content: bytes) -> None:
    fuzz.audio(tmp_path, content)


@bounded
@given(
    st.binary(max_size=500),
    st.sampled_from(
        [b"", b"RIFF", b"fLaC", b"OggS", b"ID3\x04", b"\xff\xfb\x90\x64", b"FORM", b".snd", b"caff"]
    ),
)
def test_an_invented_recording(tmp_path: Path, content: bytes, start: bytes) -> None:
    fuzz.audio(tmp_path, start + content)


@bounded
@given(data=st.data())
def test_a_damaged_manifest(own_bundle: Path, toy_bundle: Path, data: st.DataObject) -> None:
    fuzz.manifest(own_bundle, data.draw(damaged((toy_bundle / MANIFEST_NAME).read_bytes(), 5000)))


@bounded
@given(data=st.data(), name=st.sampled_from(["vocode.onnx", "velocity.onnx", "log_mel.onnx"]))
def test_a_damaged_graph(own_bundle: Path, toy_bundle: Path, data: st.DataObject, name: str) -> None:
    fuzz.graph(own_bundle, data.draw(damaged((toy_bundle / name).read_bytes())))


@bounded
@given(data=st.data())
def test_a_damaged_tokenizer(own_bundle: Path, toy_bundle: Path, data: st.DataObject) -> None:
    fuzz.tokenizer(own_bundle, data.draw(damaged((toy_bundle / "tokenizer.json").read_bytes(), 2000)))


@bounded
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["machine", "engines", "batch", "plan", "name", "least"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_invented_engines(tmp_path: Path, content: object) -> None:
    head = {"format": 1, **content} if isinstance(content, dict) else content
    fuzz.engines(tmp_path, json.dumps(head).encode())


def test_a_fuzz_target_fails_on_a_broken_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MOST_SAMPLES", 10)
    with pytest.raises(AssertionError):
        fuzz.audio(tmp_path, recording("WAV"))
