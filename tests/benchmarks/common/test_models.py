from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.common import contestants, models
from benchmarks.common.inputs import STAGE_INPUTS, make_inputs, read_inputs, write_inputs
from benchmarks.common.models import Model, choose, kept, size_of
from benchmarks.common.plain_graphs import export_plain
from benchmarks.common.processes import WorkerError, running, task_of
from benchmarks.common.runners import TorchRunner, open_runner, stepped
from benchmarks.common.standin import stand_in, write_stand_in
from flowsep_export.cli import command as export_command
from flowsep_ref import FlowSep, FlowSepConfig
from flowsep_runtime.arrays import snr_db
from flowsep_runtime.errors import OptionError
from flowsep_runtime.separator import BUNDLED

FRAMES = 32
EAGER = contestants.BASELINES["cpu"][0]


@pytest.fixture(scope="module")
def config(data: Path) -> FlowSepConfig:
    return FlowSepConfig.from_yaml(data / "configs" / "tiny.yaml")


@pytest.fixture(scope="module")
def weights(config: FlowSepConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    write_stand_in(config, folder)
    return folder


@pytest.fixture(scope="module")
def inputs(config: FlowSepConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "inputs.npz"
    return write_inputs(path, make_inputs(config, FRAMES, 1, 0))


@pytest.mark.slow
def test_the_stand_in_has_the_numbers_that_the_golden_outputs_were_computed_from(
    config: FlowSepConfig, tiny_checkpoint: Path
) -> None:
    ours = stand_in(config).state_dict()
    theirs = FlowSep.from_checkpoint(tiny_checkpoint, config).state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=1e-7)


def test_a_kept_folder_is_made_again_only_for_another_key(tmp_path: Path) -> None:
    calls: list[str] = []

    def make(folder: Path) -> None:
        calls.append(folder.name)
        (folder / "content").write_text(str(len(calls)))

    for key, expected in (("a", "1"), ("a", "1"), ("b", "2"), ("a", "3")):
        folder = kept(tmp_path / "thing", key, make)
        assert (folder / "content").read_text() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_model_without_a_bundle_is_exported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is one that flowsep-export takes; the export itself is tested with the exporter."""
    exports: list[dict[str, Any]] = []

    def run(words: list[str], what: str) -> None:
        assert (words[0], what) == ("flowsep_export.cli", "exporting the tiny model")
        exports.append(export_command.make_context("flowsep-export", words[1:]).params)

    monkeypatch.setattr(models, "_run", run)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.yaml").write_text("sizes")
    model = Model("tiny", tmp_path / "weights")
    found = [models.with_bundle(model, tmp_path).bundle for _ in range(2)]
    assert found == 2 * [tmp_path / "tiny" / "bundle"]
    half = models.with_half_bundle(model, tmp_path).half_bundle
    assert half == tmp_path / "tiny" / "bundle-fp16"
    assert [export["fp16"] for export in exports] == [False, True]
    assert {export["checkpoint"] for export in exports} == {str(tmp_path / "weights")}
    assert all(export["no_verify"] and export["force"] for export in exports)


def test_a_folder_whose_making_fails_is_not_there(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OptionError("no")

    with pytest.raises(OptionError):
        kept(tmp_path / "thing", "a", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_its_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give both"):
        choose("tiny", tmp_path, None, None, BUNDLED)
    with pytest.raises(OptionError, match="There is no"):
        choose("tiny", tmp_path, tmp_path / "nothing", None, None)


def test_the_bundled_model_needs_no_export(tmp_path: Path) -> None:
    model = choose("bundled", tmp_path, None, None, None)
    assert model.bundle == BUNDLED
    assert size_of(BUNDLED) == sum(file.stat().st_size for file in BUNDLED.iterdir())


@pytest.mark.slow
def test_plain_graphs_compute_what_the_reference_does(
    weights: Path, config: FlowSepConfig, inputs: Path, tmp_path: Path
) -> None:
    stages = ["encode_text"]
    export_plain(FlowSep.from_checkpoint(weights), tmp_path, FRAMES, stages=stages)
    model = Model("tiny", weights, plain=tmp_path)
    arrays = read_inputs(inputs)
    eager = open_runner(task_of(EAGER, model, 1, inputs))
    backends = [c for c in contestants.BASELINES["cpu"] if c.kind == "plain" and find_spec(c.backend)]
    assert backends
    for contestant in backends:
        plain = open_runner(task_of(contestant, model, 1, inputs))
        for stage in stages:
            arguments = [arrays[name] for name in STAGE_INPUTS[stage]]
            least = 30 if contestant.precision == "bf16" else 100
            assert snr_db(eager.call(stage, arguments), plain.call(stage, arguments)) > least
            assert set(plain.timed(stage, arguments)) == {stage}


@pytest.mark.slow
def test_the_host_loop_equals_the_references_solver(
    weights: Path, config: FlowSepConfig, inputs: Path
) -> None:
    model = FlowSep.from_checkpoint(weights)
    task = task_of(EAGER, Model("tiny", weights), 1, inputs)
    arrays = make_inputs(config, FRAMES, 2, 0)
    condition = [arrays["mixture_latent"], arrays["text"], arrays["attention_mask"]]
    eager = TorchRunner(task)
    given = [eager.put(array) for array in (arrays["noise"], *condition)]
    found = eager.get(stepped(eager, given[0], given[1:], 3, "euler"))
    with torch.inference_mode():
        noise, mixture, text, mask = (torch.from_numpy(a) for a in (arrays["noise"], *condition))
        wanted = model.solve(noise, mixture, text, mask, 3).numpy()
    assert snr_db([wanted], [found]) > 100
    waveform = eager.clip(arrays, 1, "euler")
    assert waveform.shape == (2, 160 * FRAMES + 32) and np.isfinite(waveform).all()


@pytest.mark.slow
def test_a_worker_that_fails_or_dies_says_so_in_a_sentence(
    weights: Path, inputs: Path, tmp_path: Path
) -> None:
    task = task_of(EAGER, Model("tiny", tmp_path / "nothing"), 1, inputs)
    with running("eager", task, tmp_path) as process:
        with pytest.raises(WorkerError, match="eager failed: CheckpointError"):
            process.ask("clip", steps=1, solver="euler")
        process._process.kill()
        with pytest.raises(WorkerError, match="killed by signal 9"):
            process.ask("clip", steps=1, solver="euler")


def test_the_reference_always_takes_part() -> None:
    taking_part, left_out = contestants.chosen("cpu")
    assert [contestant.name for contestant in taking_part] == ["eager", "cpu"]
    assert left_out == []
    names = [contestant.name for contestant in contestants.chosen(None)[0]]
    assert names[0] == "eager" and "cpu" in names and len(set(names)) == len(names)


def test_an_unknown_contestant_is_refused() -> None:
    with pytest.raises(OptionError, match="no contestant 'nobody' on a CPU: choose from eager"):
        contestants.chosen("eager,nobody")
