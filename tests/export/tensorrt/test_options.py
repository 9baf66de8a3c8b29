"""`flowsep-export --tensorrt` with a real model, on the double of TensorRT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowsep_export.cli import command
from flowsep_export.tensorrt.options import EngineRequest
from flowsep_export.verify import checks
from flowsep_ref import FlowSep
from flowsep_runtime.backends.axes import Range
from tests.export.conftest import Exported
from tests.gpu.doubles import VERSIONS, installed

ONE, SHORT = Range(1, 1, 1), Range(32, 32, 32)


def test_engines_are_judged_by_the_model_they_came_from(
    tiny_bundle: Exported, tiny_model: FlowSep, recording: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    with installed(VERSIONS[-1]) as machine:
        answer = EngineRequest(ONE, SHORT, 3, None, recording, True).build(bundle, tiny_model)
        assert machine.faults() == []
    assert set(answer.engines.stages) == set(checks())
    for stage, entry in answer.engines.stages.items():
        assert 0 < (entry.error.relative or 0) <= entry.error.tolerance, stage
        assert 0 < (entry.error.real_relative or 0) <= entry.error.tolerance, stage


@pytest.mark.usefixtures("graphs_from_the_tiny_bundle")
def test_an_export_and_its_engines_are_one_command(options: list[str], tmp_path: Path) -> None:
    arguments = [*options, "--no-verify", "--tensorrt", "--frames=32", f"--output={tmp_path / 'b'}", "--json"]
    with installed(VERSIONS[0]) as machine:
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert machine.faults() == []
    answer = json.loads(result.stdout)
    folder = Path(answer["engines"]["folder"])
    assert folder.parent.parent == tmp_path / "b"
    assert len(list(folder.glob("*.plan"))) == len(answer["engines"]["engines"]) == 12
    assert answer["engines"]["stages"] == {}
