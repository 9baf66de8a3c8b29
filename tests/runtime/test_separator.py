"""Properties of a separation of any audio: length, level, rate, channels, residual, repeatability."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowsep_runtime import (
    AudioError,
    BackendError,
    BundleError,
    FlowSepWarning,
    OptionError,
    Pipeline,
    QueryError,
    Separation,
    Separator,
)
from flowsep_runtime import separator as separator_module
from flowsep_runtime.options import JOININGS, KINDS
from tests.runtime.toy_bundle import MODEL, Reference

CLIP, RATE = MODEL.clip_samples, MODEL.sample_rate


def noise(*shape: int, level: float = 0.3, seed: int = 0) -> Any:
    return (level * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@example(rate=192_000, seconds=0.0, channels=None, level=1.0, offset=0.0, kind="masked")
@example(rate=1000, seconds=2.0, channels=6, level=1e30, offset=0.0, kind="masked")
@example(rate=44_100, seconds=1.5, channels=2, level=1e-5, offset=0.5, kind="masked")
@given(
    rate=st.integers(1000, 192_000),
    seconds=st.floats(0, 1.5),
    channels=st.none() | st.integers(1, 3),
    level=st.floats(1e-4, 10),
    offset=st.floats(-1, 1),
    kind=st.sampled_from(KINDS),
)
def test_any_audio_keeps_its_shape_and_splits_without_loss(
    separator: Separator,
    rate: int,
    seconds: float,
    channels: int | None,
    level: float,
    offset: float,
    kind: Any,
) -> None:
    samples = max(1, int(rate * seconds))
    audio = noise(*((samples,) if channels is None else (samples, channels)), level=level) + np.float32(
        offset
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlowSepWarning)  # a single sample is as silent as a constant
        result = separator.separate(audio, rate, "dog barking", steps=1, kind=kind)
        again = separator.separate(audio, rate, "dog barking", steps=1, kind=kind)
    assert result.sample_rate == rate
    for track in (result.target, result.residual):
        assert track.shape == audio.shape
        assert track.dtype == np.float32
        assert np.isfinite(track).all()
    peak = float(np.abs(audio).max())
    if kind == "masked":
        assert np.abs(result.target + result.residual - audio).max() <= 1e-6 * peak
    assert result.target.tobytes() == again.target.tobytes()
    assert result.residual.tobytes() == again.residual.tobytes()


def chain(reference: Reference, clip: Any, query_ids: list[int], steps: int, seed: int) -> Any:
    """The published road in numpy for one clip at the model's rate, with the documented order of draws."""
    sound = clip - clip.mean()
    gain = 0.5 / (np.abs(sound).max() + 1e-8)
    waveform = np.zeros((1, CLIP), np.float32)
    waveform[0, : len(clip)] = sound * gain
    generator = np.random.default_rng(seed)
    posterior, start = (generator.standard_normal((1, 8, 16, 16), np.float32) for _ in range(2))
    mean, std = reference.encode_mixture(reference.log_mel(waveform))
    ids, mask = np.zeros((2, 1, 50), np.int64)
    ids[0, : len(query_ids)], mask[0, : len(query_ids)] = query_ids, 1
    text = reference.encode_text(ids, mask)
    latent = reference.euler(start, mean + std * posterior, text, mask, steps)
    return reference.vocode(reference.decode_latent(latent))[0, : len(clip)] / gain


@pytest.mark.parametrize("samples", [CLIP, CLIP - 1, 777])
def test_one_clip_equals_the_published_chain(
    separator: Separator, reference: Reference, samples: int
) -> None:
    clip = noise(samples) + np.float32(0.1)
    found = separator.separate(clip, RATE, "dog barking", steps=4, seed=7).target
    expected = chain(reference, clip, [3, 4, 1], 4, 7)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_steps_default_to_the_bundles(separator: Separator) -> None:
    audio = noise(4000)
    by_default = separator.separate(audio, RATE, "rain").target
    assert np.array_equal(
        by_default, separator.separate(audio, RATE, "rain", steps=MODEL.default_steps).target
    )
    assert not np.array_equal(by_default, separator.separate(audio, RATE, "rain", steps=1).target)


