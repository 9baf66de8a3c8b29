"""OpenVINO gives what the other backend gives, in the quickest arithmetic that is right on this machine."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from flowsep_runtime import BackendError, FlowSepWarning, Manifest, Pipeline, Separator
from flowsep_runtime.backends import BACKENDS, Precision, open_backend, report
from flowsep_runtime.backends.openvino import backend as openvino
from flowsep_runtime.backends.openvino import channels_last
from flowsep_runtime.backends.openvino.accuracy import clip_shapes, sample_inputs, worst_snr_db
from flowsep_runtime.bundle.manifest import GRAPHS, FileEntry
from flowsep_runtime.separator import BUNDLED
from tests.runtime.toy_bundle import Builder, weights, write_toy_bundle

pytest.importorskip("openvino")

SOURCE = Path(__file__).parents[4] / "runtime"

needs_bf16 = pytest.mark.skipif(
    report("openvino").precisions["fast"] != "bf16", reason="this processor has no bf16"
)

needs_x86 = pytest.mark.skipif(
    platform.machine().lower() not in openvino.REWRITTEN_ON, reason="graphs are not rewritten here"
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


@needs_bf16
def test_auto_precision_is_fast_where_the_processor_has_bf16(toy_bundle: Path) -> None:
    pipeline = Pipeline.load(toy_bundle, precision="auto", threads=1)
    assert (pipeline.backend.description, pipeline.precision) == ("openvino, bf16, 1 thread", "fast")


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
@pytest.mark.parametrize("graph", openvino.REWRITTEN_GRAPHS)
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
    monkeypatch.setattr(channels_last, "REVISION", -1)
    backend = open_backend("openvino", toy_bundle, manifest, precision)
    word = "float32" if precision == "exact" else "bf16"
    with pytest.warns(FlowSepWarning, match=f"not right in {word} on .* runs in {word} as exported"):
        found = backend.run("decode_latent", given)
    assert worst_snr_db(expected, found) > (100 if precision == "exact" else 40)


@needs_bf16
def test_fast_arithmetic_is_another_and_close(toy_bundle: Path) -> None:
    manifest = Manifest.read(toy_bundle)
    for graph in ("velocity", "decode_latent"):
        given = inputs(manifest, graph)
        expected, found = (
            open_backend("openvino", toy_bundle, manifest, precision).run(graph, given)
            for precision in ("exact", "fast")
        )
        assert 25 < worst_snr_db(expected, found) < 80


@pytest.mark.slow
@needs_bf16
def test_the_bundled_velocity_is_right_in_bf16_with_fusion() -> None:
    """Its masked attention was not, while the mask was the second operand (docs/rewrites.md)."""
    manifest = Manifest.read(BUNDLED)
    given = inputs(manifest, "velocity")
    exact, fast = (
        open_backend("openvino", BUNDLED, manifest, precision, cache=False) for precision in ("exact", "fast")
    )
    assert worst_snr_db(exact.run("velocity", given), fast.run("velocity", given)) > 35
    assert "fusion" not in fast.description


WITHOUT_BF16 = """
import sys
from flowsep_runtime import Pipeline
from flowsep_runtime.backends import report
pipelines = [Pipeline.load(sys.argv[1], "openvino", precision, threads=1) for precision in ("fast", "auto")]
for pipeline in pipelines:
    pipeline.load_stage("decode_latent")
    print(pipeline.precision, pipeline.backend.description)
