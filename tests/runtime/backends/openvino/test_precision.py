"""Precision: exact and fast arithmetic, and what happens where fast is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest

from flowsep_runtime import BackendError, FlowSepWarning, Manifest, Pipeline
from flowsep_runtime.backends import Arithmetic, open_backend
from flowsep_runtime.backends.openvino.accuracy import worst_snr_db
from flowsep_runtime.separator import BUNDLED
from tests.runtime.backends.openvino.test_openvino import inputs, needs_bf16
from tests.runtime.toy_bundle import Builder, weights, write_toy_bundle

SOURCE = Path(__file__).parents[4] / "runtime"

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


@needs_bf16
def test_auto_precision_is_fast_where_the_processor_has_bf16(toy_bundle: Path) -> None:
    pipeline = Pipeline.load(toy_bundle, precision="auto", threads=1)
    assert (pipeline.backend.description, pipeline.precision) == ("openvino, bf16, 1 thread", "fast")


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


@needs_bf16
@pytest.mark.skipif(metadata.version("openvino") < "2026", reason="OpenVINO 2025 ends the process over it")
def test_a_text_encoder_is_computed_in_bf16_only_if_the_export_allows_it(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", {"encode_text": layered})
    manifest = Manifest.read(bundle)
    allowing = replace(manifest, model=replace(manifest.model, quick_text=True))
    given = inputs(manifest, "encode_text")
    cases: list[tuple[Manifest, Arithmetic]] = [(allowing, "exact"), (manifest, "fast"), (allowing, "fast")]
    exact, usual, quick = (
        open_backend("openvino", bundle, found, precision, cache=False).run("encode_text", given)
        for found, precision in cases
    )
    assert worst_snr_db(exact, usual) == np.inf
    assert 25 < worst_snr_db(exact, quick) < 80


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


def layered(b: Builder) -> None:
    """`encode_text` with a linear layer."""
    words = b.node("Gather", [b.weight("embedding"), "input_ids"], "words")
    width = weights()["embedding"].shape[1]
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    mask = b.node("Cast", ["attention_mask"], "float_mask", to=onnx.TensorProto.FLOAT)
    column = b.node("Unsqueeze", [mask, b.constant("last", np.array([2]))], "column")
    heard = b.node("Mul", [words, column], "heard")
    b.node("MatMul", [heard, b.constant("layer", weight)], "text")


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


def test_numbers_that_are_not_finite_even_in_float32_are_a_failure(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "undefined", {"vocode": undefined})
    with pytest.raises(BackendError, match="not finite in graph vocode"):
        Pipeline.load(bundle, "openvino", cache=False).load_stage("vocode")