@pytest.mark.parametrize("change", [{"seed": 1}, {"query": "dog barking"}])
def test_another_seed_or_query_gives_another_result(separator: Separator, change: dict[str, Any]) -> None:
    options: dict[str, Any] = {"query": "rain", "seed": 0, "steps": 2}
    audio = noise(4000)
    first = separator.separate(audio, RATE, **options).target
    assert not np.array_equal(first, separator.separate(audio, RATE, **options | change).target)


@pytest.mark.parametrize("gain", [1e-3, 4.0])
def test_the_target_follows_the_mixtures_level(separator: Separator, gain: float) -> None:
    audio = noise(6000)
    plain = separator.separate(audio, RATE, "rain").target
    scaled = separator.separate(audio * np.float32(gain), RATE, "rain").target
    assert np.linalg.norm(scaled / gain - plain) <= 1e-3 * np.linalg.norm(plain)


def test_an_offset_changes_nothing_but_the_residual(separator: Separator) -> None:
    audio = noise(6000)
    plain, shifted = (separator.separate(audio + np.float32(offset), RATE, "rain") for offset in (0, 0.25))
    assert np.linalg.norm(shifted.target - plain.target) <= 1e-4 * np.linalg.norm(plain.target)
    assert np.abs(shifted.residual - plain.residual - np.float32(0.25)).max() <= 1e-4


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_each_channel_is_what_it_would_be_alone(separator: Separator, rate: int) -> None:
    audio = noise(30_000, 6) * np.array([1, 0.1, 0, 1, 1, 1], np.float32)
    audio[:, 5] = audio[:, 0]
    together = separator.separate(audio, rate, "dog barking", steps=2)
    assert not together.target[:, 2].any()
    assert np.array_equal(together.target[:, 0], together.target[:, 5])
    for channel in (0, 1, 3, 4):
        alone = separator.separate(audio[:, channel], rate, "dog barking", steps=2)
        scale = np.abs(alone.target).max()
        assert np.abs(together.target[:, channel] - alone.target).max() <= 1e-4 * scale
        assert np.abs(together.residual[:, channel] - alone.residual).max() <= 1e-4 * scale


def test_long_audio_is_joined_from_windows(separator: Separator, reference: Reference) -> None:
    audio = noise(3 * CLIP)
    found = separator.separate(audio, RATE, "rain", steps=2).target
    first = chain(reference, audio[:CLIP], [5, 1], 2, 0)
    alone = CLIP - CLIP // 2  # the second window cannot start before
    assert np.linalg.norm(found[:alone] - first[:alone]) <= 1e-5 * np.linalg.norm(first[:alone])
    blocks = np.sqrt(np.mean(found.reshape(-1, 1024) ** 2, axis=1))
    assert blocks.min() > 0.3 * blocks.max()


