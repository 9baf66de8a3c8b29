"""The whole export: trace, convert, verify, write."""

from __future__ import annotations

import gc
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tokenizers import Tokenizer

from flowsep_export import verify
from flowsep_export.bundle import new_bundle
from flowsep_export.errors import ExportError
from flowsep_export.graphs import VARIANTS, Graph, TensorSpec, graphs, vocoder_tail
from flowsep_export.onnx import convert as onnx_export
from flowsep_export.onnx.cpu_variant import write_for_cpu
from flowsep_export.onnx.cuda_variant import pad_as_before, rewrite_for_cuda
from flowsep_export.onnx.loop_parts import named_axes, split_loop
from flowsep_export.precision import halve, mixed_nodes
from flowsep_export.ranges import LIMIT, graph_inputs, largest_activation
from flowsep_export.stage_inputs import LONG_FRAMES, QUERY, SHORT_FRAMES, random_inputs, recorded_inputs
from flowsep_export.tokenizer import FILE, pad_id
from flowsep_ref import FlowSep
from flowsep_runtime import __version__
from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends import open_backend
from flowsep_runtime.backends.expected import write_expected
from flowsep_runtime.backends.loop_parts import CONSTANTS, STEP
from flowsep_runtime.bundle.checksums import sha256_of
from flowsep_runtime.bundle.manifest import (
    FileEntry,
    GraphEntry,
    Manifest,
    ModelEntry,
    Provenance,
    RangeEntry,
    TensorEntry,
    TokenizerEntry,
)
from flowsep_runtime.versions import installed

#: Graphs that backends rewrite or compute in another arithmetic: these are the ones to test.
LARGE_GRAPHS = ("encode_mixture", "velocity", "decode_latent", "vocode")

#: Called with the current task and the completed share in [0, 1].
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Source:
    """A model and everything else that its bundle needs.

    `recording [S]` (mono, at the model's rate) is the input of calibration and verification besides random
    numbers; `is_real` is false for a synthetic one.
    """

    model: FlowSep
    name: str
    checkpoint: Path
    sha256: str
    tokenizer: Tokenizer
    recording: Floats
    is_real: bool


def export_bundle(
    source: Source,
    destination: Path,
    *,
    half: bool = False,
    verified: bool = True,
    force: bool = False,
    range_limit: float = LIMIT,
    defaults: Mapping[str, Any] | None = None,
    progress: Progress = lambda doing, done: None,
) -> Manifest:
    """Write a bundle.

    Args:
        source: what to export.
        destination: the folder to make.
        half: half precision, with float32 islands (see `precision`).
        verified: measure every stage against the reference, and write nothing beyond tolerance.
        force: replace a bundle that is there.
        range_limit: the largest half-precision activation allowed on calibration input.
        defaults: fields of `ModelEntry` that say what the runtime does where it is told nothing else, such
            as `default_steps` and `default_kind`.
        progress: called before each piece of work.

    Raises:
        OptionError: the destination is taken or cannot be written.
        ExportError: beyond tolerance or range.
    """
    precision: verify.Precision = "float16" if half else "float32"
    with new_bundle(destination, force) as folder:
        cases = _cases(source) if half or verified else []
        model = halve(source.model) if half else source.model
        exported, ranges = _write_graphs(source.model, model, folder, range_limit, cases, progress)
        variants = _write_variants(model, folder, exported)
        source.tokenizer.save(str(folder / FILE))
        manifest = Manifest(
            name=source.name,
            precision=precision,
            model=_model_entry(source.model, defaults or {}),
            tokenizer=TokenizerEntry(FILE, sha256_of(folder / FILE), pad_id(source.tokenizer)),
            graphs=exported,
            stages=verify.unverified(precision),
            provenance=Provenance(
                checkpoint=source.checkpoint.name,
                sha256=source.sha256,
                versions=_versions(),
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            ),
            ranges=ranges,
            variants=variants,
        )
        if verified:
            names = list(verify.checks())

            def verifying(stage: str) -> None:
                progress(f"verifying {stage}", 0.6 + 0.4 * names.index(stage) / len(names))

            stages = verify.verify(source.model, folder, manifest, cases, verifying)
            verify.require_tolerance(stages)
            progress("computing expected outputs", 1.0)
            plain = replace(manifest, variants={})
            expected = write_expected(folder, plain, open_backend("cpu", folder, plain), LARGE_GRAPHS)
            manifest = replace(manifest, stages=stages, expected=expected)
        manifest.write(folder)
    progress("done", 1.0)
    return manifest


def _write_graphs(
    reference: FlowSep,
    model: FlowSep,
    folder: Path,
    range_limit: float,
    cases: Sequence[verify.Case],
    progress: Progress,
) -> tuple[dict[str, GraphEntry], dict[str, RangeEntry]]:
    half = model is not reference
    exact = graphs(reference)
    table = graphs(model) if half else exact
    entries, ranges = {}, {}
    for index, graph in enumerate(table.values()):
        progress(f"tracing {graph.name}", 0.6 * index / len(table))
        program = onnx_export.trace(graph)
        if half:
            inputs = list(graph_inputs(graph.name, exact, reference, [case.inputs for case in cases]))
            largest = largest_activation(graph.name, program, inputs, range_limit)
            if largest is not None:
                ranges[graph.name] = largest
        progress(f"converting {graph.name}", 0.6 * (index + 0.4) / len(table))
        entries[graph.name] = _write_graph(graph, program, folder)
        # the largest graph's weights are 1.8 GB: free them now
        del program
        gc.collect()
    return entries, ranges


