"""Rows of several texts and mixtures in one loop on a device, on the double and on ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowsep_export.tensorrt.engines import build_engines, default_batches
from flowsep_runtime import Pipeline, Separation, Separator
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.onnxruntime import cuda
from flowsep_runtime.backends.tensorrt.backend import TensorRt
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.device_pipeline import Clip, Guidance, joined, parted
from tests.gpu.conftest import FRAMES, clip, normal
from tests.gpu.cpu_sessions import session_on_the_cpu
from tests.gpu.doubles import VERSIONS, Machine, installed
from tests.runtime.toy_bundle import MODEL, WIDTH, write_toy_bundle

MASKED = replace(MODEL, default_kind="masked", complement="all but {query}", masked_steps=3)
ONE, SIX = Range(1, 1, 1), Range(1, 2, 6)
#: Mixtures, and rows of the loop, that engines were built for.
DEFAULT, SINGLE, WIDE = default_batches(MASKED), (ONE, ONE), (SIX, SIX)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Range, Range], Path]:
    """A bundle whose queries have complements, with engines for several batches; must not be changed."""
    folder = tmp_path_factory.mktemp("loops")
    toy = write_toy_bundle(folder / "toy", model=MASKED)
    found = {}
    for number, (batch, loop_batch) in enumerate((DEFAULT, SINGLE, WIDE)):
        bundle = Path(shutil.copytree(toy, folder / str(number)))
        with installed(VERSIONS[-1]):
            build_engines(bundle, batch, FRAMES, loop_batch=None if loop_batch == batch else loop_batch)
        found[batch, loop_batch] = bundle
    return found


@pytest.fixture(scope="module")
def host(bundles: dict[tuple[Range, Range], Path]) -> Pipeline:
    return Pipeline.load(bundles[DEFAULT], "cpu", threads=1)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with installed(VERSIONS[-1]) as machine:
        yield machine
        assert machine.faults() == []


@pytest.fixture
def on_cuda(bundles: dict[tuple[Range, Range], Path], monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr(cuda, "open_session", session_on_the_cpu)
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    bundle = bundles[DEFAULT]
    manifest = Manifest.read(bundle)
    return Pipeline(bundle, manifest, cuda.open(bundle, manifest, "exact", None, False))


@contextmanager
def opened(bundle: Path) -> Iterator[Pipeline]:
    """A backend on the double, closed at the end of the block."""
    pipeline = Pipeline.load(bundle, "tensorrt")
    assert isinstance(pipeline.backend, TensorRt)
    try:
        yield pipeline
    finally:
        pipeline.backend.close()


def loops_seen(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every loop that is run from now on."""
    backend: Any = pipeline.backend
    solve, seen = backend.keep_solution, list[int]()

    def watched(solver: str, steps: int, noise: Any, *others: Any, **named: Any) -> Any:
        seen.append(len(noise))
        return solve(solver, steps, noise, *others, **named)

    monkeypatch.setattr(backend, "keep_solution", watched)
    return seen


def separated(pipeline: Pipeline, channels: int = 1, queries: int = 1, **options: Any) -> list[Separation]:
    """A clip's targets, "masked" by default."""
    texts = ["rain", "dog barking", "a bell"][:queries]
    return Separator(pipeline, cache=False).separate_all(normal(3, 9000, channels), 16000, texts, **options)


