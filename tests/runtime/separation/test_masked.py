"""Masks from the model's spectrogram: shares of a mixture, and the mixture's samples through them."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowsep_runtime import OptionError, Pipeline, Separator
from flowsep_runtime.bundle.manifest import ModelEntry
from flowsep_runtime.device_pipeline import Clip
from flowsep_runtime.options import JOININGS, Options
from flowsep_runtime.separation.longform import GROUP
from flowsep_runtime.separation.shares import shares
from tests.runtime.separation.test_mask_filter import filtered, normal
from tests.runtime.separation.test_stream import cut, level_noise, noted
from tests.runtime.test_separator import noise
from tests.runtime.toy_bundle import MODEL, Reference, write_toy_bundle

CLIP, RATE = MODEL.clip_samples, MODEL.sample_rate
COMPLEMENT = "everything except {query}"


def knowing(folder: Path, **fields: Any) -> Path:
    """A toy bundle whose manifest has more fields of the model."""
    return write_toy_bundle(folder, model=dataclasses.replace(MODEL, **fields))


@pytest.fixture(scope="module")
def pairing(tmp_path_factory: pytest.TempPathFactory) -> Separator:
    """A separator whose bundle gives masks by default, of one evaluation and against the complement."""
    folder = tmp_path_factory.mktemp("pairing") / "toy"
    fields = {"default_kind": "masked", "complement": COMPLEMENT, "masked_steps": 1, "masked_solver": "mean"}
    return Separator(Pipeline.load(knowing(folder, **fields), "cpu", threads=1), cache=False)


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("mono", [False, True])
@pytest.mark.parametrize("seconds", [0.1, 1.7])
@pytest.mark.parametrize("bundle", ["plain", "pair"])
def test_target_and_residual_are_the_mixture_and_no_vocoder_runs(
    separator: Separator,
    pairing: Separator,
    monkeypatch: pytest.MonkeyPatch,
    bundle: str,
    channels: int | None,
    mono: bool,
    seconds: float,
) -> None:
    ours = separator if bundle == "plain" else pairing
    monkeypatch.setattr(ours.pipeline, "vocode", lambda m: pytest.fail("the vocoder ran"))
    shape = (int(44_100 * seconds),) + (() if channels is None else (channels,))
    audio = noise(*shape) + np.float32(0.1)
    found = ours.separate(audio, 44_100, "rain", kind="masked", mono=mono)
    assert found.target.shape == found.residual.shape == audio.shape
    assert found.target.any() and "vocode" not in found.timings
    assert np.abs(found.target + found.residual - audio).max() <= 1e-6 * np.abs(audio).max()


def by_hand(reference: Reference, audio: Any, queries: list[list[int]], complement: bool, rate: int) -> Any:
    """The mixture's samples through the masks that the toy model's means give, one window."""
    sound = audio - audio.mean()
    waveform = np.zeros((1, CLIP), np.float32)
    waveform[0, : len(audio)] = sound * (0.5 / (np.abs(sound).max() + 1e-8))
    posterior = np.random.default_rng(0).standard_normal((1, 8, 16, 16), np.float32)
    mixture_mel = reference.log_mel(waveform)
    mean, std = reference.encode_mixture(mixture_mel)
    log_mels = []
    for words in queries:
        ids, mask = np.zeros((2, 1, 50), np.int64)
        ids[0, : len(words)], mask[0, : len(words)] = words, 1
        text = reference.encode_text(ids, mask)
        latent = reference.velocity(np.zeros_like(mean), 0.0, mean + std * posterior, text, mask)
        log_mels.append(reference.decode_latent(latent)[0])
    masks = shares(np.stack(log_mels), mixture_mel[0], complement)
    return filtered(sound[:, None], masks.transpose(1, 0, 2)[:, None], rate)[:, 0]


def test_one_evaluation_of_query_and_complement_gives_the_mask(
    pairing: Separator, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = noise(CLIP - 500)
    rows: list[int] = []
    velocity = pairing.pipeline.velocity_from
    monkeypatch.setattr(
        pairing.pipeline, "velocity_from", lambda x, *rest: noted(rows, [len(x)], velocity(x, *rest))
    )
    found = pairing.separate(audio, RATE, "rain")
    assert rows == [2]  # one batch
    unknown = 2
    expected = by_hand(reference, audio, [[5, 1], [unknown, unknown, 5, 1]], True, RATE)[:, 0]
    assert np.abs(found.target - expected).max() <= 1e-5 * np.abs(audio).max()


def test_several_queries_share_the_mixture(pairing: Separator, reference: Reference) -> None:
    audio = noise(CLIP)
    found = pairing.separate_all(audio, RATE, ["rain", "dog barking"])
    words = [[5, 1], [3, 4, 1], [2, 2, 5, 1], [2, 2, 3, 4, 1]]
    expected = by_hand(reference, audio, words, True, RATE)
    for query, each in enumerate(found):
        assert np.abs(each.target - expected[:, query]).max() <= 1e-5 * np.abs(audio).max()
    (part,) = pairing.stream([audio], RATE, ["rain", "dog barking"])
    assert np.allclose(part.rest[:, 0] + found[0].target + found[1].target, audio, atol=1e-6)


@pytest.mark.parametrize("seconds", [0.5, 3.3])
def test_a_query_that_is_given_twice_is_one_sound(pairing: Separator, seconds: float) -> None:
    audio = noise(int(seconds * RATE))
    rain, dog = pairing.separate_all(audio, RATE, ["rain", "dog barking"])
    found = pairing.separate_all(audio, RATE, ["rain", "dog barking", "rain"])
    assert [np.array_equal(each.target, rain.target) for each in found] == [True, False, True]
    assert np.array_equal(found[1].target, dog.target)
    parts = list(pairing.stream([audio], RATE, ["rain", "dog barking", "rain"]))
    streamed = [np.concatenate([part.targets[number] for part in parts]) for number in range(3)]
    assert np.array_equal(streamed[0], streamed[2])
    rest = np.concatenate([part.rest for part in parts])
    assert np.allclose(
        rest + streamed[0] + streamed[1], np.concatenate([p.mixture for p in parts]), atol=1e-6
    )


@pytest.mark.parametrize("windows", JOININGS)
@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_samples_behind_the_last_window_are_part_of_the_result(
    pairing: Separator, windows: Any, rate: int
) -> None:
    # a whole number of the model's latent frames, and one sample more
    audio = 0.1 + 0.5 * noise(6 * CLIP * rate // RATE + 1)
    found = pairing.separate(audio, rate, "rain", windows=windows)
    assert found.target.shape == audio.shape and np.isfinite(found.target).all()
    assert np.abs(found.target + found.residual - audio).max() <= 1e-6


@pytest.mark.parametrize("windows", JOININGS)
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_stream_of_masks_is_the_whole(pairing: Separator, windows: Any, rate: int) -> None:
    audio = noise(int(3.3 * rate), 2)
    whole = pairing.separate(audio, rate, "rain", windows=windows)
    parts = list(pairing.stream(cut(audio, [3000, 20_000]), rate, "rain", windows=windows))
    for found, expected in (
        ([part.targets[0] for part in parts], whole.target),
        ([part.residuals[0] for part in parts], whole.residual),
    ):
        assert np.abs(np.concatenate(found) - expected).max() <= 1e-5
    assert sum(len(part.mixture) for part in parts) == len(audio)


@pytest.mark.parametrize("solver", ["mean", "euler"])
def test_joint_masks_are_those_of_the_model_over_everything_at_once(
    pairing: Separator, reference: Reference, solver: str
) -> None:
    """The toy looks at every latent frame by itself, and all windows have one level."""
    audio = level_noise((GROUP + 2) * CLIP)
    found = pairing.separate(audio, RATE, "rain", solver=solver, steps=1).target
    masks: list[Any] = []
    frames = len(audio) // 640
    generator = np.random.default_rng(0)
    drawn = [[generator.standard_normal((1, 8, 16, 16), np.float32) for _ in range(2)] for _ in range(frames)]
    posterior, start = (np.concatenate(each, axis=2)[:, :, :frames] for each in zip(*drawn, strict=True))
    mixture = reference.log_mel(audio[None] * np.float32(0.5 / (np.abs(audio).max() + 1e-8)))
    mean, std = reference.encode_mixture(mixture)
    for words in ([5, 1], [2, 2, 5, 1]):
        ids, mask = np.zeros((2, 1, 50), np.int64)
        ids[0, : len(words)], mask[0, : len(words)] = words, 1
        text = reference.encode_text(ids, mask)
        x = np.zeros_like(start) if solver == "mean" else start
        velocity = reference.velocity(x, 0.0, mean + std * posterior, text, mask)
        masks.append(reference.decode_latent(velocity if solver == "mean" else x + velocity)[0])
    share = shares(np.stack(masks), mixture[0], complements=True)
    expected = filtered(audio[:, None], share.transpose(1, 0, 2)[:, None], RATE)[:, 0, 0]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(audio).max()


@pytest.mark.parametrize("windows", JOININGS)
def test_silence_has_no_mask(pairing: Separator, windows: Any) -> None:
    audio = np.stack([level_noise(12 * CLIP), np.zeros(12 * CLIP, np.float32)], axis=1)
    audio[3 * CLIP : 9 * CLIP] = 0
    found = pairing.separate(audio, RATE, "rain", windows=windows)
    assert not found.target[4 * CLIP : 8 * CLIP].any() and not found.target[:, 1].any()
    assert found.target[: 2 * CLIP, 0].any() and found.target[10 * CLIP :, 0].any()


def test_a_short_window_is_enough_for_a_short_recording(pairing: Separator) -> None:
    audio = noise(3000)
    found = pairing.separate(audio, RATE, "rain", window=0.2)
    assert np.abs(found.target + found.residual - audio).max() <= 1e-6


def test_the_residual_of_a_generated_target_comes_from_the_spectrogram(separator: Separator) -> None:
    audio = noise(2 * CLIP, 2)
    generated = separator.separate(audio, RATE, "rain", kind="generated")
    masked = separator.separate(audio, RATE, "rain", kind="masked")
    assert np.allclose(generated.residual, masked.residual, atol=1e-6)
    assert not np.allclose(generated.target, masked.target, atol=1e-2)


def test_memory_and_progress_of_a_pair_count_both_sentences(pairing: Separator) -> None:
    seen: list[tuple[int, int]] = []
    pairing.separate(noise(3 * CLIP), RATE, "rain", progress=lambda *told: seen.append(told))
    assert seen[-1][0] == seen[-1][1]
    seen_both: list[tuple[int, int]] = []
    pairing.separate_all(
        noise(3 * CLIP), RATE, ["rain", "dog"], progress=lambda *told: seen_both.append(told)
    )
    assert seen_both[-1][0] == seen_both[-1][1] == 2 * seen[-1][0]


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        ({}, {}, (3, "euler", "generated")),
        ({}, {"kind": "masked"}, (3, "euler", "masked")),
        ({"default_kind": "masked"}, {}, (3, "euler", "masked")),
        ({"masked_steps": 1, "masked_solver": "mean"}, {}, (3, "euler", "generated")),
        ({"masked_steps": 1, "masked_solver": "mean"}, {"kind": "masked"}, (1, "mean", "masked")),
        # Another number of steps than the solver takes, or another solver: the flow's own.
        (
            {"masked_steps": 1, "masked_solver": "mean"},
            {"kind": "masked", "steps": 5},
            (5, "euler", "masked"),
        ),
        (
            {"masked_steps": 1, "masked_solver": "mean"},
            {"kind": "masked", "solver": "midpoint"},
            (3, "midpoint", "masked"),
        ),
        (
            {"masked_steps": 2, "masked_solver": "midpoint"},
            {"kind": "masked", "steps": 5},
            (5, "midpoint", "masked"),
        ),
        ({}, {"solver": "mean"}, (1, "mean", "generated")),
    ],
    ids=str,
)
def test_the_bundle_says_what_the_defaults_of_a_kind_are(
    fields: dict[str, Any], options: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    model: ModelEntry = dataclasses.replace(MODEL, **fields)
    resolved = Options(**options).resolved(model, "exact")
    assert (resolved.steps, resolved.solver, resolved.kind) == expected


def test_the_solver_of_the_mean_takes_one_step(separator: Separator) -> None:
    with pytest.raises(OptionError, match="takes 1 step and not 4"):
        separator.separate(noise(100), RATE, "rain", solver="mean", steps=4)


def test_the_pipeline_solves_for_the_mean_by_one_velocity(pipeline: Pipeline) -> None:
    latent, start = normal(2, 1, 8, 16, 16)
    text = normal(1, 50, MODEL.text_width)
    mask = np.ones((1, 50), np.float32)
    found = pipeline.solve(start, latent, text, mask, 1, "mean")
    assert np.array_equal(found, pipeline.velocity(np.zeros_like(start), 0.0, latent, text, mask))
    waveform = 0.3 * normal(1, CLIP, seed=4)
    clip = Clip(waveform, latent, start, text, mask)
    whole = pipeline.run(clip, 1, "mean")
    assert np.array_equal(pipeline.generate(clip, 1, "mean"), whole.waveform)
    assert np.array_equal(whole.mixture, pipeline.log_mel(waveform))
    quiet = pipeline.run(clip, 1, "mean", vocode=False)
    assert quiet.waveform.shape == (1, 0) and np.array_equal(quiet.log_mel, whole.log_mel)


def test_the_memory_of_a_stream_of_masks_does_not_grow_with_its_length(pairing: Separator) -> None:
    def peak(clips: int) -> int:
        blocks = (noise(CLIP, 2, seed=number) for number in range(clips))
        tracemalloc.start()
        try:
            for _ in pairing.stream(blocks, 44_100, "rain"):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(20)
    assert peak(80) <= 1.1 * peak(20)