def _write_variants(
    model: FlowSep, folder: Path, exported: dict[str, GraphEntry]
) -> dict[str, dict[str, GraphEntry]]:
    """Write the backends' variants; large weights are shared with the common graphs."""
    variants = {}
    for backend, names in VARIANTS.items():
        table = graphs(model, backend)
        entries = {}
        for name in names:
            program = onnx_export.trace(table[name])
            entry = _write_graph(table[name], program, folder, f"{name}.{backend}.onnx")
            shared = onnx_export.share_weights(folder, entry.files, exported[name].files)
            entries[name] = replace(entry, files=shared)
        variants[backend] = entries
    if any(weight.dtype == torch.float16 for weight in model.unet.parameters()):  # the first stay float32
        variants["cuda"] = _cuda_loop(folder, exported["velocity"])
    variants["cpu"] = write_for_cpu(folder, exported)
    return variants


def _cuda_loop(folder: Path, entry: GraphEntry) -> dict[str, GraphEntry]:
    """The velocity graph, whole and in the two parts of the solver's loop."""
    velocity = onnx.load(folder / entry.files[0].name, load_external_data=False)
    rewrite_for_cuda(velocity, folder)
    own = folder / "velocity.cuda.onnx.data"
    onnx.save(
        velocity,
        folder / "velocity.cuda.onnx",
        save_as_external_data=True,
        location=own.name,
        size_threshold=onnx_export.EMBED_TENSOR,
    )
    if own.exists():
        shutil.copymode(folder / "velocity.cuda.onnx", own)  # onnx gives it to its owner alone
    data = (*entry.files[1:], *([FileEntry.of(own)] if own.exists() else []))
    entries = {"velocity": replace(entry, files=(FileEntry.of(folder / "velocity.cuda.onnx"), *data))}
    velocity = onnx.load(folder / "velocity.cuda.onnx", load_external_data=False)
    for name, part in zip((CONSTANTS, STEP), split_loop(velocity), strict=True):
        path = folder / f"{name}.cuda.onnx"
        onnx.save(part, path)
        inputs, outputs = (
            tuple(TensorEntry(*named_axes(value)) for value in values)
            for values in (part.graph.input, part.graph.output)
        )
        entries[name] = GraphEntry((FileEntry.of(path), *data), inputs, outputs)
    return entries


def _write_graph(
    graph: Graph, program: torch.export.ExportedProgram, folder: Path, file: str | None = None
) -> GraphEntry:
    files = onnx_export.save(onnx_export.to_onnx(graph, program), folder / (file or f"{graph.name}.onnx"))
    mixed = mixed_nodes(files[0])
    if mixed:
        raise ExportError(
            f"Graph {graph.name} is not strongly typed ({mixed[0]}): this is a fault of flowsep-export."
        )
    if graph.name == "log_mel":
        log_mel = onnx.load(files[0])
        pad_as_before(log_mel)
        onnx.save(log_mel, files[0])
    return GraphEntry(
        files=tuple(FileEntry.of(path) for path in files),
        inputs=tuple(_tensor_entry(spec) for spec in graph.inputs),
        outputs=tuple(_tensor_entry(spec) for spec in graph.outputs),
    )


def _tensor_entry(spec: TensorSpec) -> TensorEntry:
    return TensorEntry(spec.name, str(spec.dtype).removeprefix("torch."), spec.shape)


def _model_entry(model: FlowSep, defaults: Mapping[str, Any]) -> ModelEntry:
    config = model.config
    return ModelEntry(
        text_width=config.text.d_model,
        sample_rate=config.audio.sampling_rate,
        hop_length=config.audio.hop_length,
        clip_samples=config.clip_samples,
        mel_bins=config.audio.n_mel_channels,
        latent_channels=config.latent_channels,
        latent_frequencies=config.latent_frequencies,
        latent_stride=config.latent_stride,
        frame_multiple=config.frame_multiple,
        text_length=config.text.max_length,
        vocoder_tail=vocoder_tail(config),
        **defaults,
    )


def _cases(source: Source) -> list[verify.Case]:
    config = source.model.config
    multiple = config.frame_multiple
    short, long = (
        min(frames, config.clip_frames) // multiple * multiple for frames in (SHORT_FRAMES, LONG_FRAMES)
    )
    ids, mask = _tokens(source.tokenizer, config.text.max_length)
    cases = [
        verify.Case("random", random_inputs(config, short, batch=2, seed=1)),
        verify.Case("random", random_inputs(config, long, batch=1, seed=2)),
    ]
    for seed, frames in ((3, short), (4, long)):
        inputs = recorded_inputs(source.model, source.recording, ids, mask, frames, seed)
        cases.append(verify.Case("recording" if source.is_real else "random", inputs))
    return cases


def _tokens(tokenizer: Tokenizer, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = tokenizer.encode(QUERY).ids[:length]
    ids = np.full((1, length), pad_id(tokenizer), np.int64)
    ids[0, : len(encoded)] = encoded
    mask = np.zeros((1, length), np.int64)
    mask[0, : len(encoded)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _versions() -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")
    return {"flowsep": __version__, "python": platform.python_version()} | installed(packages)