def assert_equal(found: list[Separation], expected: list[Separation]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.allclose(one.target, other.target, atol=1e-5)


GUIDED: dict[str, Any] = {"guidance": 2.5, "negative": "a drum"}
CASES: dict[str, tuple[dict[str, Any], dict[tuple[Range, Range], list[int]]]] = {
    "masked": ({}, {DEFAULT: [2], SINGLE: [1, 1], WIDE: [2]}),
    "masked stereo": ({"channels": 2}, {DEFAULT: [2, 2], SINGLE: 4 * [1], WIDE: [4]}),
    "generated": ({"kind": "generated"}, {DEFAULT: [1], SINGLE: [1], WIDE: [1]}),
    "guided": ({"kind": "generated", **GUIDED}, {DEFAULT: [2], SINGLE: [], WIDE: [2]}),
    "masked and guided": (GUIDED, {DEFAULT: [2, 2], SINGLE: [], WIDE: [4]}),
    "three queries": ({"queries": 3, "kind": "generated"}, {DEFAULT: [2, 1], SINGLE: 3 * [1], WIDE: [3]}),
    "three masks": ({"queries": 3}, {DEFAULT: [2, 2, 2], SINGLE: 6 * [1], WIDE: [3, 3]}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batches", [DEFAULT, SINGLE, WIDE], ids=["default", "single", "wide"])
def test_rows_share_loops_as_far_as_the_engines_allow(
    bundles: dict[tuple[Range, Range], Path],
    machine: Machine,
    host: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    batches: tuple[Range, Range],
) -> None:
    """At most four rows go together; without a second row, guidance asks twice a step."""
    options, loops = CASES[case]
    with opened(bundles[batches]) as pipeline:
        seen = loops_seen(pipeline, monkeypatch)
        assert_equal(separated(pipeline, **options), separated(host, **options))
        assert seen == loops[batches]


@pytest.mark.parametrize("case", CASES)
def test_rows_share_loops_on_cuda(
    on_cuda: Pipeline, host: Pipeline, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    options, loops = CASES[case]
    seen = loops_seen(on_cuda, monkeypatch)
    for _ in range(2):  # the second time on the same sessions and addresses
        assert_equal(separated(on_cuda, **options), separated(host, **options))
    assert seen == 2 * loops[WIDE]


def test_a_warm_masked_clip_launches_its_loop_once_and_a_guided_one_too(
    bundles: dict[tuple[Range, Range], Path], machine: Machine
) -> None:
    # log_mel, encode_mixture, posterior, velocity_mixture, velocity_text, what stays the same in the loop,
    # the loop, decode_latent; a generated clip has the vocoder too
    with opened(bundles[DEFAULT]) as pipeline:
        cases: list[tuple[dict[str, Any], int]] = [({}, 8), ({"kind": "generated", **GUIDED}, 9)]
        for options, launches in cases:
            separator = Separator(pipeline, cache=False)
            separator.warm_up(**options)
            memory, before = len(machine.cuda.memory), machine.cuda.launches
            separator.separate(normal(3, 9000), 16000, "rain", **options)
            # the text encoder runs for every text that is new
            assert machine.cuda.launches - before == launches + 2, options
            assert len(machine.cuda.memory) == memory, "there was something left to prepare"


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("backend", ["tensorrt", "cuda", "low memory"])
def test_rows_have_a_text_and_a_mixture_each(
    bundles: dict[tuple[Range, Range], Path],
    machine: Machine,
    on_cuda: Pipeline,
    host: Pipeline,
    backend: str,
    guided: bool,
) -> None:
    """Windows of several requests may go together: each row is what it is alone."""
    mixtures, rows = clip(2), [1, 0, 1]
    texts = normal(9, 3, 50, WIDTH)
    masks = (np.arange(50) < np.array([[3], [9], [50]])).astype(np.float32)
    noises = normal(10, 2, *mixtures.noise.shape[1:]), normal(11, 2, *mixtures.noise.shape[1:])
    away = Guidance(normal(12, 1, 50, WIDTH), np.ones((1, 50), np.float32), np.array([1, 2, 3], np.float32))
    given = Clip(mixtures.waveform, *noises, texts, masks, rows, away if guided else None)
    alone = []
    for row, mixture in enumerate(rows):
        one, text = slice(mixture, mixture + 1), slice(row, row + 1)
        mine = Clip(mixtures.waveform[one], noises[0][one], noises[1][one], texts[text], masks[text])
        if guided:
            mine = replace(mine, guidance=away._replace(scale=away.scale[text]))
        alone.append(host.run(mine, 4, "ab2"))
    told: list[tuple[int, int]] = []
    with opened(bundles[WIDE]) as on_tensorrt:
        pipeline = on_cuda if backend == "cuda" else on_tensorrt
        pipeline.low_memory = backend == "low memory"
        found = pipeline.run(given, 4, "ab2", lambda *done: told.append(done))
    assert told == [(step, 4) for step in range(1, 5)]
    assert np.allclose(found.log_mel, np.concatenate([one.log_mel for one in alone]), atol=1e-5)
    assert np.allclose(found.waveform, np.concatenate([one.waveform for one in alone]), atol=1e-5)
    assert len(found.mixture) == 2
    other = host.run(replace(given, guidance=None if guided else away), 4, "ab2")
    assert np.allclose(other.log_mel[0], found.log_mel[0], atol=1e-5), "a guidance of 1 is none"
    assert not np.allclose(other.log_mel[1:], found.log_mel[1:], atol=1e-3)


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("backend", ["tensorrt", "cuda"])
def test_clips_that_are_joined_give_each_what_it_gives_alone(
    bundles: dict[tuple[Range, Range], Path],
    machine: Machine,
    on_cuda: Pipeline,
    host: Pipeline,
    backend: str,
    guided: bool,
) -> None:
    clips = [clip(2, 0), clip(1, 20)]
    if not guided:
        texts, masks = normal(9, 3, 50, WIDTH), np.ones((1, 50), np.float32)
        clips.append(replace(clip(1, 30), text=texts, mask=masks, mixtures=[0, 0, 0]))
    else:
        aways = [Guidance(normal(seed, 1, 50, WIDTH), clips[0].mask, normal(seed, 1)) for seed in (12, 13)]
        clips = [replace(each, guidance=away) for each, away in zip(clips, aways, strict=True)]
    with opened(bundles[WIDE]) as on_tensorrt:
        pipeline = on_cuda if backend == "cuda" else on_tensorrt
        parts = parted(pipeline.run(joined(clips), 4, "ab2"), clips)
    for part, each in zip(parts, clips, strict=True):
        expected = host.run(each, 4, "ab2")
        assert np.allclose(part.mixture, expected.mixture, atol=1e-5)
        assert np.allclose(part.log_mel, expected.log_mel, atol=1e-5)
        assert np.allclose(part.waveform, expected.waveform, atol=1e-5)


def test_steps_of_several_loops_are_counted_as_those_of_one(host: Pipeline) -> None:
    told: list[tuple[int, int]] = []
    given = replace(clip(), text=normal(9, 3, 50, WIDTH), mixtures=[0, 0, 0])
    host.run(given, 4, progress=lambda *done: told.append(done))
    assert told == [(step, 4) for step in range(1, 5)]


def test_rows_that_do_not_fit_are_refused(host: Pipeline) -> None:
    given = replace(clip(), text=normal(9, 3, 50, WIDTH), mixtures=[0, 0])
    with pytest.raises(ValueError, match="text has batch 3: give batch 2 or 1"):
        host.run(given, 1)


def test_engines_without_guidance_in_the_loop_still_guide(
    bundles: dict[tuple[Range, Range], Path],
    machine: Machine,
    host: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Engines of a version before."""
    bundle = Path(shutil.copytree(bundles[WIDE], tmp_path / "toy"))
    (sidecar,) = bundle.glob("engines/*/engines.json")
    content = json.loads(sidecar.read_text(encoding="utf-8"))
    del content["engines"]["guide"], content["loop_batch"]
    sidecar.write_text(json.dumps(content), encoding="utf-8")
    with opened(bundle) as pipeline:
        seen = loops_seen(pipeline, monkeypatch)
        assert_equal(separated(pipeline, **GUIDED), separated(host, **GUIDED))
        assert seen == []


def test_engines_are_built_for_the_rows_that_the_bundle_gives_by_default() -> None:
    pair = Range(1, 2, 2)
    assert default_batches(MASKED) == (ONE, pair)
    assert default_batches(MODEL) == default_batches(replace(MASKED, default_kind="generated")) == (ONE, ONE)
    assert default_batches(replace(MASKED, complement=None)) == (ONE, ONE)
