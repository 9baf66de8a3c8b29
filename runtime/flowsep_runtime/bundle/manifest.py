"""The bundle format, which the exporter writes and every backend reads.

A bundle is a folder with `manifest.json`, one ONNX file per graph (large weights beside it as external data)
and `tokenizer.json`. The manifest is written last and atomically, so a folder without it is not a bundle.

Graphs, all with a dynamic batch; float inputs and outputs are float32 even in a half-precision bundle, ids
and mask int64. `t` latent frames are a multiple of `frame_multiple / latent_stride`, `frames` a multiple of
`frame_multiple`:

    log_mel           waveform [batch, samples] -> log_mel [batch, frames, 64]
    encode_text       input_ids, attention_mask [batch, 50] -> text [batch, 50, D]
    encode_mixture    log_mel [batch, frames, 64] -> mean, std [batch, 8, t, 16]
    velocity_text     text [batch, 50, D], mask [batch, 50]
                      -> keys_values [batch, 50, K], mask_bias [batch, 1, 1, 50]
    velocity_mixture  mixture_latent [batch, 8, t, 16] -> mixture_features [batch, C, t, 16]
    velocity_time     t [steps] -> time_features [steps, E]
    velocity          x [batch, 8, t, 16], mixture_features, time_features [batch, E], keys_values, mask_bias
                      -> velocity [batch, 8, t, 16]
    decode_latent     latent [batch, 8, t, 16] -> log_mel [batch, frames, 64]
    vocode            log_mel [batch, frames, 64] -> waveform [batch, 160 * frames + 32]
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from flowsep_runtime.bundle.checksums import remembered_sha256, sha256_of
from flowsep_runtime.bundle.files import (
    LARGEST_GRAPH,
    LARGEST_TOKENIZER,
    RefusedFileError,
    check_graph,
    inspected,
    is_plain_name,
    naming,
    read_json,
)
from flowsep_runtime.bundle.files import MANIFEST_NAME as MANIFEST_NAME
from flowsep_runtime.bundle.model_entry import LARGEST_ARRAY
from flowsep_runtime.bundle.model_entry import ModelEntry as ModelEntry
from flowsep_runtime.bundle.records import RecordError, from_json
from flowsep_runtime.caches import write_whole
from flowsep_runtime.errors import BundleError, shown
from flowsep_runtime.processors import usable_processors

FORMAT = 1
DTYPES = ("float32", "int64")

#: The names that a graph's inputs and outputs must have, in order.
GRAPHS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "log_mel": (("waveform",), ("log_mel",)),
    "encode_text": (("input_ids", "attention_mask"), ("text",)),
    "encode_mixture": (("log_mel",), ("mean", "std")),
    "velocity_text": (("text", "mask"), ("keys_values", "mask_bias")),
    "velocity_mixture": (("mixture_latent",), ("mixture_features",)),
    "velocity_time": (("t",), ("time_features",)),
    "velocity": (("x", "mixture_features", "time_features", "keys_values", "mask_bias"), ("velocity",)),
    "decode_latent": (("latent",), ("log_mel",)),
    "vocode": (("log_mel",), ("waveform",)),
}

_VELOCITY_GRAPHS = ("velocity", "velocity_text", "velocity_mixture", "velocity_time")

#: The graphs of each stage method of `Pipeline`.
STAGES: Mapping[str, tuple[str, ...]] = {
    "log_mel": ("log_mel",),
    "encode_text": ("encode_text",),
    "encode_mixture": ("encode_mixture",),
    "velocity": _VELOCITY_GRAPHS,
    "solve": _VELOCITY_GRAPHS,
    "decode_latent": ("decode_latent",),
    "vocode": ("vocode",),
}


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """One file of the bundle; `name` has no folder in it."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """The entry of a file as it is on disk now."""
        return cls(path.name, path.stat().st_size, sha256_of(path))


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """A graph's input or output: `dtype` is numpy's name of it, a text in `shape` is a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class GraphEntry:
    """One graph; the first file is the `.onnx`, the others its external data."""

    files: tuple[FileEntry, ...]
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]