print(report("openvino").precisions["fast"])
"""


@pytest.mark.skipif(
    metadata.version("openvino") < "2026", reason="OpenVINO 2025 does not hear OV_CPU_MAX_ISA"
)
def test_without_bf16_in_the_processor_fast_is_float32(toy_bundle: Path) -> None:
    """The backend is told to use no more than AVX2, as if the processor had nothing newer."""
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_BF16, toy_bundle],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OV_CPU_MAX_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "fast openvino, float32, 1 thread",
        "exact openvino, float32, 1 thread",
        "float32",
    ]


def delicate(b: Builder) -> None:
    """`decode_latent` with a detour over numbers of a thousand, of which bfloat16 keeps two digits."""
    last = b.node("Transpose", ["latent"], "last", perm=[0, 2, 1, 3])
    quads = b.matmul(b.reshape(last, (0, 0, 128), "flat"), "to_mel", "quads")
    high = b.node("Add", [quads, b.constant("thousand", np.float32(1000))], "high")
    still_high = b.node("Abs", [high], "still_high")
    through = b.node("MatMul", [still_high, b.constant("identity", np.eye(256, dtype=np.float32))], "through")
    b.reshape(b.node("Sub", [through, "thousand"], "low"), (0, -1, 64), "log_mel")


def undefined(b: Builder) -> None:
    """`vocode` with the logarithm of a negative number."""
    flat = b.reshape(b.matmul("log_mel", "synthesis", "hops"), (0, -1), "flat")
    padded = b.node("Pad", [flat, b.constant("tail", np.array([0, 0, 0, 32]))], "padded")
    bounded = b.node("Tanh", [padded], "bounded")
    b.node("Log", [b.node("Sub", [bounded, b.constant("two", np.float32(2))], "negative")], "waveform")


def rounded(stored_as_half: bool) -> Callable[[Builder], None]:
    """`decode_latent` with weights that half precision holds, stored in it or in float32."""

    def nodes(b: Builder) -> None:
        last = b.node("Transpose", ["latent"], "last", perm=[0, 2, 1, 3])
        half = weights()["to_mel"].astype(np.float16)
        if stored_as_half:
            weight = b.node("Cast", [b.constant("half", half)], "to_mel", to=onnx.TensorProto.FLOAT)
        else:
            weight = b.constant("to_mel", half.astype(np.float32))
        quads = b.node("MatMul", [b.reshape(last, (0, 0, 128), "flat"), weight], "quads")
        b.reshape(quads, (0, -1, 64), "log_mel")

    return nodes


def test_weights_that_are_stored_in_half_precision_give_the_same_bits(tmp_path: Path) -> None:
    latent = np.random.default_rng(0).standard_normal((1, 8, 16, 16)).astype(np.float32)
    bundles = [
        write_toy_bundle(tmp_path / str(half), {"decode_latent": rounded(half)}) for half in (True, False)
    ]
    found, expected = (Pipeline.load(bundle, "openvino").decode_latent(latent) for bundle in bundles)
    assert np.array_equal(found, expected)


@pytest.mark.slow
@needs_bf16
def test_a_graph_that_bf16_breaks_falls_back_with_a_warning_and_is_known_next_time(
    tmp_path: Path, own_cache: Path
) -> None:
    bundle = write_toy_bundle(tmp_path / "delicate", {"decode_latent": delicate})
    manifest = Manifest.read(bundle)
    given = inputs(manifest, "decode_latent")
    expected = open_backend("cpu", bundle, manifest).run("decode_latent", given)

    backend = open_backend("openvino", bundle, manifest, "fast", threads=1)
    with pytest.warns(FlowSepWarning, match=r"Graph decode_latent is not right in bf16 .* runs in float32"):
        backend.load("decode_latent")
    assert backend.description == "openvino, bf16 (decode_latent float32), 1 thread"
    assert worst_snr_db(expected, backend.run("decode_latent", given)) > 60

    again = open_backend("openvino", bundle, manifest, "fast", threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load("decode_latent")
    assert again.description == backend.description
    memory = own_cache / "openvino.cache"
    whole = memory.read_text()
    for damage in ("{", "[]", whole.replace("float32", "float64")):
        memory.write_text(damage)
        with pytest.warns(FlowSepWarning) as caught:
            open_backend("openvino", bundle, manifest, "fast").load("decode_latent")
        damaged, fallen = (str(warning.message) for warning in caught)
        assert damaged == f"{memory} was damaged: what it held is made again."
        assert fallen.startswith("Graph decode_latent is not right in bf16")
        assert memory.read_text() == whole


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


def test_numbers_that_are_not_finite_even_in_float32_are_a_failure(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "undefined", {"vocode": undefined})
    with pytest.raises(BackendError, match="not finite in graph vocode"):
        Pipeline.load(bundle, "openvino", cache=False).load_stage("vocode")


@pytest.mark.slow
def test_damaged_compiled_graphs_are_compiled_again(toy_bundle: Path, own_cache: Path) -> None:
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 5000).astype(np.float32)
    first = Separator.load(toy_bundle, "openvino").separate(audio, 16000, "rain", steps=1)
    blobs = sorted((own_cache / "openvino").rglob("*.blob"))
    assert len(blobs) == len(GRAPHS) - 1  # the text encoder is not kept
    for number, blob in enumerate(blobs):
        content = bytearray(blob.read_bytes())
        match number % 4:
            case 0:
                del content[len(content) // 2 :]
            case 1:
                content[:] = b"nonsense" * 100
            case 2:
                content[:] = b""
            case 3:
                content[-100] ^= 1  # in the weights, where OpenVINO would not notice
        blob.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = Separator.load(toy_bundle, "openvino").separate(audio, 16000, "rain", steps=1)
    assert np.array_equal(again.target, first.target)
    said = [str(warning.message) for warning in caught]
    assert sorted(said) == [f"{blob} was damaged: what it held is made again." for blob in blobs]
    assert len(list((own_cache / "openvino").rglob("*.blob"))) == len(blobs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Separator.load(toy_bundle, "openvino").separate(audio, 16000, "rain", steps=1)


def test_wrong_bytes_anywhere_in_a_compiled_graph_are_noticed(own_cache: Path) -> None:
    """4 kB that are others, as a failing disk gives them, at ten places of a graph with real weights."""
    manifest = Manifest.read(BUNDLED)
    given = inputs(manifest, "velocity_text")
    expected = open_backend("openvino", BUNDLED, manifest).run("velocity_text", given)
    for place in np.linspace(0, 1, 10):
        (blob,) = (own_cache / "openvino").rglob("*.blob")
        content = np.frombuffer(blob.read_bytes(), np.uint8).copy()
        start = int(place * (len(content) - 4096))
        content[start : start + 4096] = 255 - content[start : start + 4096]
        blob.write_bytes(content.tobytes())
        with pytest.warns(FlowSepWarning, match="was damaged: what it held is made again"):
            found = open_backend("openvino", BUNDLED, manifest).run("velocity_text", given)
        assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_a_half_written_cache_file_of_openvino_is_not_read(toy_bundle: Path, own_cache: Path) -> None:
    """A process that is killed while OpenVINO writes its cache leaves OpenVINO's own file."""
    manifest = Manifest.read(toy_bundle)
    given = inputs(manifest, "vocode")
    expected = open_backend("openvino", toy_bundle, manifest).run("vocode", given)
    (blob,) = (own_cache / "openvino").rglob("*.blob")
    content = bytearray(blob.read_bytes())
    content[-100] ^= 1
    # by any name that OpenVINO could give it
    for name in ("1234567890.blob", f"compiled-{len(content)}.blob"):
        blob.with_name(name).write_bytes(content)
    blob.unlink()
    found = open_backend("openvino", toy_bundle, manifest).run("vocode", given)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_what_was_compiled_once_is_read_back_and_gives_the_same_bits(
    toy_bundle: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    manifest = Manifest.read(toy_bundle)
    graphs = [graph for graph in GRAPHS if graph not in openvino.NOT_CACHED]
    first, again = (open_backend("openvino", toy_bundle, manifest, precision) for _ in range(2))
    expected = {graph: first.run(graph, inputs(manifest, graph)) for graph in graphs}
    # One file a graph: the float32 that a trial measures bf16 by is not kept.
    assert len(list((own_cache / "openvino").rglob("*"))) == 2 * len(graphs)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(openvino, "_load", refuse)
    for graph in graphs:
        found = again.run(graph, inputs(manifest, graph))
        assert all(np.array_equal(found[name], array) for name, array in expected[graph].items())


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
