"""Outputs of a bundle's large graphs on random input, computed once at export.

A backend that rewrites graphs or computes them in another arithmetic tests them before it uses them. With
these outputs it need not compile and run the graph as exported, to have something to compare with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsep_runtime.arrays import Array
from flowsep_runtime.backends.samples import clip_shapes, sample_inputs
from flowsep_runtime.bundle.manifest import GRAPHS, ExpectedEntry, FileEntry, Manifest

if TYPE_CHECKING:
    from flowsep_runtime.backends import Backend

EXPECTED = "expected.npy"
#: Numbers kept of each output.
VALUES = 8192


def thinned(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Up to `VALUES` numbers of each output, evenly over the array, and zeros: `[VALUES]`."""
    found = {}
    for name, array in outputs.items():
        # an odd distance, for the axes' lengths are even: each place of an axis has its turn
        values = array.reshape(-1)[:: -(-array.size // VALUES) | 1]
        found[name] = np.pad(values, (0, VALUES - values.size))
    return found


def write_expected(
    folder: Path, manifest: Manifest, backend: Backend, graphs: tuple[str, ...]
) -> ExpectedEntry:
    """Runs graphs on a backend in float32 and writes their outputs beside them.

    Args:
        folder: The bundle.
        manifest: Its manifest, which need not be written yet.
        backend: The bundle, opened.
        graphs: Names of the graphs.
    """
    rows, digests = [], {}
    for graph in graphs:
        entry = manifest.graphs[graph]
        inputs = sample_inputs(entry, clip_shapes(entry, manifest.model))
        outputs = thinned(backend.run(graph, inputs))
        backend.free(graph)
        digests[graph] = _digest(inputs)
        rows += [outputs[name] for name in GRAPHS[graph][1]]
    np.save(folder / EXPECTED, np.stack(rows).astype(np.float32))
    return ExpectedEntry(FileEntry.of(folder / EXPECTED), digests)


def expected_outputs(
    folder: Path, manifest: Manifest, graph: str, inputs: Mapping[str, Array]
) -> dict[str, Array] | None:
    """The outputs at export, thinned; None if the bundle has none for these inputs.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        graph: Name of the graph.
        inputs: What it is about to be run on.
    """
    entry = manifest.expected
    if entry is None or entry.inputs.get(graph) != _digest(inputs):
        return None
    before = 0
    for name in entry.inputs:
        if name == graph:
            break
        before += len(GRAPHS[name][1])
    rows = np.load(folder / entry.file.name, mmap_mode="r", allow_pickle=False)
    if rows.shape != (sum(len(GRAPHS[name][1]) for name in entry.inputs), VALUES):
        return None
    return {name: np.array(rows[before + row]) for row, name in enumerate(GRAPHS[graph][1])}


def _digest(inputs: Mapping[str, Array]) -> str:
    found = hashlib.sha256()
    for name, array in inputs.items():
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.hexdigest()