@dataclasses.dataclass(frozen=True)
class StageError:
    """A stage's error against the reference, measured at export: the relative L2 norm and the SNR in dB, on
    random input and (`real_*`) on a recording; None where it was not measured. `tolerance` bounds the
    relative error."""

    tolerance: float
    relative: float | None = None
    snr_db: float | None = None
    real_relative: float | None = None
    real_snr_db: float | None = None


@dataclasses.dataclass(frozen=True)
class StageEntry:
    """A stage: its graphs and their errors."""

    graphs: tuple[str, ...]
    error: StageError


@dataclasses.dataclass(frozen=True)
class TokenizerEntry:
    """`tokenizer.json` of the tokenizers library, and the id that fills up to `text_length`."""

    file: str
    sha256: str
    pad_id: int


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Origin of the bundle: the checkpoint's file name and SHA-256, package versions, UTC time in ISO
    8601."""

    checkpoint: str
    sha256: str
    versions: dict[str, str]
    created: str


@dataclasses.dataclass(frozen=True)
class RangeEntry:
    """The largest absolute activation that calibration met in a half-precision graph, where, and what was
    allowed."""

    largest: float
    tensor: str
    limit: float


@dataclasses.dataclass(frozen=True)
class ExpectedEntry:
    """Outputs of graphs at export on random input of a clip: float32 `[outputs, values]` in a `.npy` file, in
    the order of `inputs`, which has the SHA-256 of each graph's input."""

    file: FileEntry
    inputs: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`manifest.json`, read and checked.

    Attributes:
        variants: Backend -> graph -> its variant, equal to the graph of that name in exact arithmetic.
    """

    name: str
    precision: Literal["float32", "float16"]
    model: ModelEntry
    tokenizer: TokenizerEntry
    graphs: dict[str, GraphEntry]
    stages: dict[str, StageEntry]
    provenance: Provenance
    ranges: dict[str, RangeEntry] = dataclasses.field(default_factory=dict)
    variants: dict[str, dict[str, GraphEntry]] = dataclasses.field(default_factory=dict)
    expected: ExpectedEntry | None = None
    format: int = FORMAT

    def graph(self, name: str, backend: str) -> GraphEntry:
        """The entry of a graph for a backend: its variant, or the common graph."""
        return self.variants.get(backend, {}).get(name) or self.graphs[name]

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Manifest:
        """Reads a bundle's manifest and checks that every file it names is there and unchanged.

        Args:
            folder: The bundle.

        Raises:
            BundleError: If the folder is not a bundle, is of a newer format, misses a file or holds a changed
                one.
        """
        folder = Path(folder)
        manifest = cls.listed(folder)
        manifest._check_files(folder)
        return manifest

    @classmethod
    def listed(cls, folder: Path) -> Manifest:
        """Reads a manifest, and looks at no other file.

        Raises:
            BundleError: If the folder is not a bundle, or of a newer format.
        """
        content = read_json(folder)
        where = shown(folder / MANIFEST_NAME)
        version = content.get("format")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise BundleError(
                f"{where} is no FlowSep manifest (it has no format number): export the bundle again."
            )
        if version > FORMAT:
            raise BundleError(
                f"{where} was made by a newer flowsep (format {version}, this one reads up to {FORMAT}): "
                "upgrade flowsep-engine."
            )
        try:
            manifest = from_json(cls, content)
            manifest.check()
        except RecordError as error:
            raise BundleError(f"{where} is damaged ({error}): export the bundle again.") from None
        return manifest

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `manifest.json` into the folder, atomically; call it last, when every file it names is
        there.

        Returns:
            The path written.

        Raises:
            ValueError: If the manifest breaks the contract (a graph missing, an input misnamed).
        """
        self.check()
        path = Path(folder) / MANIFEST_NAME
        text = json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"
        write_whole(path, text.encode())
        return path

    def files(self) -> list[FileEntry]:
        """Every file of every graph and variant, each once, and of the expected outputs."""
        files = [file for _, graph in self._entries() for file in graph.files]
        if self.expected is not None:
            files.append(self.expected.file)
        return list({file.name: file for file in files}.values())

    def check(self) -> None:
        """Checks the manifest against the format, without reading other files.

        Raises:
            RecordError: If it breaks the contract (a `ValueError`).
        """
        self.model.check()
        if not 0 <= self.tokenizer.pad_id < 1 << 31:
            raise RecordError("tokenizer.pad_id must be a token")
        missing = [name for name in GRAPHS if name not in self.graphs]
        if missing:
            raise RecordError(f"graph {missing[0]} is missing")
        for name, graph in self._entries():
            if name not in GRAPHS:
                continue
            inputs, outputs = GRAPHS[name]
            if not graph.files:
                raise RecordError(f"graph {name} has no file")
            # Backends go by the ending too, and other formats name other files in other ways.
            if not graph.files[0].name.endswith(".onnx"):
                raise RecordError(f"graph {name} is in no .onnx file")
            for tensor in (*graph.inputs, *graph.outputs):
                self._check_tensor(name, tensor)
            for kind, tensors, wanted in (
                ("inputs", graph.inputs, inputs),
                ("outputs", graph.outputs, outputs),
            ):
                found = tuple(tensor.name for tensor in tensors)
                if found != wanted:
                    raise RecordError(
                        f"graph {name} has the {kind} {', '.join(found)} and not {', '.join(wanted)}"
                    )
        for name in () if self.expected is None else self.expected.inputs:
            if name not in GRAPHS:
                raise RecordError(f"expected names the unknown graph {name}")
        for stage, entry in self.stages.items():
            unknown = [name for name in entry.graphs if name not in self.graphs]
            if unknown:
                raise RecordError(f"stage {stage} names the unknown graph {unknown[0]}")
        entries = {file.name: file for file in self.files()}
        for _, graph in self._entries():
            for file in graph.files:
                if entries[file.name] != file:
                    raise RecordError(f"{file.name} has two checksums")
        for name in [self.tokenizer.file, *entries]:
            if not is_plain_name(name):
                raise RecordError(f"{name!r} is not a plain file name")

    def _check_tensor(self, graph: str, tensor: TensorEntry) -> None:
        model = self.model
        if tensor.dtype not in DTYPES:
            raise RecordError(f"{tensor.name} of graph {graph} is neither {' nor '.join(DTYPES)}")
        sizes = {"samples": model.clip_samples, "frames": model.clip_frames, "t": model.clip_frames}
        numbers = 1
        for axis in tensor.shape:
            size = axis if isinstance(axis, int) else sizes.get(axis, 1)
            if size < 1:
                raise RecordError(f"{tensor.name} of graph {graph} has an axis of {size}")
            numbers *= size
            if numbers > LARGEST_ARRAY:
                raise RecordError(f"{tensor.name} of graph {graph} is too large")

    def _entries(self) -> Iterator[tuple[str, GraphEntry]]:
        """Every graph and every variant, with the graph's name."""
        for graphs in (self.graphs, *self.variants.values()):
            yield from graphs.items()

    def _check_files(self, folder: Path) -> None:
        graphs = {graph.files[0].name for _, graph in self._entries()}
        expected: list[tuple[str, int | None, str]] = [
            *((file.name, file.bytes, file.sha256) for file in self.files()),
            (self.tokenizer.file, None, self.tokenizer.sha256),
        ]
        for name, size, _ in expected:
            with naming(folder / name):
                found = inspected(folder, name).st_size
                if size is not None and found != size:
                    raise RefusedFileError(f"was changed after the export ({found} bytes and not {size})")
                if size is None and found > LARGEST_TOKENIZER:
                    raise RefusedFileError("is too large for a tokenizer")
                if name in graphs and found > LARGEST_GRAPH:
                    raise RefusedFileError("is too large for a graph")

        def check_digest(file: tuple[str, int | None, str]) -> None:
            name, _, sha256 = file
            with naming(folder / name):
                if remembered_sha256(folder / name) != sha256:
                    raise RefusedFileError("was changed after the export (other checksum)")

        with ThreadPoolExecutor(min(4, usable_processors())) as pool:
            # After the first that is wrong, those that wait are not begun.
            list(pool.map(check_digest, expected))
        for _, graph in self._entries():
            first, *data = graph.files
            with naming(folder / first.name):
                check_graph(folder, first.name, first.sha256, [file.name for file in data])
