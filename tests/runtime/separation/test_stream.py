"""Any length, in blocks: what a stream of parts promises, and what joint windows agree on."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowsep_runtime import AudioError, FlowSepWarning, Pipeline, Separator
from flowsep_runtime.options import JOININGS
from flowsep_runtime.separation.longform import GROUP
from flowsep_runtime.separation.run import OVERLAPS
from flowsep_runtime.solvers import SOLVERS
from tests.runtime.test_separator import noise
from tests.runtime.toy_bundle import MODEL, Reference

CLIP, RATE = MODEL.clip_samples, MODEL.sample_rate
FRAMES, FRAME = CLIP // 640, 640  # latent frames a window, samples a latent frame


def noted(notes: list[Any], new: Any, result: Any) -> Any:
    """The result; what came with it is written down."""
    notes.extend(new)
    return result


def cut(audio: Any, sizes: list[int]) -> Iterator[Any]:
    """Blocks of those sizes, over and over."""
    first = index = 0
    while first < len(audio):
        size = sizes[index % len(sizes)]
        yield audio[first : first + size]
        first, index = first + size, index + 1


def level_noise(samples: int, seed: int = 0) -> Any:
    """Noise whose mean and peak are the same in every latent frame, so in every window."""
    frames = np.clip(noise(-(-samples // FRAME), FRAME, level=0.15, seed=seed), -0.45, 0.45)
    frames[:, :2] = 0.5, -0.5
    frames[:, 2:] -= frames.mean(axis=1, keepdims=True) * np.float32(FRAME / (FRAME - 2))
    return frames.reshape(-1)[:samples].astype(np.float32)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@example(rate=16_000, seconds=0.64, sizes=[1024], channels=1, windows="cross-fade", queries=1, mono=False)
@example(rate=44_100, seconds=4.0, sizes=[7], channels=2, windows="joint", queries=2, mono=True)
@example(rate=44_100, seconds=3.3, sizes=[200_000], channels=2, windows="joint", queries=2, mono=False)
@given(
    rate=st.sampled_from([1000, 8000, 16_000, 22_050, 44_100, 48_000]) | st.integers(1000, 60_000),
    seconds=st.floats(0, 5),
    sizes=st.lists(st.integers(1, 30_000), min_size=1, max_size=4),
    channels=st.integers(1, 2),
    windows=st.sampled_from(JOININGS),
    queries=st.integers(1, 2),
    mono=st.booleans(),
)
def test_parts_are_together_the_whole(
    separator: Separator,
    rate: int,
    seconds: float,
    sizes: list[int],
    channels: int,
    windows: Any,
    queries: int,
    mono: bool,
) -> None:
    audio = noise(max(1, int(rate * seconds)), channels) + np.float32(0.1)
    names = ["rain", "dog barking"][:queries]
    options: dict[str, Any] = {"steps": 1, "windows": windows, "mono": mono}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlowSepWarning)
        whole = separator.separate_all(audio, rate, names, **options)
        parts = list(separator.stream(cut(audio, sizes), rate, names, **options))
    assert [part.start for part in parts] == list(np.cumsum([0, *(len(part.mixture) for part in parts[:-1])]))
    assert np.array_equal(np.concatenate([part.mixture for part in parts]), audio)
    for query, expected in enumerate(whole):
        target = np.concatenate([part.targets[query] for part in parts])
        residual = np.concatenate([part.residuals[query] for part in parts])
        assert target.shape == residual.shape == audio.shape
        scale = float(np.abs(audio).max())
        assert np.abs(target - expected.target).max() <= 1e-6 * scale
        assert np.abs(residual - expected.residual).max() <= 1e-5 * scale
        if mono:
            assert (target == target[:, :1]).all()


def in_one_piece(reference: Reference, audio: Any, solver: str, steps: int, seed: int) -> Any:
    """The toy model over a whole recording at once: it looks at every latent frame by itself."""
    padded = np.zeros(-(-len(audio) // FRAME) * FRAME, np.float32)
    padded[: len(audio)] = audio
    frames, gain = len(padded) // FRAME, np.float32(0.5) / (np.abs(audio).max() + np.float32(1e-8))
    generator = np.random.default_rng(seed)
    shape = (1, 8, FRAMES, 16)
    drawn = [[generator.standard_normal(shape, np.float32) for _ in range(2)] for _ in range(frames)]
    posterior, start = (np.concatenate(each, axis=2)[:, :, :frames] for each in zip(*drawn, strict=True))
    mean, std = reference.encode_mixture(reference.log_mel(padded[None] * gain))
    ids, mask = np.zeros((2, 1, 50), np.int64)
    ids[0, :2], mask[0, :2] = [5, 1], 1
    text = reference.encode_text(ids, mask)
    times = SOLVERS[solver].times(steps)

    def velocity(x: Any, k: int) -> Any:
        return reference.velocity(x, times[k], mean + std * posterior, text, mask)

    *_, x = SOLVERS[solver].integrate(velocity, start, steps)
    return reference.vocode(reference.decode_latent(x))[0, : len(audio)] / gain


@pytest.mark.parametrize("solver", ["euler", "midpoint", "euler-start", "ab2"])
@pytest.mark.parametrize("samples", [CLIP + FRAME, 3 * CLIP + 5 * FRAME, (2 * GROUP + 3) * CLIP])
def test_joint_windows_are_the_model_over_everything_at_once(
    separator: Separator, reference: Reference, samples: int, solver: str
) -> None:
    audio = level_noise(samples)
    found = separator.separate(audio, RATE, "rain", steps=3, solver=solver, seed=4, windows="joint").target
    expected = in_one_piece(reference, audio, solver, 3, 4)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("solver", ["euler", "midpoint", "ab2"])
def test_a_group_keeps_the_frames_that_the_last_one_decided(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    """Even if the network never said the same twice."""
    pipeline = Pipeline.load(toy_bundle, "cpu", threads=1)
    random = np.random.default_rng(0)
    decoded: list[Any] = []
    decode = pipeline.decode_latent
    monkeypatch.setattr(
        pipeline, "velocity_from", lambda x, *rest: random.standard_normal(x.shape, np.float32)
    )
    monkeypatch.setattr(pipeline, "decode_latent", lambda z: noted(decoded, z, decode(z)))
    audio = level_noise((2 * GROUP) * CLIP)
    Separator(pipeline).separate(audio, RATE, "rain", steps=3, solver=solver, windows="joint")
    overlap = int(FRAMES * OVERLAPS["joint"])
    starts = [0]
    while (starts[-1] + FRAMES) * FRAME < len(audio):
        starts.append(min(starts[-1] + FRAMES - overlap, len(audio) // FRAME - FRAMES))
    assert len(starts) == len(decoded) > 2 * GROUP
    for number in range(1, len(starts)):
        shared = starts[number - 1] + FRAMES - starts[number]
        assert np.array_equal(decoded[number - 1][:, -shared:], decoded[number][:, :shared])


def test_quiet_and_loud_windows_each_come_back_at_their_level(separator: Separator) -> None:
    audio = level_noise(8 * CLIP)
    loudness = np.repeat(np.array([1, 1, 0.01, 0.01, 1, 1, 3, 3], np.float32), CLIP)
    plain, found = (
        separator.separate(each, RATE, "rain", steps=1, windows="joint").target
        for each in (audio, audio * loudness)
    )
    for inner in (slice(0, CLIP), slice(int(3.1 * CLIP), int(3.6 * CLIP)), slice(7 * CLIP, 8 * CLIP)):
        expected = (plain * loudness)[inner]
        assert np.linalg.norm(found[inner] - expected) <= 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("windows", JOININGS)
def test_silence_in_a_long_recording_stays_silent_and_runs_no_model(
    pipeline: Pipeline, windows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    encode = pipeline.encode_mixture
    monkeypatch.setattr(pipeline, "encode_mixture", lambda m: noted(rows, [len(m)], encode(m)))
    audio = np.stack([level_noise(12 * CLIP), np.zeros(12 * CLIP, np.float32)], axis=1)
    audio[3 * CLIP : 9 * CLIP] = 0
    found = Separator(pipeline).separate(audio, RATE, "rain", steps=1, windows=windows)
    assert not found.target[4 * CLIP : 8 * CLIP].any()
    assert not found.target[:, 1].any() and not found.residual[:, 1].any()
    assert found.target[: 2 * CLIP, 0].any() and found.target[10 * CLIP :, 0].any()
    assert sum(rows) <= 9


def test_a_silent_stream_warns_and_runs_no_model(separator: Separator) -> None:
    blocks = (np.full((5000, 2), 0.25) for _ in range(12))
    with pytest.warns(FlowSepWarning, match="silent"):
        parts = list(separator.stream(blocks, 44_100, "rain"))
    assert not any(part.targets[0].any() for part in parts)
    assert sum(len(part.mixture) for part in parts) == 60_000


def test_parts_come_before_the_input_is_over(separator: Separator) -> None:
    taken = 0

    def blocks() -> Iterator[Any]:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield noise(CLIP, 2, seed=number)

    stream = separator.stream(blocks(), RATE, "rain", steps=1)
    first = next(stream)
    assert first.start == 0
    assert taken <= GROUP + 4
    stream.close()


def test_an_abandoned_stream_frees_its_resources(separator: Separator) -> None:
    closed: list[bool] = []

    def blocks() -> Iterator[Any]:
        try:
            while True:
                yield noise(CLIP)
        finally:
            closed.append(True)

    stream = separator.stream(blocks(), RATE, "rain", steps=1)
    part = next(stream)
    mixture = weakref.ref(part.mixture if part.mixture.base is None else part.mixture.base)
    del part, stream
    gc.collect()
    assert closed == [True]
    assert mixture() is None
    with separator.stream(blocks(), RATE, "rain", steps=1) as stream:
        next(stream)
    assert closed == [True, True]
    assert list(stream) == []


@pytest.mark.slow
def test_streams_and_threads_do_not_disturb_each_other(toy_bundle: Path) -> None:
    for low_memory in (False, True):
        separator = Separator.load(toy_bundle, threads=1, low_memory=low_memory)
        audios = [noise(3 * CLIP, seed=seed) for seed in range(3)]
        results: dict[int, Any] = {}

        def work(seed: int, stream: Any, results: Any = results) -> None:
            results[seed] = np.concatenate([part.targets[0] for part in stream])

        streams = [
            separator.stream(cut(audio, [5000]), RATE, "rain", steps=2, seed=seed)
            for seed, audio in enumerate(audios)
        ]
        threads = [threading.Thread(target=work, args=(seed, each)) for seed, each in enumerate(streams)]
        for thread in threads:
            thread.start()
        # One that is left half done holds up nobody.
        half = separator.stream(cut(audios[0], [5000]), RATE, "rain", steps=2)
        next(half)
        for thread in threads:
            thread.join()
        for seed, audio in enumerate(audios):
            alone = separator.separate(audio, RATE, "rain", steps=2, seed=seed)
            assert np.array_equal(results[seed][:, 0], alone.target)


@pytest.mark.slow
@pytest.mark.parametrize("windows", JOININGS)
def test_memory_does_not_grow_with_the_length(separator: Separator, windows: Any) -> None:
    def peak(clips: int) -> int:
        blocks = (noise(CLIP, 2, seed=number) for number in range(clips))
        tracemalloc.start()
        try:
            for _ in separator.stream(blocks, 44_100, "rain", steps=1, windows=windows):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(20)
    assert peak(100) <= 1.1 * peak(20)


def test_progress_counts_to_its_end(separator: Separator) -> None:
    audio = noise(5 * CLIP, 2)
    for samples in (len(audio), None):
        seen: list[tuple[int, int | None]] = []
        stream = separator.stream(
            cut(audio, [4000]),
            RATE,
            ["rain", "dog barking"],
            steps=2,
            samples=samples,
            progress=lambda *told: seen.append(told),  # noqa: B023
        )
        for _ in stream:
            pass
        windows = 1 + -(-4 * FRAMES // (FRAMES - int(FRAMES * OVERLAPS["joint"])))
        assert seen[-1] == (windows * 2 * 2, samples and windows * 2 * 2)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert {"solve", "vocode", "mask"} <= set(stream.timings)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "empty"),
        ([np.zeros(0), np.zeros((0, 2))], "empty"),
        ([np.zeros(5), np.array([np.nan])], "NaN"),
        ([np.zeros((5, 2)), np.zeros((5, 1))], "1 channels and those before it 2"),
        ([np.zeros(5, np.int16)], "floating point"),
    ],
)
def test_bad_blocks_are_refused_when_they_come(separator: Separator, blocks: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        list(separator.stream(blocks, RATE, "rain"))
