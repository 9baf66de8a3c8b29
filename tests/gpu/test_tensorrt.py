"""The `tensorrt` backend on the strict double: numbers, order, captures, fall-backs, nothing left behind."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowsep_runtime import BackendError, FlowSepWarning, Pipeline, Separator
from flowsep_runtime.backends import DeviceBackend, SolverLoop
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.device_graphs import DEVICE_GRAPHS
from flowsep_runtime.backends.loop_parts import CONSTANTS, STEP
from flowsep_runtime.backends.tensorrt import loop
from flowsep_runtime.backends.tensorrt.backend import TensorRt
from flowsep_runtime.backends.tensorrt.cuda_device import _close
from flowsep_runtime.bundle.manifest import GRAPHS, STAGES
from flowsep_runtime.solvers import SOLVERS
from tests.gpu.conftest import assert_clips_are_equal, clip, normal
from tests.gpu.doubles import Machine
from tests.runtime.toy_bundle import MODEL

PARTS = dict.fromkeys((CONSTANTS, STEP), "velocity")


def test_it_is_a_device_backend_with_a_loop(pipeline: Pipeline) -> None:
    assert isinstance(pipeline.backend, DeviceBackend)
    assert isinstance(pipeline.backend, SolverLoop)
    assert pipeline.backend.batches == Range(1, 1, 3)


@pytest.mark.parametrize("batch", [1, 2])
def test_every_stage_gives_the_cpus_numbers(pipeline: Pipeline, on_cpu: Pipeline, batch: int) -> None:
    given = clip(batch)
    latent, mixture = normal(5, batch, 8, 16, 16), normal(6, 1, 8, 16, 16)
    mel = on_cpu.log_mel(given.waveform)
    calls: dict[str, tuple[Any, ...]] = {
        "log_mel": (given.waveform,),
        "encode_text": (np.full((batch, 50), 3), np.ones((batch, 50))),
        "encode_mixture": (mel,),
        "velocity": (latent, 0.3, mixture, given.text, given.mask),
        "solve": (latent, mixture, given.text, given.mask, 5),
        "decode_latent": (latent,),
        "vocode": (mel,),
    }
    for stage, arguments in calls.items():
        found, expected = (getattr(p, stage)(*arguments) for p in (pipeline, on_cpu))
        assert np.allclose(found, expected, atol=1e-5), stage


@pytest.mark.parametrize(("batch", "steps"), [(1, 3), (2, 4), (1, 1)])
def test_a_clip_that_stays_on_the_device_is_the_hosts(
    pipeline: Pipeline, on_cpu: Pipeline, batch: int, steps: int
) -> None:
    seen: list[tuple[int, int]] = []
    for seed in (0, 10):  # the second time everything is a replay
        given = clip(batch, seed)
        found = pipeline.generate(given, steps, progress=lambda *done: seen.append(done))
        assert np.allclose(found, on_cpu.generate(given, steps), atol=1e-5)
    assert seen == 2 * [(step, steps) for step in range(1, steps + 1)]


def test_a_warm_clip_is_one_launch_a_graph_and_one_for_all_steps(
    pipeline: Pipeline, machine: Machine
) -> None:
    pipeline.generate(clip(), 4)
    before = machine.cuda.launches
    memory, pinned = len(machine.cuda.memory), len(machine.cuda.pinned)
    pipeline.generate(clip(seed=3), 4)
    # log_mel, encode_mixture, posterior, velocity_mixture, velocity_text, what stays the same in the loop,
    # the loop, decode_latent, vocode
    assert machine.cuda.launches - before == 9
    assert (len(machine.cuda.memory), len(machine.cuda.pinned)) == (memory, pinned)


def test_loops_of_several_lengths_share_the_velocity_engine(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    backend: Any = pipeline.backend
    for steps in (2, 5, 2):
        assert np.allclose(pipeline.generate(clip(), steps), on_cpu.generate(clip(), steps), atol=1e-5)
    assert len(backend._loops) == 2
    assert sum(key[0] == STEP for key in backend._bound) == 2, "one from each state to the other"


def test_loops_are_bounded(
    pipeline: Pipeline, on_cpu: Pipeline, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop's graph has a node for every kernel of every step."""
    backend: Any = pipeline.backend
    for steps in (1, 2, 3, 4, 1, 5, 2):
        assert np.allclose(pipeline.generate(clip(), steps), on_cpu.generate(clip(), steps), atol=1e-5)
    kept = [key[1] for key in backend._loops]
    assert kept == [4, 1, 5, 2], "those that were used last"
    monkeypatch.setattr(loop, "LONGEST", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is not meant to be captured
        assert np.allclose(pipeline.generate(clip(), 6), on_cpu.generate(clip(), 6), atol=1e-5)
    captured = [entry.is_captured for entry in backend._loops.values()]
    assert captured == [True, True, True, False]


def test_all_engines_share_one_buffer_for_activations(pipeline: Pipeline) -> None:
    backend: Any = pipeline.backend
    pipeline.generate(clip(), 2)
    assert len(backend._bound) > 6
    assert {bound._context._scratch for bound in backend._bound.values()} == {
        (backend._scratch.pointer, backend._scratch.nbytes)
    }


@pytest.mark.parametrize("fault", ["refuses_captures", "loses_captures"])
def test_without_captures_it_is_slower_and_right(
    built: Path, machine: Machine, on_cpu: Pipeline, fault: str
) -> None:
    """`loses_captures` is the trap: no error, and a graph whose replays leave the last run's output."""
    setattr(machine.trt, fault, True)
    pipeline = Pipeline.load(built, "tensorrt")
    with pytest.warns(FlowSepWarning, match="without a CUDA graph"):
        first = pipeline.generate(clip(), 3)
    assert np.allclose(first, on_cpu.generate(clip(), 3), atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert np.allclose(pipeline.generate(clip(seed=5), 3), on_cpu.generate(clip(seed=5), 3), atol=1e-5)
    pipeline.backend.close()  # type: ignore[attr-defined]
    assert machine.faults() == []


def test_a_loop_that_lost_a_single_step_is_done_without(
    built: Path, machine: Machine, on_cpu: Pipeline
) -> None:
    """One velocity of twelve is that of the step before: hardly to be seen in the result."""
    pipeline = Pipeline.load(built, "tensorrt")
    backend: Any = pipeline.backend
    machine.trt.loses_capture = 7
    latent, given = normal(1, 1, 8, 16, 16), clip()
    with pytest.warns(FlowSepWarning, match="the solver's loop without a CUDA graph"):
        found = pipeline.solve(latent, latent, given.text, given.mask, 12)
    assert np.allclose(found, on_cpu.solve(latent, latent, given.text, given.mask, 12), atol=1e-5)
    backend.close()
    assert machine.faults() == []


def test_a_capture_is_judged_by_finite_numbers_and_by_where_there_are_none() -> None:
    wanted = np.array([1, np.inf, -2, np.nan], np.float16)
    assert _close(wanted.copy(), wanted), "what overflows overflows with the graph too"
    assert not _close(np.full(4, np.nan, np.float16), wanted)
    assert not _close(np.array([1, np.inf, 2, np.nan], np.float16), wanted)
    assert not _close(np.full(4, np.nan), np.full(4, np.nan)), "outputs are overwritten with NaN: no proof"


def test_captures_are_verified_on_inputs_like_the_real_ones(built: Path, machine: Machine) -> None:
    pipeline = Pipeline.load(built, "tensorrt")
    backend: Any = pipeline.backend
    backend.load("vocode")
    with backend.session():
        bound = backend._bind("vocode", {"log_mel": (1, MODEL.clip_frames, MODEL.mel_bins)})
        mel = bound.arrays["log_mel"].numpy()
    assert -7 < mel.mean() < -5 and 1.5 < mel.std() < 2.5
    backend.close()
    assert machine.faults() == []


@pytest.mark.parametrize("function", ["cudaGraphInstantiate", "cudaGraphGetNodes"])
def test_a_graph_that_cannot_be_made_is_done_without(
    built: Path, machine: Machine, on_cpu: Pipeline, function: str
) -> None:
    machine.cuda.fails.add(function)
    pipeline = Pipeline.load(built, "tensorrt")
    mel = on_cpu.log_mel(clip().waveform)
    with pytest.warns(FlowSepWarning, match="graph vocode without a CUDA graph"):
        assert np.allclose(pipeline.vocode(mel), on_cpu.vocode(mel), atol=1e-5)
    machine.cuda.fails.clear()
    pipeline.backend.close()  # type: ignore[attr-defined]
    assert machine.faults() == []


def test_shapes_that_were_not_built_are_named(pipeline: Pipeline) -> None:
    with pytest.raises(
        BackendError, match=r"graph decode_latent takes latent of .* and not \(4, 8, 16, 16\)"
    ):
        pipeline.decode_latent(normal(0, 4, 8, 16, 16))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_is_one_loop_of_the_cpus_numbers(
    pipeline: Pipeline, on_cpu: Pipeline, machine: Machine, solver: str
) -> None:
    assert_clips_are_equal(pipeline, on_cpu, solver)
    launches = machine.cuda.launches
    pipeline.generate(clip(2), SOLVERS[solver].only_steps or 4, solver)
    assert machine.cuda.launches - launches == 9, "as many as Euler's"


def test_loops_of_one_length_on_several_grids_are_told_apart(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    backend: Any = pipeline.backend
    for solver in ("euler", "euler-start", "euler"):
        found = pipeline.generate(clip(), 3, solver)
        assert np.allclose(found, on_cpu.generate(clip(), 3, solver), atol=1e-5)
    assert len(backend._loops) == 2


def test_a_loop_begins_anew_after_one_whose_velocities_were_not_finite(
    pipeline: Pipeline, on_cpu: Pipeline
) -> None:
    """The velocity before the first counts nothing, but infinity times nothing is no number."""
    given = clip()
    pipeline.generate(given, 3, "ab2")
    infinite = replace(given, noise=np.full_like(given.noise, np.inf))
    with np.errstate(all="ignore"):
        assert not np.isfinite(pipeline.generate(infinite, 3, "ab2")).all()
    found = pipeline.generate(given, 3, "ab2")
    assert np.allclose(found, on_cpu.generate(given, 3, "ab2"), atol=1e-5)


def test_several_queries_encode_the_mixture_once(
    pipeline: Pipeline, on_cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = pipeline.backend
    run, ran = backend.keep, Counter[str]()

    def watched(graph: str, inputs: Any) -> Any:
        ran[graph] += 1
        return run(graph, inputs)

    monkeypatch.setattr(backend, "keep", watched)
    queries = ["rain", "dog barking", "a bell"]
    audio = normal(3, 9000, 2)
    for kind in ("masked", "generated"):
        options: Any = {"kind": kind, "steps": 2, "solver": "euler"}
        ran.clear()
        found, expected = (
            Separator(one, cache=False).separate_all(audio, 16000, queries, **options)
            for one in (pipeline, on_cpu)
        )
        for one, other in zip(found, expected, strict=True):
            assert np.allclose(one.target, other.target, atol=1e-5)
        once = {"log_mel", "encode_mixture", "posterior", "velocity_mixture"}
        assert {ran[graph] for graph in once} == {1}, ran
        assert ran["velocity_text"] == ran["decode_latent"] == 2, "six rows, three in a loop"


def test_threads_wait_for_each_other(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    results: dict[int, Any] = {}

    def work(seed: int) -> None:
        results[seed] = pipeline.generate(clip(seed=seed), 2)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert np.allclose(results[seed], on_cpu.generate(clip(seed=seed), 2), atol=1e-5)


def test_a_separator_warms_up_and_separates(pipeline: Pipeline, on_cpu: Pipeline, machine: Machine) -> None:
    separator = Separator(pipeline)
    separator.warm_up(channels=2, steps=2)
    memory = len(machine.cuda.memory)
    audio = normal(3, 9000, 2)
    found = separator.separate(audio, 16000, "dog barking", steps=2)
    expected = Separator(on_cpu).separate(audio, 16000, "dog barking", steps=2)
    assert np.allclose(found.target, expected.target, atol=1e-5)
    assert len(machine.cuda.memory) == memory, "the first separation had to prepare something"


@pytest.mark.parametrize(("solver", "steps"), [("mean", 1), ("euler", 2), ("midpoint", 2)])
def test_masks_of_a_clip_and_of_a_long_recording_are_those_of_the_processor(
    pipeline: Pipeline, on_cpu: Pipeline, monkeypatch: pytest.MonkeyPatch, solver: str, steps: int
) -> None:
    backend: Any = pipeline.backend
    run = backend.keep
    ran: list[str] = []

    def watched(graph: str, inputs: Any) -> Any:
        ran.append(graph)
        return run(graph, inputs)

    monkeypatch.setattr(backend, "keep", watched)
    for samples in (9000, 3 * MODEL.clip_samples):
        audio = normal(3, samples)
        options: Any = {"kind": "masked", "solver": solver, "steps": steps}
        found = Separator(pipeline).separate(audio, 16000, "rain", **options)
        expected = Separator(on_cpu).separate(audio, 16000, "rain", **options)
        assert np.allclose(found.target, expected.target, atol=1e-5)
    assert "decode_latent" in ran and "vocode" not in ran


def test_more_channels_than_the_engines_take_go_in_turns(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    audio = normal(3, 6000, 4)
    found = Separator(pipeline).separate(audio, 16000, "rain", steps=1)
    expected = Separator(on_cpu).separate(audio, 16000, "rain", steps=1)
    assert np.allclose(found.target, expected.target, atol=1e-5)


def test_memory_is_freed_with_the_backend(built: Path, machine: Machine) -> None:
    pipeline = Pipeline.load(built, "tensorrt")
    pipeline.generate(clip(), 2)
    del pipeline
    assert machine.faults() == []


def test_a_graph_that_was_freed_gives_its_memory_back(
    pipeline: Pipeline, on_cpu: Pipeline, machine: Machine
) -> None:
    backend: Any = pipeline.backend
    pipeline.free()  # nothing is loaded yet
    expected = on_cpu.generate(clip(), 3)
    for _ in range(2):
        assert np.allclose(pipeline.generate(clip(), 3), expected, atol=1e-5)
        memory = len(machine.cuda.memory)
        backend.free("vocode")
        assert len(machine.cuda.memory) < memory and "vocode" not in backend._engines
        assert np.allclose(pipeline.generate(clip(), 3), expected, atol=1e-5)
        assert len(machine.cuda.memory) == memory
        backend.free("velocity")
        assert not backend._loops and not any(key[0] == STEP for key in backend._bound)
        assert np.allclose(pipeline.generate(clip(), 3), expected, atol=1e-5)
        pipeline.free()
        assert not machine.cuda.memory and not machine.cuda.pinned and not machine.cuda.executables


def test_with_low_memory_a_stage_leaves_nothing_for_the_next(
    built: Path, machine: Machine, on_cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.load(built, "tensorrt", low_memory=True)
    backend: Any = pipeline.backend
    held: list[set[str]] = []
    bind = TensorRt._bind

    def watched(self: Any, *arguments: Any) -> Any:
        result = bind(self, *arguments)
        held.append({PARTS.get(key[0], key[0]) for key in self._bound} - set(DEVICE_GRAPHS))
        return result

    monkeypatch.setattr(TensorRt, "_bind", watched)
    separator = Separator(pipeline, cache=False)
    separator.warm_up()
    assert not machine.cuda.memory
    audio = normal(3, 2 * MODEL.clip_samples)
    found = separator.separate(audio, 16000, "rain", steps=2)
    expected = Separator(on_cpu, cache=False).separate(audio, 16000, "rain", steps=2)
    assert np.allclose(found.target, expected.target, atol=1e-5)
    assert set().union(*held) == set(GRAPHS)  # the velocity too, which runs in the loop
    for graphs in held:
        assert any(graphs <= set(stage) for stage in STAGES.values()), graphs
    assert not machine.cuda.memory and not machine.cuda.pinned
    backend.close()
    assert machine.faults() == []
