"""OpenVINO gives what the other backend gives, in the quickest arithmetic that is right on this machine."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from flowsep_runtime import BackendError, FlowSepWarning, Manifest, Pipeline
from flowsep_runtime.backends import BACKENDS, Precision, open_backend, report
from flowsep_runtime.backends.openvino import channels_last, settings
from flowsep_runtime.backends.openvino.accuracy import worst_snr_db
from flowsep_runtime.backends.openvino.backend import OpenVino
from flowsep_runtime.backends.openvino.settings import REWRITTEN_GRAPHS, REWRITTEN_ON
from flowsep_runtime.backends.samples import clip_shapes, sample_inputs
from flowsep_runtime.bundle.manifest import GRAPHS, FileEntry
from flowsep_runtime.separator import BUNDLED

pytest.importorskip("openvino")

needs_bf16 = pytest.mark.skipif(
    report("openvino").precisions["fast"] != "bf16", reason="this processor has no bf16"
)

needs_x86 = pytest.mark.skipif(
    platform.machine().lower() not in REWRITTEN_ON, reason="graphs are not rewritten here"
)


def inputs(manifest: Manifest, graph: str, batch: int = 1) -> dict[str, Any]:
    entry = manifest.graph(graph, "openvino")
    row = sample_inputs(entry, clip_shapes(entry, manifest.model))
    rolls = range(batch)  # so that every row is another
    return {
        name: np.concatenate([np.roll(array, roll, axis=-1) for roll in rolls]) for name, array in row.items()
    }


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_gives_the_other_backends_numbers(toy_bundle: Path, graph: str, batch: int) -> None:
    manifest = Manifest.read(toy_bundle)
    given = inputs(manifest, graph, batch)
    expected = open_backend("cpu", toy_bundle, manifest).run(graph, given)
    found = open_backend("openvino", toy_bundle, manifest).run(graph, given)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    assert worst_snr_db(expected, found) > 100


@pytest.mark.slow
def test_the_bundled_model_is_the_same_in_float32() -> None:
    """Real graphs: convolutions, attention and normalisation, on whose kernels the toy says nothing."""
    manifest = Manifest.read(BUNDLED)
    backends = [open_backend(name, BUNDLED, manifest, cache=False) for name in ("cpu", "openvino")]
    for graph in ("encode_text", "encode_mixture", "velocity_text", "velocity_time"):
        given = inputs(manifest, graph)
        expected, found = (backend.run(graph, given) for backend in backends)
        assert worst_snr_db(expected, found) > 90, graph


def test_rows_do_not_depend_on_their_neighbours(toy_bundle: Path) -> None:
    pipeline = Pipeline.load(toy_bundle, "openvino")
    latents = np.random.default_rng(0).standard_normal((3, 8, 16, 16)).astype(np.float32)
    together = pipeline.decode_latent(latents)
    assert np.array_equal(together[1:2], pipeline.decode_latent(latents[1:2]))


def test_any_length_is_accepted(toy_bundle: Path) -> None:
    pipelines = [Pipeline.load(toy_bundle, name) for name in ("openvino", "cpu")]
    for frames in (8, 16, 24, 8):
        latent = np.random.default_rng(frames).standard_normal((1, 8, frames, 16)).astype(np.float32)
        found, expected = (pipeline.decode_latent(latent) for pipeline in pipelines)
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(os.cpu_count() == 1, reason="one processor")
def test_threads_that_leave_processors_free_are_not_pinned_to_the_first_ones(toy_bundle: Path) -> None:
    """Several processes would share them."""
    manifest = Manifest.read(toy_bundle)
    backend = OpenVino(toy_bundle, manifest, False, 1, cache=False)
    backend.run("velocity_time", {"t": np.zeros(1, np.float32)})
    (request,) = backend.requests("velocity_time")
    assert request.get_compiled_model().get_property("ENABLE_CPU_PINNING") is False


def test_several_threads_get_their_own_results(toy_bundle: Path) -> None:
    pipeline = Pipeline.load(toy_bundle, "openvino", threads=1)
    latents = [np.random.default_rng(n).standard_normal((1, 8, 16, 16)).astype(np.float32) for n in range(4)]
    results: dict[int, list[Any]] = {n: [] for n in range(4)}

    def work(n: int) -> None:
        results[n] += [pipeline.decode_latent(latents[n]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        alone = pipeline.decode_latent(latents[n])
        assert len(results[n]) == 20 and all(np.array_equal(found, alone) for found in results[n])


def test_auto_takes_openvino_on_a_cpu_and_says_so(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(BACKENDS) == ["tensorrt", "cuda", "openvino", "cpu"]
    for module in ("tensorrt.backend", "onnxruntime.cuda"):
        monkeypatch.setattr(f"flowsep_runtime.backends.{module}.find_spec", lambda name: None)
    exact = Pipeline.load(toy_bundle, threads=2)
    assert (exact.backend.description, exact.precision) == ("openvino, float32, 2 threads", "exact")


def test_other_processors_run_the_graphs_as_they_are(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(channels_last, "rewrite", refusing)
    backend = open_backend("openvino", toy_bundle, Manifest.read(toy_bundle), cache=False)
    backend.load("decode_latent")
    assert backend.description.startswith("openvino, float32,")


#: Of the bundled model: images of fewer than 96 channels keep their 3×3 convolutions.
CONVOLUTIONS = {"encode_mixture": 12, "velocity": 34, "decode_latent": 16}


@pytest.mark.slow
@needs_x86
@pytest.mark.parametrize("graph", REWRITTEN_GRAPHS)
@pytest.mark.parametrize("part", [1, 4])
def test_the_bundled_graphs_are_rewritten_and_the_same(
    graph: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rewritten graphs at the length of a clip, and at that of a short window."""
    counts = []
    rewrite = channels_last.rewrite
    monkeypatch.setattr(channels_last, "rewrite", lambda *given: counts.append(rewrite(*given)))
    manifest = Manifest.read(BUNDLED)
    model = dataclasses.replace(manifest.model, clip_samples=manifest.model.clip_samples // part)
    entry = manifest.graph(graph, "openvino")
    given = sample_inputs(entry, clip_shapes(entry, model))
    backend = open_backend("openvino", BUNDLED, manifest, cache=False)
    found = backend.run(graph, given)
    assert backend.description.startswith("openvino, float32,")  # none of them as exported
    assert counts == [CONVOLUTIONS[graph]]
    assert worst_snr_db(open_backend("cpu", BUNDLED, manifest).run(graph, given), found) > 90


def as_noise(model: Any, quick: bool) -> int:
    """Instead of a rewrite, another graph."""
    for result in model.get_results():
        op = importlib.import_module("openvino.opset13")
        source = result.input_value(0)
        result.input(0).replace_source_output(op.multiply(source, np.float32(1.5)).output(0))
    return 0


def refusing(model: Any, quick: bool) -> int:
    raise RuntimeError("no such node")


def test_a_first_start_says_which_graph_of_all_is_prepared_and_a_second_one_nothing(
    toy_bundle: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flowsep_runtime")
    for _ in range(2):
        backend = open_backend("openvino", toy_bundle, Manifest.read(toy_bundle))
        for graph in ("log_mel", "velocity_text"):
            backend.load(graph)
            backend.free(graph)
    said = "preparing the model for this machine, once: "
    assert caplog.messages == [f"{said}log mel (1 of 9)", f"{said}velocity text (2 of 9)"]


@needs_x86
@pytest.mark.parametrize("rewrite", [as_noise, refusing])
@pytest.mark.parametrize("precision", ["exact", pytest.param("fast", marks=needs_bf16)])
def test_a_rewrite_that_goes_wrong_is_not_used(
    toy_bundle: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    rewrite: Callable[[Any, bool], int],
    precision: Precision,
) -> None:
    manifest = Manifest.read(toy_bundle)
    given = inputs(manifest, "decode_latent")
    expected = open_backend("openvino", toy_bundle, manifest, precision).run("decode_latent", given)
    monkeypatch.setattr(channels_last, "rewrite", rewrite)
    monkeypatch.setattr(settings, "REVISION", -1)
    backend = open_backend("openvino", toy_bundle, manifest, precision)
    word = "float32" if precision == "exact" else "bf16"
    with pytest.warns(FlowSepWarning, match=f"not right in {word} on .* runs in {word} as exported"):
        found = backend.run("decode_latent", given)
    assert worst_snr_db(expected, found) > (100 if precision == "exact" else 40)


@pytest.mark.slow
def test_graphs_that_come_and_go_on_several_threads_keep_their_numbers(own_cache: Path) -> None:
    """Compiled, read back, run and freed side by side; the cache is empty at first."""
    manifest = Manifest.read(BUNDLED)
    graphs = ("log_mel", "velocity_text", "velocity_time", "encode_mixture")
    backend = open_backend("openvino", BUNDLED, manifest, threads=1)
    calm = open_backend("openvino", BUNDLED, manifest, threads=1, cache=False)
    expected = {graph: calm.run(graph, inputs(manifest, graph)) for graph in graphs}
    wrong: list[str] = []

    def work(graph: str) -> None:
        given = inputs(manifest, graph)
        for _ in range(3):
            if worst_snr_db(expected[graph], backend.run(graph, given)) < 100:
                wrong.append(graph)
            backend.free(graph)

    threads = [threading.Thread(target=work, args=(graph,)) for graph in graphs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_graph_that_is_no_graph_is_one_sentence_and_nothing_else(
    own_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline = Pipeline.load(own_bundle, "openvino", cache=False)
    (own_bundle / "vocode.onnx").write_bytes(b"no onnx")
    with pytest.raises(BackendError, match=r"OpenVINO cannot load .*vocode.onnx: \S") as caught:
        pipeline.load_stage("vocode")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_graph_that_was_written_for_this_backend_is_the_one_that_runs(own_bundle: Path) -> None:
    manifest = Manifest.read(own_bundle)
    model = onnx.load(own_bundle / "vocode.onnx")
    model.graph.node[-1].op_type = "Sin"  # not Tanh: another answer shows which file ran
    onnx.save(model, own_bundle / "vocode.openvino.onnx")
    entry = dataclasses.replace(
        manifest.graphs["vocode"], files=(FileEntry.of(own_bundle / "vocode.openvino.onnx"),)
    )
    dataclasses.replace(manifest, variants={"openvino": {"vocode": entry}}).write(own_bundle)
    log_mel = np.random.default_rng(0).standard_normal((1, 64, 64)).astype(np.float32)
    own, common = (Pipeline.load(own_bundle, name).vocode(log_mel) for name in ("openvino", "cpu"))
    assert np.allclose(own, np.sin(np.arctanh(common.astype(float))), atol=1e-3)
