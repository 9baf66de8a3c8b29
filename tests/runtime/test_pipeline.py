"""The seven stages on a backend, against the same arithmetic in numpy."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowsep_runtime import BackendError, OptionError, Pipeline, Separator
from flowsep_runtime.backends import BACKENDS, Schedule, open_backend, report, why_not
from flowsep_runtime.bundle.manifest import GRAPHS, STAGES, Manifest
from flowsep_runtime.device_pipeline import Clip
from tests.runtime.toy_bundle import Reference

random = np.random.default_rng(3)


def normal(*shape: int) -> Any:
    return random.standard_normal(shape).astype(np.float32)


def tokens(batch: int = 1) -> tuple[Any, Any]:
    ids = np.zeros((batch, 50), np.int64)
    ids[:, :4] = random.integers(2, 9, (batch, 4))
    mask = np.zeros((batch, 50), np.int64)
    mask[:, :5] = 1
    return ids, mask


def close(found: Any, expected: Any) -> bool:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    return bool(np.linalg.norm(found - expected) <= 5e-6 * np.linalg.norm(expected))


def test_log_mel_takes_whole_multiples_of_frames(pipeline: Pipeline, reference: Reference) -> None:
    waveform = normal(2, 3 * 32 * 160)
    assert close(pipeline.log_mel(waveform), reference.log_mel(waveform))
    with pytest.raises(ValueError, match="multiple of 5120"):
        pipeline.log_mel(normal(1, 5121))


def test_encode_text(pipeline: Pipeline, reference: Reference) -> None:
    ids, mask = tokens(2)
    assert close(pipeline.encode_text(ids, mask), reference.encode_text(ids, mask))
    with pytest.raises(ValueError, match=r"\[batch, 50\]"):
        pipeline.encode_text(ids[:, :49], mask[:, :49])


def test_encode_mixture_gives_mean_then_std(pipeline: Pipeline, reference: Reference) -> None:
    log_mel = normal(2, 64, 64)
    for found, expected in zip(
        pipeline.encode_mixture(log_mel), reference.encode_mixture(log_mel), strict=True
    ):
        assert close(found, expected)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.bool_, np.float64])
def test_velocity_takes_any_mask_type_and_a_mixture_of_batch_one(
    pipeline: Pipeline, reference: Reference, dtype: type
) -> None:
    x, mixture, text = normal(3, 8, 16, 16), normal(1, 8, 16, 16), normal(3, 50, 6)
    mask = tokens(3)[1]
    expected = reference.velocity(x, 0.35, mixture, text, mask)
    assert close(pipeline.velocity(x, 0.35, mixture, text, mask.astype(dtype)), expected)


def test_velocity_takes_one_time_for_each_row(pipeline: Pipeline, reference: Reference) -> None:
    x, mixture, text, mask = normal(2, 8, 8, 16), normal(2, 8, 8, 16), normal(1, 50, 6), tokens()[1]
    t = np.array([0.1, 0.9], np.float32)
    assert close(pipeline.velocity(x, t, mixture, text, mask), reference.velocity(x, t, mixture, text, mask))


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_solve_is_euler_from_zero_to_one(pipeline: Pipeline, reference: Reference, steps: int) -> None:
    noise, mixture, text, mask = normal(2, 8, 8, 16), normal(1, 8, 8, 16), normal(1, 50, 6), tokens()[1]
    seen: list[tuple[int, int]] = []
    found = pipeline.solve(noise, mixture, text, mask, steps, progress=lambda *done: seen.append(done))
    assert close(found, reference.euler(noise, mixture, text, mask, steps))
    assert seen == [(step, steps) for step in range(1, steps + 1)]


def test_decode_latent_and_vocode(pipeline: Pipeline, reference: Reference) -> None:
    latent = normal(2, 8, 16, 16)
    log_mel = pipeline.decode_latent(latent)
    assert close(log_mel, reference.decode_latent(latent))
    waveform = pipeline.vocode(log_mel)
    assert waveform.shape == (2, 160 * 64 + 32)
    assert close(waveform, reference.vocode(log_mel))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.decode_latent(normal(1, 8, 9, 16)), "multiple of 8"),
        (lambda p: p.decode_latent(normal(1, 7, 8, 16)), r"\[batch, 8, t, 16\]"),
        (lambda p: p.vocode(normal(1, 33, 64)), "multiple of 32"),
        (lambda p: p.vocode(normal(1, 0, 64)), r"\[batch, frames, 64\]"),
        (
            lambda p: p.velocity(
                normal(3, 8, 8, 16), 0.5, normal(2, 8, 8, 16), normal(1, 50, 6), np.ones((1, 50))
            ),
            "mixture_latent has batch 2",
        ),
        (
            lambda p: p.velocity(
                normal(1, 8, 8, 16), 0.5, normal(1, 8, 16, 16), normal(1, 50, 6), np.ones((1, 50))
            ),
            "16 frames and x 8",
        ),
        (
            lambda p: p.velocity(
                normal(1, 8, 8, 16), 0.5, normal(1, 8, 8, 16), normal(1, 50, 7), np.ones((1, 50))
            ),
            r"\[batch, 50, 6\]",
        ),
        (
            lambda p: p.velocity(
                normal(3, 8, 8, 16), [0.1, 0.2], normal(1, 8, 8, 16), normal(1, 50, 6), np.ones((1, 50))
            ),
            "t must be",
        ),
    ],
)
def test_wrong_shapes_are_refused(pipeline: Pipeline, call: Callable[[Pipeline], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(pipeline)


@pytest.mark.parametrize(("steps", "solver"), [(0, "euler"), (-1, "euler"), (4, "guess")])
def test_steps_and_solver_are_checked(pipeline: Pipeline, steps: int, solver: str) -> None:
    latent = normal(1, 8, 8, 16)
    with pytest.raises(OptionError):
        pipeline.solve(latent, latent, normal(1, 50, 6), np.ones((1, 50)), steps, solver)


class Recorder:
    """Another backend: writes down which graphs it hands on, and which are in memory each time."""

    name = "recorder"
    description = "recorder, float32"

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.runs: list[str] = []
        self.held: set[str] = set()
        self.most_held: list[set[str]] = []

    def load(self, graph: str) -> None:
        self.backend.load(graph)
        self.held.add(graph)
        self.most_held.append(set(self.held))

    def free(self, graph: str) -> None:
        self.backend.free(graph)
        self.held.discard(graph)

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.load(graph)
        self.runs.append(graph)
        assert tuple(inputs) == GRAPHS[graph][0]
        assert all(array.flags.c_contiguous for array in inputs.values())
        outputs: dict[str, Any] = self.backend.run(graph, inputs)
        return outputs


class LoopRecorder(Recorder):
    """A backend that runs the whole solver loop."""

    schedule: Schedule | None = None
    answer = np.zeros(3, np.float32)

    def solve(self, schedule: Schedule, progress: Callable[[int, int], None] | None) -> Any:
        self.schedule = schedule
        return self.answer


def test_invariants_are_computed_once_outside_the_loop(pipeline: Pipeline) -> None:
    backend = Recorder(pipeline.backend)
    latent = normal(1, 8, 8, 16)
    Pipeline(pipeline.folder, pipeline.manifest, backend).solve(
        latent, latent, normal(1, 50, 6), np.ones((1, 50)), 5
    )
    assert sorted(backend.runs[:3]) == ["velocity_mixture", "velocity_text", "velocity_time"]
    assert backend.runs[3:] == ["velocity"] * 5


def test_a_backend_may_take_over_the_loop(pipeline: Pipeline) -> None:
    backend = LoopRecorder(pipeline.backend)
    other = Pipeline(pipeline.folder, pipeline.manifest, backend)
    noise, mixture, text, mask = normal(2, 8, 8, 16), normal(1, 8, 8, 16), normal(1, 50, 6), np.ones((1, 50))
    assert other.solve(noise, mixture, text, mask, 4) is backend.answer
    assert backend.schedule is not None
    assert (backend.schedule.solver, backend.schedule.steps) == ("euler", 4)
    assert len(backend.schedule.time_features) == 4
    assert len(backend.schedule.mixture_features) == len(backend.schedule.keys_values) == 2


def test_graphs_are_loaded_when_first_wanted(own_bundle: Path) -> None:
    pipeline = Pipeline.load(own_bundle, cache=False)
    for graph in GRAPHS:
        (own_bundle / f"{graph}.onnx").write_bytes(b"no onnx")
    for stage in STAGES:
        with pytest.raises(BackendError, match="cannot load"):
            pipeline.load_stage(stage)


def loaded_ahead(pipeline: Pipeline, *stages: str) -> None:
    pipeline.load_ahead(stages)
    for thread in threading.enumerate():
        if thread.name == "flowsep-load-ahead":
            thread.join(60)


def test_stages_are_loaded_ahead_and_a_damaged_one_says_so_when_it_is_used(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowsep_runtime.pipeline.usable_processors", lambda: 4)
    pipeline = Pipeline.load(own_bundle, "cpu")
    backend = Recorder(pipeline.backend)
    (own_bundle / "decode_latent.onnx").write_bytes(b"no onnx")
    loaded_ahead(Pipeline(own_bundle, pipeline.manifest, backend), "log_mel", "decode_latent", "vocode")
    assert backend.held == {"log_mel", "vocode"}
    with pytest.raises(BackendError, match="cannot load"):
        pipeline.decode_latent(normal(1, 8, 16, 16))
    sparing = Recorder(pipeline.backend)
    loaded_ahead(Pipeline(own_bundle, pipeline.manifest, sparing, low_memory=True), "log_mel")
    monkeypatch.setattr("flowsep_runtime.pipeline.usable_processors", lambda: 1)
    loaded_ahead(Pipeline(own_bundle, pipeline.manifest, sparing), "log_mel")
    assert sparing.held == set()
    monkeypatch.setattr("flowsep_runtime.pipeline.usable_processors", lambda: 2)
    Pipeline(own_bundle, pipeline.manifest, sparing).load_ahead(["log_mel", "vocode"])
    assert sparing.held == {"log_mel", "vocode"}, "it returned before all was loaded"


def test_whatever_fails_ahead_is_left_to_the_use(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Recorder):
        def load(self, graph: str) -> None:
            if graph == "log_mel":
                raise MemoryError
            super().load(graph)

    escaped: list[object] = []
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    monkeypatch.setattr("flowsep_runtime.pipeline.usable_processors", lambda: 2)
    pipeline = Pipeline.load(toy_bundle, "cpu")
    backend = Full(pipeline.backend)
    loaded_ahead(Pipeline(toy_bundle, pipeline.manifest, backend), "log_mel", "vocode")
    assert (backend.held, escaped) == ({"vocode"}, [])


def test_threads_that_load_are_waited_for_at_the_end_after_an_interruption(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    begun: list[threading.Thread] = []

    class Slow(Recorder):
        def load(self, graph: str) -> None:
            begun.append(threading.current_thread())
            if len(begun) == 2:
                time.sleep(0.1)  # the main thread waits by then
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            may_end.wait(10)

    monkeypatch.setattr("flowsep_runtime.pipeline.usable_processors", lambda: 2)
    pipeline = Pipeline.load(toy_bundle, "cpu")
    with pytest.raises(KeyboardInterrupt):
        Pipeline(toy_bundle, pipeline.manifest, Slow(pipeline.backend)).load_ahead(["log_mel", "vocode"])
    # the end of the program waits for threads that are said to be alive
    alive = [thread.is_alive() for thread in begun]
    may_end.set()
    assert alive == [True, True]


def test_a_warm_up_loads_the_vocoder_only_for_results_that_need_it(pipeline: Pipeline) -> None:
    backend = Recorder(pipeline.backend)
    separator = Separator(Pipeline(pipeline.folder, pipeline.manifest, backend), cache=False)
    separator.warm_up(kind="masked")
    assert backend.held == set(GRAPHS) - {"vocode"}
    separator.warm_up(kind="generated")
    assert backend.held == set(GRAPHS)


def test_unknown_backend_precision_and_threads_are_refused(toy_bundle: Path) -> None:
    manifest = Manifest.read(toy_bundle)
    with pytest.raises(OptionError, match="no backend 'abacus'"):
        open_backend("abacus", toy_bundle, manifest)
    with pytest.raises(OptionError, match="no precision"):
        open_backend("cpu", toy_bundle, manifest, precision="rough")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="threads"):
        open_backend("cpu", toy_bundle, manifest, threads=0)


def without(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    """Pretend that these libraries are not installed."""
    from importlib.util import find_spec

    for module in BACKENDS.values():
        monkeypatch.setattr(
            f"flowsep_runtime.backends.{module}.find_spec",
            lambda name: None if name in libraries else find_spec(name),
        )


def test_auto_says_what_is_missing_when_no_backend_can_run(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "openvino", "onnxruntime")
    with pytest.raises(OptionError, match=r"flowsep-engine\[openvino\].*pip install 'flowsep-engine\[cpu\]'"):
        Pipeline.load(toy_bundle)
    assert list(BACKENDS)[-1] == "cpu", "auto tries the backend that runs everywhere last"


def test_generate_equals_the_stages_called_one_by_one(pipeline: Pipeline, reference: Reference) -> None:
    waveform, text, mask = normal(2, 64 * 160), normal(1, 50, 6), tokens()[1]
    posterior_noise, noise = normal(1, 8, 16, 16), normal(1, 8, 16, 16)
    stages: list[str] = []

    def stage(name: str) -> Any:
        stages.append(name)
        return nullcontext()

    clip = Clip(waveform, posterior_noise, noise, text, mask.astype(np.float32))
    found = pipeline.generate(clip, 3, stage=stage)
    mean, std = reference.encode_mixture(reference.log_mel(waveform))
    start = np.repeat(noise, 2, axis=0)
    latent = reference.euler(start, mean + std * posterior_noise, text, mask, 3)
    assert close(found, reference.vocode(reference.decode_latent(latent)))
    assert stages == ["log_mel", "encode_mixture", "solve", "decode_latent", "vocode"]
    with pytest.raises(ValueError, match="multiple of 5120"):
        pipeline.generate(replace(clip, waveform=waveform[:, 1:]), 3)


@pytest.mark.parametrize("precision", ["exact", "fast", "auto"])
def test_a_backend_without_quick_arithmetic_computes_in_float32_and_says_so(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    without(monkeypatch, "openvino")
    pipeline = Pipeline.load(toy_bundle, precision=precision, threads=2)
    assert pipeline.backend.name == "cpu"
    assert pipeline.backend.description == "cpu, float32, 2 threads"
    assert pipeline.precision == ("fast" if precision == "fast" else "exact")
    assert not report("openvino").precisions and "pip install" in str(report("openvino").why_not)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_graph_that_was_freed_is_loaded_again_when_wanted(toy_bundle: Path, name: str) -> None:
    if (reason := why_not(name)) is not None:
        pytest.skip(reason)
    pipeline = Pipeline.load(toy_bundle, name, threads=1)
    pipeline.free()  # nothing is loaded yet
    latent = normal(1, 8, 16, 16)
    first = pipeline.decode_latent(latent)
    pipeline.free_stage("decode_latent")
    assert np.array_equal(pipeline.decode_latent(latent), first)


def test_with_low_memory_only_one_stage_is_held_at_a_time(pipeline: Pipeline) -> None:
    backend = Recorder(pipeline.backend)
    sparing = Separator(Pipeline(pipeline.folder, pipeline.manifest, backend, low_memory=True), cache=False)
    audio = normal(pipeline.manifest.model.clip_samples * 2)
    found = sparing.separate(audio, 16000, "rain", steps=2)
    assert set().union(*backend.most_held) == set(GRAPHS)
    for held in backend.most_held:
        assert any(held <= set(graphs) for graphs in STAGES.values()), held
    assert backend.held == set()
    usual = Separator(pipeline, cache=False).separate(audio, 16000, "rain", steps=2)
    assert np.array_equal(found.target, usual.target)


def test_the_text_encoder_is_freed_after_the_first_query_and_kept_after_the_second(
    pipeline: Pipeline,
) -> None:
    backend = Recorder(pipeline.backend)
    separator = Separator(Pipeline(pipeline.folder, pipeline.manifest, backend), cache=False)
    separator.separate(normal(100), 16000, "rain", steps=1)
    assert backend.held == set(GRAPHS) - {"encode_text"}
    separator.separate(normal(100), 16000, "dog barking", steps=1)
    assert backend.held == set(GRAPHS)