@pytest.mark.parametrize("windows", JOININGS)
def test_silence_between_sounds_runs_no_model_and_moves_no_draw(separator: Separator, windows: Any) -> None:
    audio = noise(4 * CLIP)
    quiet = audio.copy()
    quiet[: 2 * CLIP] = 0
    seen: list[tuple[int, int]] = []
    options: dict[str, Any] = {"steps": 2, "windows": windows}
    found = separator.separate(
        quiet, RATE, "rain", progress=lambda *done: seen.append(done), **options
    ).target
    whole = separator.separate(audio, RATE, "rain", **options).target
    assert not found[:CLIP].any()
    assert np.abs(found[3 * CLIP :] - whole[3 * CLIP :]).max() <= 1e-6 * np.abs(whole).max()
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    "audio", [np.zeros(5000), np.full((5000, 2), 0.7), np.full(5000, 1e-42), np.array([0.3])], ids=str
)
def test_silence_in_is_silence_out_with_a_warning(separator: Separator, audio: Any) -> None:
    seen: list[tuple[int, int]] = []
    with pytest.warns(FlowSepWarning, match="silent"):
        result = separator.separate(audio, 44_100, "rain", progress=lambda *done: seen.append(done))
    assert seen and seen[-1][0] == seen[-1][1]
    assert not result.target.any()
    assert np.array_equal(result.residual, audio.astype(np.float32))
    assert set(result.timings) == {"mask"}


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.array([0.0, np.nan, 0.1]), "NaN"),
        (np.array([0.0, np.inf, 0.1]), "NaN or infinite"),
        (np.array([0.0, 1e300]), "NaN or infinite"),
        (np.zeros(0), "empty"),
        (np.zeros((0, 2)), "empty"),
        (np.zeros((5, 0)), "empty"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.float32(0.5), "shape"),
        (np.zeros(100, np.int16), "floating point"),
        (["a"], "floating point"),
    ],
)
def test_bad_audio_is_refused(separator: Separator, audio: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        separator.separate(audio, RATE, "rain")


@pytest.mark.parametrize("rate", [0, -1, 999, 1e9, float("nan")])
def test_bad_rates_are_refused(separator: Separator, rate: float) -> None:
    with pytest.raises(AudioError, match="sample rate"):
        separator.separate(noise(100), rate, "rain")


@pytest.mark.parametrize("options", [{"steps": 0}, {"solver": "guess"}, {"seed": -1}])
def test_bad_options_are_refused(separator: Separator, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        separator.separate(noise(100), RATE, "rain", **options)


@pytest.mark.parametrize("query", ["", "  \n", "half \ud800"])
def test_bad_queries_are_refused(separator: Separator, query: str) -> None:
    with pytest.raises(QueryError):
        separator.separate(noise(100), RATE, query)


def test_a_long_query_is_cut_with_a_warning(separator: Separator) -> None:
    for _ in range(2):  # the second comes from memory
        with pytest.warns(FlowSepWarning, match="50 tokens"):
            separator.separate(noise(100), RATE, "dog " * 5000, steps=1)


def test_a_query_is_encoded_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    run = pipeline.backend.run

    def counted(graph: str, inputs: Any) -> Any:
        calls.append(graph)
        return run(graph, inputs)

    monkeypatch.setattr(pipeline.backend, "run", counted)
    separator = Separator(pipeline, cache=False)
    for query in ("rain", "dog barking", "rain"):
        separator.separate(noise(100), RATE, query, steps=1)
    assert calls.count("encode_text") == 2


def test_timings_name_the_stages(separator: Separator) -> None:
    result = separator.separate(noise(RATE), 2 * RATE, "rain")
    stages = {
        "resample",
        "encode_text",
        "log_mel",
        "encode_mixture",
        "solve",
        "decode_latent",
        "vocode",
        "mask",
    }
    assert set(result.timings) == stages | {"load"}
    work = sum(result.timings[stage] for stage in stages)
    assert result.real_time_factor == pytest.approx(work / 0.5)


def test_numbers_that_are_not_finite_are_a_failure(
    separator: Separator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        separator.pipeline, "decode_latent", lambda latent: np.full((len(latent), 64, 64), np.nan, np.float32)
    )
    with pytest.raises(BackendError, match="not finite"):
        separator.separate(noise(100), RATE, "rain")


@pytest.mark.slow
def test_one_separator_serves_several_threads(toy_bundle: Path) -> None:
    separator = Separator.load(toy_bundle, threads=1)
    results: dict[int, Separation] = {}

    def work(index: int) -> None:
        results[index] = separator.separate(noise(9000, seed=index), RATE, "rain")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        alone = separator.separate(noise(9000, seed=index), RATE, "rain")
        assert np.array_equal(results[index].target, alone.target)


def test_a_package_without_its_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separator_module, "BUNDLED", tmp_path / "nano")
    with pytest.raises(BundleError, match="has no model"):
        Separator.load()


def test_a_copy_of_a_separator_opens_the_bundle_again(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy_bundle.parent)
    first = Separator.load(toy_bundle.name, threads=1, low_memory=True, cache=False)
    content = pickle.dumps(first)
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(content)
    assert copy.pipeline.backend.name == first.pipeline.backend.name
    assert copy.pipeline.low_memory and copy.pipeline.precision == "exact"
    audio = noise(16000)
    assert len(content) < 1000
    assert np.array_equal(
        copy.separate(audio, 16000, "rain").target, first.separate(audio, 16000, "rain").target
    )


def test_what_was_not_loaded_from_a_bundle_is_not_copied(pipeline: Pipeline) -> None:
    made = Pipeline(pipeline.folder, pipeline.manifest, pipeline.backend)
    with pytest.raises(TypeError, match=r"not opened by Pipeline\.load"):
        pickle.dumps(Separator(made))


def _target(separator: Separator) -> Any:
    return separator.separate(noise(16000), 16000, "rain", steps=1).target


@pytest.mark.slow
def test_a_separator_goes_to_the_processes_of_a_pool(separator: Separator) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert np.array_equal(pool.submit(_target, separator).result(), _target(separator))
