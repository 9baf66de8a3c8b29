"""Expected outputs in a bundle: the first start compares with them, and compiles every graph once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowsep_runtime import BundleError, FlowSepWarning, Manifest
from flowsep_runtime.backends import open_backend
from flowsep_runtime.backends.expected import EXPECTED, VALUES, expected_outputs, thinned, write_expected
from flowsep_runtime.backends.openvino import backend as openvino
from flowsep_runtime.backends.samples import clip_shapes, sample_inputs
from flowsep_runtime.bundle.manifest import ExpectedEntry, FileEntry
from tests.runtime.backends.openvino.test_openvino import as_noise, needs_x86

LARGE = ("encode_mixture", "velocity", "decode_latent", "vocode")


@pytest.fixture
def knowing(own_bundle: Path) -> Path:
    """A bundle with the expected outputs of its large graphs."""
    manifest = Manifest.read(own_bundle)
    entry = write_expected(own_bundle, manifest, open_backend("cpu", own_bundle, manifest), LARGE)
    dataclasses.replace(manifest, expected=entry).write(own_bundle)
    return own_bundle


def inputs(manifest: Manifest, graph: str) -> dict[str, Any]:
    entry = manifest.graphs[graph]
    return sample_inputs(entry, clip_shapes(entry, manifest.model))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each compilation: whether the graph was rewritten."""
    found: list[bool] = []
    load = openvino._load

    def counting(plan: Any) -> Any:
        found.append(plan.setting.rewritten)
        return load(plan)

    monkeypatch.setattr(openvino, "_load", counting)
    return found


def test_thinned_outputs_take_from_every_place_of_every_axis() -> None:
    shape = (1, 64, 256, 16)
    places = np.arange(np.prod(shape)).reshape(shape)
    values = thinned({"x": places})["x"]
    assert len(values) == VALUES and np.count_nonzero(values) > VALUES // 2
    for axis, size in enumerate(shape):
        assert set(np.unravel_index(values, shape)[axis]) == set(range(size))
    few = thinned({"x": np.arange(5)})["x"]
    assert few[:5].tolist() == [0, 1, 2, 3, 4] and len(few) == VALUES and not few[5:].any()


@pytest.mark.parametrize("graph", LARGE)
def test_the_outputs_are_those_of_the_inputs_that_they_were_computed_from(knowing: Path, graph: str) -> None:
    manifest = Manifest.read(knowing)
    given = inputs(manifest, graph)
    found = expected_outputs(knowing, manifest, graph, given)
    outputs = thinned(open_backend("cpu", knowing, manifest).run(graph, given))
    assert found is not None and list(found) == list(outputs)
    for name, values in outputs.items():
        assert np.array_equal(found[name], values)
    assert expected_outputs(knowing, manifest, "log_mel", inputs(manifest, "log_mel")) is None
    first = next(iter(given))
    assert expected_outputs(knowing, manifest, graph, given | {first: given[first] + 1}) is None


@needs_x86
def test_a_rewritten_graph_is_compiled_once(knowing: Path, own_cache: Path, compiled: list[bool]) -> None:
    manifest = Manifest.read(knowing)
    backend = open_backend("openvino", knowing, manifest)
    backend.load("decode_latent")
    assert compiled == [True]
    assert backend.description.startswith("openvino, float32,")


@needs_x86
def test_a_rewrite_that_goes_wrong_is_noticed(
    knowing: Path, own_cache: Path, compiled: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowsep_runtime.backends.openvino.channels_last.rewrite", as_noise)
    with pytest.warns(FlowSepWarning, match=r"decode_latent is not right in float32 .* as exported"):
        open_backend("openvino", knowing, Manifest.read(knowing)).load("decode_latent")
    assert compiled == [True, False]


def test_a_changed_file_or_a_graph_that_is_not_there_is_refused(knowing: Path) -> None:
    manifest = Manifest.read(knowing)
    assert manifest.expected is not None
    with pytest.raises(ValueError, match="expected names the unknown graph sing"):
        dataclasses.replace(
            manifest, expected=ExpectedEntry(manifest.expected.file, {"sing": "0" * 64})
        ).check()
    (knowing / EXPECTED).write_bytes(bytes(manifest.expected.file.bytes))
    with pytest.raises(BundleError, match=r"expected\.npy was changed after the export"):
        Manifest.read(knowing)


def test_numbers_of_another_shape_are_not_used(knowing: Path) -> None:
    manifest = Manifest.read(knowing)
    assert manifest.expected is not None
    np.save(knowing / EXPECTED, np.zeros((2, 3), np.float32))
    changed = dataclasses.replace(
        manifest, expected=ExpectedEntry(FileEntry.of(knowing / EXPECTED), manifest.expected.inputs)
    )
    assert expected_outputs(knowing, changed, "vocode", inputs(manifest, "vocode")) is None
