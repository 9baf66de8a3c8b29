"""The backend `cpu` runs the bundled model's variants for it, and no other backend does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flowsep_runtime.backends import open_backend
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.separator import BUNDLED

INPUTS = {"encode_mixture": ("log_mel", (2, 32, 64)), "decode_latent": ("latent", (2, 8, 8, 16))}


def difference(backend: str, graph: str) -> float:
    """Relative, between a graph's outputs from the bundled model and from one without variants."""
    name, shape = INPUTS[graph]
    inputs = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    manifest = Manifest.read(BUNDLED)
    own, common = (
        open_backend(backend, BUNDLED, each, "exact", cache=False).run(graph, inputs)
        for each in (manifest, replace(manifest, variants={}))
    )
    return max(float(np.linalg.norm(own[key] - common[key]) / np.linalg.norm(common[key])) for key in common)


@pytest.mark.parametrize("graph", INPUTS)
def test_the_backend_cpu_runs_its_own_graphs_which_give_the_same_numbers(graph: str) -> None:
    assert Manifest.read(BUNDLED).graph(graph, "cpu").files[0].name == f"{graph}.cpu.onnx"
    assert 0 < difference("cpu", graph) < 2e-6


@pytest.mark.parametrize("graph", INPUTS)
def test_openvino_runs_the_common_graphs(graph: str) -> None:
    pytest.importorskip("openvino")
    assert difference("openvino", graph) == 0
