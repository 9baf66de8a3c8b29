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

from flowsep_runtime import AudioError, FlowSepWarning, OptionError, Pipeline, QueryError, Separator
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


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun-end", "ab3-start"])
@pytest.mark.parametrize("samples", [CLIP + FRAME, 3 * CLIP + 5 * FRAME, (2 * GROUP + 3) * CLIP])
def test_joint_windows_are_the_model_over_everything_at_once(
    separator: Separator, reference: Reference, samples: int, solver: str
) -> None:
    audio = level_noise(samples)
    found = separator.separate(audio, RATE, "rain", steps=3, solver=solver, seed=4, windows="joint").target
    expected = in_one_piece(reference, audio, solver, 3, 4)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
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
            candidates=2,
            samples=samples,
            progress=lambda *told: seen.append(told),  # noqa: B023
        )
        for _ in stream:
            pass
        windows = 1 + -(-4 * FRAMES // (FRAMES - int(FRAMES * OVERLAPS["joint"])))
        assert seen[-1] == (windows * 2 * 2 * 2, samples and windows * 2 * 2 * 2)
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


def test_bad_options_are_refused_before_the_first_block(separator: Separator) -> None:
    for error, change in (
        (AudioError, {"sample_rate": 12}),
        (QueryError, {"query": ["rain", " "]}),
        (QueryError, {"query": []}),
        (OptionError, {"candidates": 0}),
        (OptionError, {"guidance": float("inf")}),
        (OptionError, {"negative": "wind"}),
        (OptionError, {"windows": "glued"}),
        (OptionError, {"window": 0}),
        (OptionError, {"window": 11}),
    ):
        options: dict[str, Any] = {"sample_rate": RATE, "query": "rain"} | change
        with pytest.raises(error):
            separator.stream(iter([]), **options)


def test_several_queries_are_what_each_is_alone_and_the_mixture_is_encoded_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    encode = pipeline.encode_mixture
    monkeypatch.setattr(pipeline, "encode_mixture", lambda m: noted(rows, [len(m)], encode(m)))
    separator = Separator(pipeline)
    audio, queries = noise(CLIP, 2), ["rain", "dog barking", "a man speaking"]
    together = separator.separate_all(audio, RATE, queries, steps=2)
    assert sum(rows) == 2
    for query, found in zip(queries, together, strict=True):
        alone = separator.separate(audio, RATE, query, steps=2)
        scale = np.abs(alone.target).max()
        assert np.abs(found.target - alone.target).max() <= 1e-5 * scale


@pytest.mark.parametrize("channels", [2, 3])
def test_mono_separates_the_mid_and_filters_all_channels_by_its_mask(
    separator: Separator, channels: int
) -> None:
    audio = noise(9000, channels) + np.linspace(-0.2, 0.2, channels, dtype=np.float32)
    found = separator.separate(audio, RATE, "rain", steps=1, mono=True)
    mid = separator.separate(audio.mean(axis=1), RATE, "rain", steps=1)
    assert np.array_equal(found.target, np.repeat(mid.target[:, None], channels, axis=1))
    # The constant of every channel stays in the residual; the mid's is the mean of theirs.
    assert np.allclose(found.residual.mean(axis=1), mid.residual, atol=1e-5)
    one = separator.separate(audio[:, :1], RATE, "rain", steps=1)
    assert np.array_equal(
        separator.separate(audio[:, :1], RATE, "rain", steps=1, mono=True).target, one.target
    )


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_guidance_goes_from_the_negative_query_towards_the_query(
    separator: Separator, reference: Reference, guidance: float
) -> None:
    """The toy's velocity is linear in what the text says, so that all of it may be worked out by hand."""
    audio = noise(CLIP)
    wanted, unwanted = (separator.separate(audio, RATE, query, steps=1) for query in ("rain", "dog barking"))
    found = separator.separate(audio, RATE, "rain", steps=1, guidance=guidance, negative="dog barking")
    if guidance == 0:
        assert np.allclose(found.target, unwanted.target, atol=1e-5 * np.abs(unwanted.target).max())
    else:
        assert not np.allclose(found.target, wanted.target, atol=1e-3 * np.abs(wanted.target).max())
    velocities: list[Any] = []
    pipeline = separator.pipeline
    plain = pipeline.velocity_from

    def watched(x: Any, *rest: Any) -> Any:
        velocities.append(len(x))
        return plain(x, *rest)

    pipeline.velocity_from = watched  # type: ignore[method-assign, assignment]
    try:
        separator.separate(audio, RATE, "rain", steps=2, guidance=2)
        separator.separate(noise(CLIP, 3), RATE, "rain", steps=1, guidance=2)
    finally:
        pipeline.velocity_from = plain  # type: ignore[method-assign]
    assert velocities == [2, 2, 4, 2]


def test_of_several_candidates_one_is_kept(separator: Separator, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = noise(5000, 2)
    alone = [separator.separate(audio, RATE, "rain", steps=1, seed=seed).target for seed in (7, 8, 9)]
    for wanted in range(3):
        costs = iter(np.repeat([float(number != wanted) for number in range(3)], 2))
        monkeypatch.setattr("flowsep_runtime.separation.joint.cost", lambda *mels: next(costs))  # noqa: B023
        found = separator.separate(audio, RATE, "rain", steps=1, seed=7, candidates=3).target
        assert np.allclose(found, alone[wanted], atol=1e-5 * np.abs(found).max())


def test_candidates_of_a_long_recording_agree_where_groups_meet(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.load(toy_bundle, "cpu", threads=1)
    random = np.random.default_rng(0)
    monkeypatch.setattr("flowsep_runtime.separation.joint.cost", lambda *mels: float(random.random()))
    audio = np.stack([level_noise(2 * GROUP * CLIP), level_noise(2 * GROUP * CLIP, seed=1)], axis=1)
    found = Separator(pipeline).separate_all(audio, RATE, ["rain", "dog barking"], steps=2, candidates=3)
    # The toy looks at every frame by itself: whichever candidate is kept, each frame is one of the three.
    alone = [
        Separator(pipeline).separate_all(audio, RATE, ["rain", "dog barking"], steps=2, seed=seed)
        for seed in range(3)
    ]
    for query, separation in enumerate(found):
        distances = [np.abs(separation.target - each[query].target).reshape(-1, FRAME * 2) for each in alone]
        closest = np.min([each.max(axis=1) for each in distances], axis=0)
        assert closest.max() <= 1e-4 * np.abs(separation.target).max()


def test_a_shorter_window_is_as_long_as_it_has_to_be(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: list[int] = []
    log_mel = pipeline.log_mel
    monkeypatch.setattr(pipeline, "log_mel", lambda w: noted(samples, [w.shape[1]], log_mel(w)))
    separator = Separator(pipeline)
    assert separator.separate(noise(3000), RATE, "rain", steps=1, window=3000 / RATE).target.shape == (3000,)
    assert samples == [5120]
    assert separator.separate(noise(20_000), RATE, "rain", steps=1, window=0.32).target.any()
    assert set(samples) == {5120}
