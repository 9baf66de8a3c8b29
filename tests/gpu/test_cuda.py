"""The `cuda` backend: what can be seen without a GPU.

Sessions here are ONNX Runtime's on the CPU; everything around them (shapes, addresses, the loop, device
arrays) is the backend's own, with real arithmetic.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from flowsep_export.onnx.device_graphs import device_graphs
from flowsep_export.onnx.loop_parts import named_axes, split_loop
from flowsep_runtime import BackendError, OptionError, Pipeline, Separator
from flowsep_runtime.backends import BACKENDS, DeviceBackend, SolverLoop, open_backend, why_not
from flowsep_runtime.backends.device_graphs import DEVICE_GRAPHS, device_graph_path
from flowsep_runtime.backends.loop_parts import CONSTANTS, STEP
from flowsep_runtime.backends.onnxruntime import cuda
from flowsep_runtime.backends.onnxruntime.bound import OrtArray
from flowsep_runtime.bundle.manifest import GRAPHS, STAGES, FileEntry, GraphEntry, Manifest, TensorEntry
from flowsep_runtime.solvers import SOLVERS
from tests.gpu.conftest import assert_clips_are_equal, clip, normal
from tests.gpu.cpu_sessions import session_on_the_cpu


@pytest.fixture
def pipeline(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    monkeypatch.setattr(cuda, "open_session", session_on_the_cpu)
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    manifest = Manifest.read(toy)
    yield Pipeline(toy, manifest, cuda.open(toy, manifest, "exact", None, False))


def test_it_is_a_device_backend_with_a_loop(pipeline: Pipeline) -> None:
    assert isinstance(pipeline.backend, DeviceBackend)
    assert isinstance(pipeline.backend, SolverLoop)
    assert pipeline.backend.name in BACKENDS


@pytest.mark.parametrize("batch", [1, 3])
def test_every_stage_gives_the_cpus_numbers(pipeline: Pipeline, on_cpu: Pipeline, batch: int) -> None:
    given = clip(batch)
    latent, text, mask = normal(5, batch, 8, 16, 16), given.text, given.mask
    mel = on_cpu.log_mel(given.waveform)
    ids = np.full((batch, 50), 3)
    calls: dict[str, tuple[Any, ...]] = {
        "log_mel": (given.waveform,),
        "encode_text": (ids, np.ones((batch, 50))),
        "encode_mixture": (mel,),
        "velocity": (latent, 0.3, normal(6, 1, 8, 16, 16), text, mask),
        "solve": (latent, normal(6, 1, 8, 16, 16), text, mask, 5),
        "decode_latent": (latent,),
        "vocode": (mel,),
    }
    assert set(calls) == set(STAGES)
    for stage, arguments in calls.items():
        found, expected = (getattr(p, stage)(*arguments) for p in (pipeline, on_cpu))
        for one, other in zip(np.atleast_1d(found), np.atleast_1d(expected), strict=True):
            assert np.allclose(one, other, atol=1e-5), stage


@pytest.mark.parametrize(("batch", "steps"), [(1, 3), (2, 4), (1, 1)])
def test_a_clip_that_stays_on_the_device_is_the_hosts(
    pipeline: Pipeline, on_cpu: Pipeline, batch: int, steps: int
) -> None:
    seen: list[tuple[int, int]] = []
    for seed in (0, 10):  # twice, on the same sessions and addresses
        given = clip(batch, seed)
        found = pipeline.generate(given, steps, progress=lambda *done: seen.append(done))
        assert np.allclose(found, on_cpu.generate(given, steps), atol=1e-5)
    assert seen == 2 * [(step, steps) for step in range(1, steps + 1)]


def test_a_bundle_with_the_loop_in_parts_repeats_the_step_alone(
    toy: Path, tmp_path: Path, on_cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "open_session", session_on_the_cpu)
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    bundle = Path(shutil.copytree(toy, tmp_path / "toy"))
    manifest = Manifest.read(bundle)
    own = {}
    for name, part in zip((CONSTANTS, STEP), split_loop(onnx.load(bundle / "velocity.onnx")), strict=True):
        path = bundle / f"{name}.cuda.onnx"
        onnx.save(part, path)
        inputs, outputs = (
            tuple(TensorEntry(*named_axes(value)) for value in values)
            for values in (part.graph.input, part.graph.output)
        )
        own[name] = GraphEntry((FileEntry.of(path),), inputs, outputs)
    dataclasses.replace(manifest, variants={"cuda": own}).write(bundle)
    backend: Any = cuda.open(bundle, Manifest.read(bundle), "exact", None, False)
    pipeline = Pipeline(bundle, backend._manifest, backend)
    for batch, seed in ((1, 0), (2, 4), (1, 9)):
        given = clip(batch, seed)
        assert np.allclose(pipeline.generate(given, 3), on_cpu.generate(given, 3), atol=1e-5)
    assert {CONSTANTS, STEP} <= {key[0] for key in backend._sessions}
    assert "velocity" not in {key[0] for key in backend._sessions}
    backend.free("velocity")
    assert {CONSTANTS, STEP}.isdisjoint({key[0] for key in (*backend._sessions, *backend._bindings)})
    # another solver
    assert np.allclose(
        pipeline.generate(given, 2, "midpoint"), on_cpu.generate(given, 2, "midpoint"), atol=1e-5
    )


def test_addresses_are_bound_once_and_used_again(pipeline: Pipeline) -> None:
    backend: Any = pipeline.backend
    pipeline.generate(clip(), 4)
    bindings = dict(backend._bindings)
    numbers = [binding._options.get_run_config_entry("gpu_graph_id") for binding in bindings.values()]
    assert len(set(numbers)) == len(numbers), "every set of addresses is a captured graph of its own"
    assert sum(key[0] == "velocity" for key in bindings) == 2
    pipeline.generate(clip(seed=7), 4)
    assert backend._bindings == bindings


def test_what_comes_down_is_what_was_asked_for(
    toy: Path, pipeline: Pipeline, on_cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = clip()
    pipeline.generate(given, 2)  # the schedule's times come down once
    down: list[tuple[int, ...]] = []
    download = OrtArray.numpy

    def watched(self: Any) -> Any:
        down.append(self.shape)
        return download(self)

    monkeypatch.setattr(OrtArray, "numpy", watched)
    log_mel = (1, pipeline.manifest.model.clip_frames, pipeline.manifest.model.mel_bins)
    waveform = pipeline.generate(given, 2)
    assert down == [waveform.shape]
    down.clear()
    bands = pipeline.run(given, 2, vocode=False)
    assert down == [log_mel, log_mel]
    whole = on_cpu.run(given, 2)
    assert np.allclose(bands.mixture, whole.mixture, atol=1e-5)
    assert np.allclose(bands.log_mel, whole.log_mel, atol=1e-5)
    down.clear()
    backend: Any = pipeline.backend
    backend.free("vocode")
    Separator(pipeline, cache=False).separate(normal(3, 8000), 16000, "rain", steps=2, kind="masked")
    assert [shape for shape in down if shape[1:] == log_mel[1:]] == [log_mel, log_mel]
    assert "vocode" not in {key[0] for key in backend._sessions}


def test_a_graph_that_was_freed_is_loaded_again(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    backend: Any = pipeline.backend
    mel = on_cpu.log_mel(clip().waveform)
    first = pipeline.vocode(mel)
    backend.free("vocode")
    assert not backend._sessions and not backend._bindings
    assert np.array_equal(pipeline.vocode(mel), first)


def test_sizes_are_folded_into_the_graph(toy: Path) -> None:
    """Nothing that computes shapes may be left for the CPU."""
    from flowsep_runtime.backends.onnxruntime.shapes import GraphShapes

    shapes = GraphShapes(Manifest.read(toy), "cuda")
    states = dict.fromkeys(("x", "velocity", "before"), (2, 8, 4, 16))
    sizes = shapes.sizes("advance", {**states, "weights": (2,), "row": (1, 9)}, 2)
    assert sizes == {"batch": 2, "channels": 8, "t": 4, "frequencies": 16, "shifts": 9}
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(toy.parent / "advance.onnx")
    for axis, size in sizes.items():
        settings.add_free_dimension_override_by_name(axis, size)
    onnxruntime.InferenceSession(
        str(device_graph_path("advance")), settings, providers=["CPUExecutionProvider"]
    )
    left = [node.op_type for node in onnx.load(settings.optimized_model_filepath).graph.node]
    assert "Shape" not in left and "Concat" not in left


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_gives_the_cpus_numbers_from_two_runs_of_the_velocity(
    pipeline: Pipeline, on_cpu: Pipeline, solver: str
) -> None:
    assert_clips_are_equal(pipeline, on_cpu, solver)
    backend: Any = pipeline.backend
    runs = sum(key[0] == "velocity" for key in backend._bindings)
    assert runs == (1 if solver == "mean" else 2), "and none for the host"


def test_with_low_memory_only_one_stage_is_held_at_a_time(
    toy: Path, pipeline: Pipeline, on_cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = pipeline.backend
    sparing = Separator(Pipeline(toy, pipeline.manifest, backend, low_memory=True), cache=False)
    held: list[set[str]] = []
    keep = cuda.OnnxRuntimeCuda.keep

    def watched(self: Any, graph: str, inputs: Any) -> Any:
        result = keep(self, graph, inputs)
        held.append({key[0] for key in self._sessions} - set(DEVICE_GRAPHS))
        return result

    monkeypatch.setattr(cuda.OnnxRuntimeCuda, "keep", watched)
    sparing.warm_up()
    audio = normal(3, 30000)
    # Windows that are each for themselves: joint ones ask for the velocity outside the loop.
    options: dict[str, Any] = {"steps": 2, "windows": "cross-fade"}
    found = sparing.separate(audio, 16000, "rain", **options)
    expected = Separator(on_cpu, cache=False).separate(audio, 16000, "rain", **options)
    assert np.allclose(found.target, expected.target, atol=1e-5)
    assert set().union(*held) == set(GRAPHS) - {"velocity"}, "the velocity runs in the loop"
    for graphs in held:
        assert any(graphs <= set(stage) for stage in STAGES.values()), graphs
    assert not {key[0] for key in backend._sessions} - set(DEVICE_GRAPHS)


def test_the_text_encoder_is_freed_after_the_first_query_but_not_after_a_warm_up(pipeline: Pipeline) -> None:
    backend: Any = pipeline.backend
    separator = Separator(pipeline, cache=False)
    separator.separate(normal(3, 100), 16000, "rain", steps=1)
    assert "encode_text" not in {key[0] for key in backend._sessions}
    separator.separate(normal(3, 100), 16000, "dog barking", steps=1)
    assert "encode_text" in {key[0] for key in backend._sessions}
    backend.free("encode_text")
    warm = Separator(pipeline, cache=False)
    warm.warm_up(steps=1)
    warm.separate(normal(3, 100), 16000, "rain", steps=1)
    assert "encode_text" in {key[0] for key in backend._sessions}


def test_a_separator_warms_up_and_separates(pipeline: Pipeline, on_cpu: Pipeline) -> None:
    separator = Separator(pipeline)
    separator.warm_up(channels=2, steps=2)
    backend: Any = pipeline.backend
    sessions = set(backend._sessions)
    audio = normal(3, 9000, 2)
    found = separator.separate(audio, 16000, "dog barking", steps=2)
    assert np.allclose(
        found.target, Separator(on_cpu).separate(audio, 16000, "dog barking", steps=2).target, atol=1e-5
    )
    assert set(backend._sessions) == sessions, "nothing was left for the first separation to prepare"
    assert {"log_mel", "encode_mixture", "solve", "decode_latent", "vocode"} < set(found.timings)


@pytest.mark.parametrize("name", DEVICE_GRAPHS)
def test_the_graphs_between_stages_are_what_their_script_writes(name: str) -> None:
    assert onnx.load(device_graph_path(name)) == device_graphs()[name]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_falling_back_to_the_cpu_is_an_error(toy: Path) -> None:
    """The real thing: this ONNX Runtime has no CUDA provider and would take the CPU without a word."""
    sizes = {"batch": 1, "frames": 32}
    with pytest.raises(BackendError, match=r"vocode\.onnx.*fallback|would run .*vocode\.onnx on the CPU"):
        cuda.open_session(toy / "vocode.onnx", sizes, cuda.provider_options(Manifest.read(toy)))


def test_half_precision_is_not_exact(toy: Path) -> None:
    half = dataclasses.replace(Manifest.read(toy), precision="float16")
    with pytest.raises(OptionError, match="add --precision fast"):
        cuda.open(toy, half, "exact", None, False)
    assert cuda.provider_options(half)["use_tf32"] == "1"
    assert cuda.provider_options(Manifest.read(toy))["use_tf32"] == "0"


@pytest.mark.parametrize(
    ("version", "captured"), [("1.23.2", "0"), ("1.30.1", "0"), ("1.31.0", "1"), ("2.0.0", "1")]
)
def test_runs_are_captured_where_their_replays_can_be_trusted(
    toy: Path, monkeypatch: pytest.MonkeyPatch, version: str, captured: str
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert cuda.provider_options(Manifest.read(toy))["enable_cuda_graph"] == captured


def test_provider_options_can_be_measured(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda.OPTIONS_VARIABLE, "prefer_nhwc=1, cudnn_conv_algo_search=HEURISTIC")
    options = cuda.provider_options(Manifest.read(toy))
    assert (options["prefer_nhwc"], options["cudnn_conv_algo_search"]) == ("1", "HEURISTIC")
    monkeypatch.setenv(cuda.OPTIONS_VARIABLE, "prefer_nhwc")
    with pytest.raises(OptionError, match="NAME=VALUE"):
        cuda.provider_options(Manifest.read(toy))


def test_without_it_the_reason_is_said(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = why_not("cuda")
    assert reason is not None and "flowsep-engine[gpu]" in reason
    with pytest.raises(OptionError, match="Backend cuda cannot run here: this onnxruntime is for CPUs"):
        open_backend("cuda", toy, Manifest.read(toy))
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    assert "not installed" in str(why_not("cuda"))
