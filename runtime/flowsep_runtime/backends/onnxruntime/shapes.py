"""The sizes of a graph's axes, and the shapes that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowsep_runtime.backends.device_graphs import DEVICE_GRAPHS, device_graph_path, device_graph_shape
from flowsep_runtime.bundle.manifest import Manifest


class GraphShapes:
    """Shapes of the graphs of a bundle as a backend has them, and of those between its stages
    (`device_graphs.py`)."""

    def __init__(self, manifest: Manifest, backend: str) -> None:
        self._manifest = manifest
        self._backend = backend

    def sizes(self, graph: str, shapes: Mapping[str, tuple[int, ...]], batch: int) -> dict[str, int]:
        """The size of every dynamic axis among the inputs of a graph that gets arrays of these shapes; an
        array of batch 1 may stand for any.

        Raises:
            ValueError: If two arrays differ in an axis.
        """
        sizes: dict[str, int] = {}
        for name, axes in self._entries(graph, inputs=True).items():
            for index, (axis, size) in enumerate(zip(axes, shapes[name], strict=True)):
                if not isinstance(axis, str):
                    continue
                size = batch if index == 0 and axis == "batch" else size
                if sizes.setdefault(axis, size) != size:
                    raise ValueError(f"{name} of graph {graph}: {axis} is {size} and not {sizes[axis]}")
        return sizes

    def inputs(self, graph: str, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The shapes of a graph's inputs."""
        return {name: _shape(axes, sizes) for name, axes in self._entries(graph, inputs=True).items()}

    def outputs(self, graph: str, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The shapes of a graph's outputs."""
        model = self._manifest.model
        if graph == "vocode":
            return {"waveform": (sizes["batch"], model.hop_length * sizes["frames"] + model.vocoder_tail)}
        known = dict(sizes)
        if "samples" in known:
            known["frames"] = known["samples"] // model.hop_length
        elif "frames" in known:
            known["t"] = known["frames"] // model.latent_stride
        elif "t" in known:
            known["frames"] = known["t"] * model.latent_stride
        return {name: _shape(axes, known) for name, axes in self._entries(graph, inputs=False).items()}

    def path(self, folder: Path, graph: str) -> Path:
        """The file of a graph."""
        if graph in DEVICE_GRAPHS:
            return device_graph_path(graph)
        return folder / self._manifest.graph(graph, self._backend).files[0].name

    def dtype(self, graph: str, output: str) -> np.dtype[Any]:
        """The dtype of an output of a graph."""
        if graph in DEVICE_GRAPHS:
            return np.dtype(np.float32)
        outputs = self._manifest.graph(graph, self._backend).outputs
        return np.dtype(next(tensor.dtype for tensor in outputs if tensor.name == output))

    def _entries(self, graph: str, inputs: bool) -> dict[str, tuple[int | str, ...]]:
        if graph in DEVICE_GRAPHS:
            names = DEVICE_GRAPHS[graph][0 if inputs else 1]
            return {name: device_graph_shape(name) for name in names}
        entry = self._manifest.graph(graph, self._backend)
        return {tensor.name: tensor.shape for tensor in (entry.inputs if inputs else entry.outputs)}


def _shape(axes: tuple[int | str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes)
