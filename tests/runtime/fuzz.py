"""Bytes into everything that reads a stranger's file: each target takes any bytes and lets through only what
a user can act on.

`test_fuzz.py` runs these on a few hundred inputs. For longer, with coverage guiding the mutations:

    pip install atheris
    python -m tests.runtime.fuzz graph -max_total_time=3600

A target is `audio`, `manifest`, `graph`, `engines` or `tokenizer`; what follows goes to libFuzzer, which
stops at the first fault and says which input it was.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import soundfile

from flowsep_runtime import FlowSepError, FlowSepWarning, Manifest
from flowsep_runtime.audio.reading import AudioReader
from flowsep_runtime.backends.tensorrt.engines import SIDECAR, EngineSet
from flowsep_runtime.bundle.manifest import MANIFEST_NAME
from flowsep_runtime.bundle.onnx_references import GraphError, references
from flowsep_runtime.separation.queries import Tokenizer

#: Bytes of audio from a few thousand bytes of file: beyond, a header has made the reader invent samples.
MOST_SAMPLES = 1 << 26

Target = Callable[[Path, bytes], None]


def audio(folder: Path, content: bytes) -> None:
    """A recording: its samples are finite and as many as it says, or it is refused."""
    path = folder / "recording"
    path.write_bytes(content)
    with contextlib.suppress(FlowSepError), warnings.catch_warnings():
        warnings.simplefilter("ignore", FlowSepWarning)
        with AudioReader(path) as reader:
            samples = 0
            for block in reader.blocks():
                samples += block.size
            assert samples == reader.frames * reader.channels <= MOST_SAMPLES


def manifest(folder: Path, content: bytes) -> None:
    """A bundle's manifest, beside the files of a right one."""
    (folder / MANIFEST_NAME).write_bytes(content)
    with contextlib.suppress(FlowSepError):
        Manifest.read(folder)


def graph(folder: Path, content: bytes) -> None:
    """An ONNX file; without the word it would not be walked through."""
    path = folder / "any.onnx"
    path.write_bytes(content + b"location")
    with contextlib.suppress(GraphError):
        references(path)


def engines(folder: Path, content: bytes) -> None:
    """A list of TensorRT engines."""
    (folder / SIDECAR).write_bytes(content)
    with contextlib.suppress(FlowSepError):
        EngineSet.read(folder)


def tokenizer(folder: Path, content: bytes) -> None:
    """A tokenizer, and what it makes of a sentence."""
    right = Manifest.read(folder)
    path = folder / "other.json"
    path.write_bytes(content)
    entry = type(right.tokenizer)(path.name, "", right.tokenizer.pad_id)
    with contextlib.suppress(FlowSepError):
        Tokenizer(folder, right.__class__(**{**vars(right), "tokenizer": entry}))("dog barking")


TARGETS: Mapping[str, Target] = {
    target.__name__: target for target in (audio, manifest, graph, engines, tokenizer)
}


def seeds(folder: Path) -> Mapping[str, list[bytes]]:
    """Right files to begin with, by target; `folder` is a bundle."""
    recordings = []
    for container in ("WAV", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"):
        file = io.BytesIO()
        soundfile.write(file, np.sin(np.arange(1500) / 9), 16000, format=container)
        recordings.append(file.getvalue())
    return {
        "audio": recordings,
        "manifest": [(folder / MANIFEST_NAME).read_bytes()],
        "graph": [(folder / name).read_bytes() for name in ("velocity_mixture.onnx", "velocity_time.onnx")],
        "engines": [b'{"format": 1, "machine": {}, "batch": {}, "engines": {"a": {"plan": {"name": "a"}}}}'],
        "tokenizer": [(folder / "tokenizer.json").read_bytes()],
    }


def main() -> None:
    """Fuzzes one target for as long as libFuzzer is told to."""
    import atheris

    from flowsep_runtime.separator import BUNDLED

    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        folder, corpus = Path(temporary) / "bundle", Path(temporary) / "corpus"
        shutil.copytree(BUNDLED, folder)
        corpus.mkdir()
        for place, content in enumerate(seeds(folder)[name]):
            (corpus / str(place)).write_bytes(content)
        atheris.instrument_all()
        atheris.Setup(
            [sys.argv[0], str(corpus), "-max_len=100000", *options],
            lambda data: TARGETS[name](folder, data),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
