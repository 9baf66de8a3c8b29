"""A bundle appears whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from flowsep_export.bundle import new_bundle
from flowsep_export.errors import VerificationError
from flowsep_export.export import Source, export_bundle
from flowsep_export.verify import decibels, relative_error
from flowsep_runtime.backends import open_backend
from flowsep_runtime.backends.expected import expected_outputs, thinned
from flowsep_runtime.backends.samples import clip_shapes, sample_inputs
from flowsep_runtime.bundle.manifest import MANIFEST_NAME, Manifest
from flowsep_runtime.errors import OptionError


def write(folder: Path, content: str) -> None:
    (folder / MANIFEST_NAME).write_text(content)


def test_a_finished_bundle_leaves_no_temporary_file(tmp_path: Path) -> None:
    with new_bundle(tmp_path / "made" / "bundle") as folder:
        write(folder, "new")
        assert not (tmp_path / "made" / "bundle").exists()
    assert (tmp_path / "made" / "bundle" / MANIFEST_NAME).read_text() == "new"
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["bundle"]


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_bundle_leaves_nothing(tmp_path: Path, fault: type[BaseException]) -> None:
    with pytest.raises(fault), new_bundle(tmp_path / "made" / "too" / "bundle") as folder:
        write(folder, "half")
        raise fault
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    with new_bundle(place) as folder:
        write(folder, "old")
    with pytest.raises(OptionError, match=r"exists: give --force"), new_bundle(place):
        pytest.fail("the work must not start")
    with pytest.raises(RuntimeError), new_bundle(place, force=True) as folder:
        raise RuntimeError
    assert (place / MANIFEST_NAME).read_text() == "old"
    with new_bundle(place, force=True) as folder:
        write(folder, "new")
    assert (place / MANIFEST_NAME).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_no_bundle_is_not_replaced_even_by_force(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OptionError, match="no bundle"), new_bundle(tmp_path, force=True):
        pytest.fail("the work must not start")
    assert (tmp_path / "thesis.txt").exists()


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot be written"), new_bundle(tmp_path / "file" / "bundle"):
        pytest.fail("the work must not start")


@pytest.mark.usefixtures("graphs_from_the_tiny_bundle")
def test_an_export_beyond_tolerance_writes_nothing(source: Source, tmp_path: Path) -> None:
    with torch.no_grad():
        source.model.vae.decoder.conv_out.weight.mul_(1.001)
    with pytest.raises(VerificationError, match=r"decode_latent differs .* nothing was written") as caught:
        export_bundle(source, tmp_path / "bundle")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("graphs_from_the_tiny_bundle")
def test_an_export_within_tolerance_tells_its_errors(source: Source, tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    export_bundle(source, tmp_path / "bundle", progress=lambda doing, done: said.append((doing, done)))
    manifest = Manifest.read(tmp_path / "bundle")
    for stage in (
        "log_mel",
        "encode_text",
        "encode_mixture",
        "velocity",
        "solve",
        "decode_latent",
        "vocode",
        "chain",
    ):
        error = manifest.stages[stage].error
        assert error.relative is not None and error.snr_db is not None
        assert error.relative <= error.tolerance
        # a synthetic mixture is no recording
        assert error.real_relative is None
    assert [done for _, done in said] == sorted(done for _, done in said)
    assert said[-1] == ("done", 1.0)
    assert manifest.expected is not None
    backend = open_backend("cpu", tmp_path / "bundle", manifest)
    for graph in ("encode_mixture", "velocity", "decode_latent", "vocode"):
        given = sample_inputs(manifest.graphs[graph], clip_shapes(manifest.graphs[graph], manifest.model))
        expected = expected_outputs(tmp_path / "bundle", manifest, graph, given)
        found = thinned(backend.run(graph, given))
        assert expected is not None
        assert all(np.allclose(expected[name], values, atol=1e-5) for name, values in found.items())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(
    options: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    command = [
        sys.executable,
        "-m",
        "flowsep_export.cli",
        *options,
        "--no-verify",
        f"--output={tmp_path / 'b' / 'x'}",
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        while process.poll() is None and not list(tmp_path.glob("b/.x.*.writing/*.onnx")):
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], said.decode()
    assert b"Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_infinite_where_numbers_are_not_finite_or_shapes_differ() -> None:
    one = np.ones(3, np.float32)
    assert relative_error(one, one) == 0
    assert relative_error(1.01 * one, one) == pytest.approx(0.01)
    assert relative_error(np.array([1, np.nan, 1], np.float32), one) == np.inf
    assert relative_error(np.ones(1, np.float32), one) == np.inf
    assert relative_error(one, 0 * one) == np.inf
    # what is quieter than the threshold is held against it
    assert relative_error(1.01 * 1e-4 * one, 1e-4 * one, quietest=1e-2) == pytest.approx(1e-4)
    assert relative_error(1.01 * one, one, quietest=1e-2) == pytest.approx(0.01)
    assert decibels(1e-3) == pytest.approx(60)
    assert decibels(0) == 200
