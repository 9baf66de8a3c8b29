from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from filelock import FileLock

from flowsep_export import export
from flowsep_export.cli import PROGRAM, command, main
from flowsep_export.export import Source
from flowsep_export.stage_inputs import SHORT_FRAMES, synthetic_mixture
from flowsep_export.tokenizer import load_tokenizer
from flowsep_ref import FlowSep


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests that need a whole export are slow."""
    if {"tiny_bundle", "tiny_half_bundle"} & set(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.slow)


def run_export(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the console script."""
    monkeypatch.setattr("sys.argv", [PROGRAM, *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@dataclass(frozen=True)
class Exported:
    """A bundle of the tiny model, and what the command line said of it."""

    folder: Path
    answer: dict[str, Any]


@pytest.fixture(scope="session")
def tiny_config(data: Path) -> Path:
    return data / "configs" / "tiny.yaml"


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path, tiny_config: Path) -> FlowSep:
    return FlowSep.from_checkpoint(tiny_checkpoint, tiny_config)


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of stereo at 22 050 Hz."""
    path = tmp_path_factory.mktemp("recording") / "mix.wav"
    rng = np.random.default_rng(5)
    time = np.arange(44100)[:, None] / 22050
    samples = 0.3 * np.sin(2 * np.pi * (300 + 200 * time) * time) + 0.05 * rng.standard_normal((44100, 2))
    soundfile.write(path, samples, 22050)
    return path


@pytest.fixture(scope="session")
def options(tiny_checkpoint: Path, tiny_config: Path, data: Path, recording: Path) -> list[str]:
    """Command-line options that export the tiny model without a network."""
    return [
        f"--checkpoint={tiny_checkpoint}",
        f"--config={tiny_config}",
        f"--tokenizer={data / 'tokenizer.json'}",
        f"--recording={recording}",
    ]


def _export(folder: Path, *options: str) -> Exported:
    with pytest.MonkeyPatch.context() as patch:
        # the golden tests run whole clips: verifying on short ones saves half of the suite's time
        patch.setattr(export, "LONG_FRAMES", SHORT_FRAMES)
        result = CliRunner().invoke(
            command, [*options, "--json", f"--output={folder}"], catch_exceptions=False
        )
    assert result.exit_code == 0, result.output
    return Exported(folder, json.loads(result.stdout))


def _exported_once(factory: pytest.TempPathFactory, name: str, *options: str) -> Exported:
    """A bundle that the first process that wants it makes, for all of a run: an export takes a minute."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    answer = root / f"{name}.json"
    with FileLock(root / f"{name}.lock"):
        if not answer.exists():
            made = _export(root / name, *options)
            answer.write_text(json.dumps(made.answer))
    return Exported(root / name, json.loads(answer.read_text()))


@pytest.fixture(scope="session")
def tiny_bundle(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The tiny model in float32; must not be changed."""
    return _exported_once(tmp_path_factory, "tiny", *options)


@pytest.fixture(scope="session")
def tiny_half_bundle(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The tiny model in half precision; must not be changed."""
    return _exported_once(tmp_path_factory, "tiny-fp16", *options, "--fp16")


@pytest.fixture
def source(tiny_checkpoint: Path, tiny_config: Path, data: Path) -> Source:
    """The tiny model to export; the test's own copy of the weights."""
    model = FlowSep.from_checkpoint(tiny_checkpoint, tiny_config)
    return Source(
        model=model,
        name="tiny",
        checkpoint=tiny_checkpoint,
        sha256="0" * 64,
        tokenizer=load_tokenizer(data / "tokenizer.json", model.config.text),
        recording=synthetic_mixture(model.config)[:40960],
        is_real=False,
    )


@pytest.fixture
def graphs_from_the_tiny_bundle(tiny_bundle: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the tiny bundle's own graphs instead of tracing them again for a minute."""
    from flowsep_runtime.bundle.manifest import Manifest

    manifest = Manifest.read(tiny_bundle.folder)

    def copied(reference: FlowSep, model: FlowSep, folder: Path, *rest: object) -> tuple[object, object]:
        for file in manifest.files():
            shutil.copy(tiny_bundle.folder / file.name, folder)
        return manifest.graphs, {}

    monkeypatch.setattr(export, "_write_graphs", copied)
    monkeypatch.setattr(export, "_write_variants", lambda *arguments: manifest.variants)
    monkeypatch.setattr(export, "LONG_FRAMES", SHORT_FRAMES)
