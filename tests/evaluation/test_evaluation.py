"""Scores of separators that are known: perfect, lazy, wrong, broken."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from flowsep_eval import evaluate, read_manifest
from flowsep_eval.ceiling import masked_by_autoencoder, through_autoencoder_and_vocoder
from flowsep_eval.evaluation import item_seed
from flowsep_eval.pictures import chosen
from flowsep_eval.scores import together
from flowsep_runtime import Separator
from flowsep_runtime.errors import AudioError, BackendError, FlowSepWarning, OptionError
from tests.evaluation.conftest import RATE, Floats, Pretender, tone, write_manifest

Pretend = Callable[[Callable[[Floats, str], Floats]], Pretender]


@pytest.fixture
def perfect(sounds: dict[str, Floats]) -> Callable[[Floats, str], Floats]:
    def answer(mixture: Floats, query: str) -> Floats:
        return next((sound for name, sound in sounds.items() if name in query), np.zeros_like(mixture))

    return answer


def test_a_perfect_separator_gets_perfect_scores(
    pretend: Pretend, perfect: Callable[[Floats, str], Floats], test_set: Path
) -> None:
    scores = evaluate(pretend(perfect), read_manifest(test_set), ceiling=False)
    total = scores.overall()
    assert total["log_mel_distance"].mean == total["log_mel_ratio"].mean == 0
    assert total["query_accuracy"].mean == 1
    assert total["si_sdr"].mean == total["mel_si_sdr"].mean == 60
    assert total["level_error"].mean == pytest.approx(0, abs=1e-6)
    assert total["attenuation"].mean == pytest.approx(60)
    assert total["silenced"].mean == 1
    assert (total["query_accuracy"].count, total["silenced"].count) == (2, 1)
    assert list(scores.by_label()) == ["high", "low", "rain"]
    assert list(scores.by_query()) == ["a high tone", "a low tone", "rain"]
    assert scores.failed == 0


def test_returning_the_mixture_scores_as_the_mixture(pretend: Pretend, test_set: Path) -> None:
    total = evaluate(
        pretend(lambda mixture, query: mixture), read_manifest(test_set), ceiling=False
    ).overall()
    assert total["log_mel_ratio"].mean == 1
    assert total["si_sdr_improvement"].mean == total["mel_si_sdr_improvement"].mean == 0
    # two equally loud tones that are orthogonal
    assert total["si_sdr_mixture"].mean == pytest.approx(0, abs=0.1)
    assert total["level_error"].mean == pytest.approx(10 * math.log10(2), abs=0.1)
    assert (total["attenuation"].mean, total["silenced"].mean) == (0, 0)


def test_the_masked_mixture_is_scored_instead(
    pretend: Pretend, perfect: Callable[[Floats, str], Floats], test_set: Path
) -> None:
    pretender = pretend(perfect)
    items = read_manifest(test_set)
    total = evaluate(pretender, items, ceiling=False, kind="masked", guidance=2.0).overall()
    # the pretender's mask halves the mixture
    assert total["si_sdr_improvement"].mean == pytest.approx(0, abs=1e-4)
    assert total["attenuation"].mean == pytest.approx(20 * math.log10(2), abs=1e-3)
    for options in pretender.more:
        assert (options["guidance"], options["kind"]) == (2.0, "masked")


def test_the_wrong_sound_is_not_accurate(
    pretend: Pretend, perfect: Callable[[Floats, str], Floats], test_set: Path
) -> None:
    other = {"a high tone": "low", "a low tone": "high", "rain": "high"}
    scores = evaluate(pretend(lambda mixture, query: perfect(mixture, other[query])), read_manifest(test_set))
    total = scores.overall()
    assert total["query_accuracy"].mean == 0
    assert total["log_mel_distance_other"].mean == 0
    assert total["log_mel_distance"].mean > 4
    assert "query_accuracy_ceiling" in total


def test_silence_counts_as_inaccurate(pretend: Pretend, test_set: Path) -> None:
    total = evaluate(
        pretend(lambda mixture, _: 0 * mixture), read_manifest(test_set), ceiling=False
    ).overall()
    assert total["query_accuracy"].mean < 1
    assert total["si_sdr"].mean == -60
    assert all(math.isfinite(estimate.mean) for estimate in total.values())


def test_without_the_other_sound_there_is_no_accuracy(pretend: Pretend, test_set: Path) -> None:
    manifest = write_manifest(test_set, {"mixture": "mix.wav", "query": "low", "target": "low.wav"})
    scores = evaluate(pretend(lambda mixture, _: mixture), read_manifest(manifest), ceiling=False)
    assert "query_accuracy" not in scores.overall() and "log_mel_distance" in scores.overall()


def test_outputs_that_are_no_numbers_count_as_silence(pretend: Pretend, test_set: Path) -> None:
    def broken(mixture: Floats, query: str) -> Floats:
        if query == "rain":
            raise BackendError("The backend failed.")
        return mixture * np.float32(np.nan) if "low" in query else mixture

    scores = evaluate(pretend(broken), read_manifest(test_set), ceiling=False)
    high, low, rain = scores.scored
    assert scores.failed == 2
    assert high.failed is None and rain.failed == "The backend failed." and "not finite" in str(low.failed)
    assert low.values["si_sdr"] == -60 and rain.values["attenuation"] == pytest.approx(60)
    assert {score.item.id for _, score in chosen(scores)} == {high.item.id}


def test_a_model_that_always_fails_has_no_scores(pretend: Pretend, test_set: Path) -> None:
    with pytest.raises(BackendError, match="gave nothing for any of 3 queries"):
        evaluate(
            pretend(lambda mixture, _: mixture * np.float32(np.nan)), read_manifest(test_set), ceiling=False
        )


def test_a_silent_target_is_a_sound_that_is_not_there(pretend: Pretend, test_set: Path) -> None:
    soundfile.write(test_set.with_name("low.wav"), np.zeros(10240), RATE)
    manifest = write_manifest(test_set, {"mixture": "mix.wav", "query": "low", "target": "low.wav"})
    with pytest.warns(FlowSepWarning, match="line 1: the target is silent"):
        scores = evaluate(pretend(lambda mixture, _: mixture * np.float32(0.1)), read_manifest(manifest))
    assert scores.overall()["attenuation"].mean == pytest.approx(20, abs=1e-3)


@pytest.mark.filterwarnings("ignore::flowsep_runtime.errors.FlowSepWarning")
def test_a_silent_mixture_is_a_mistake(pretend: Pretend, test_set: Path) -> None:
    soundfile.write(test_set.with_name("mix.wav"), np.zeros(100), RATE)
    pretender = pretend(lambda mixture, _: mixture)
    with pytest.raises(AudioError, match="line 1: the mixture is silent"):
        evaluate(pretender, read_manifest(test_set))
    assert pretender.seeds == []


@pytest.mark.parametrize(("seconds", "rate"), [(0.3, RATE), (1.0, RATE), (0.64, 22050)])
def test_a_target_of_another_length_or_rate_is_fitted_with_a_warning(
    seconds: float, rate: int, pretend: Pretend, test_set: Path, recwarn: pytest.WarningsRecorder
) -> None:
    soundfile.write(test_set.with_name("high.wav"), tone(3000.0, seconds, rate), rate, "FLOAT")
    (item,) = read_manifest(test_set, limit=1)
    fitted = np.zeros(10240, np.float32)
    fitted[: round(seconds * RATE)] = tone(3000.0, seconds)[:10240]
    scores = evaluate(pretend(lambda mixture, query: fitted), [item], ceiling=False)
    assert scores.scored[0].values["log_mel_distance"] < 1.5
    warned = [str(warning.message) for warning in recwarn if warning.category is FlowSepWarning]
    assert bool(warned) == (seconds != 0.64)
    assert all("not as long as its mixture" in sentence for sentence in warned)


def test_every_item_has_a_seed_of_its_own_and_the_same_seed_the_same_scores(
    toy_bundle: Path, pretend: Pretend, test_set: Path
) -> None:
    items = read_manifest(test_set)
    pretender = pretend(lambda mixture, _: mixture)
    evaluate(pretender, items, seed=7, ceiling=False)
    assert pretender.seeds == [item_seed(7, number) for number in range(3)]
    assert len(set(pretender.seeds)) == 3
    separator = Separator.load(toy_bundle, threads=1)
    first, again, other = (evaluate(separator, items, steps=1, seed=seed).overall() for seed in (1, 1, 2))
    assert first == again != other


def test_the_ceiling_renders_the_targets_own_latent(toy_bundle: Path, test_set: Path) -> None:
    """Stage by stage, at the level that the mixture has in the model."""
    pipeline = Separator.load(toy_bundle, threads=1).pipeline
    target, mixture = tone(300.0), tone(300.0) + tone(3000.0)
    gain = np.float32(0.5) / np.abs(mixture - mixture.mean()).max()
    mean, _ = pipeline.encode_mixture(pipeline.log_mel((target - target.mean())[None] * gain))
    wanted = pipeline.vocode(pipeline.decode_latent(mean))[0, :10240] / gain
    found = through_autoencoder_and_vocoder(pipeline, target, mixture)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    long = through_autoencoder_and_vocoder(pipeline, np.tile(target, 3)[:25000], np.tile(mixture, 3)[:25000])
    assert long.shape == (25000,) and np.isfinite(long).all()
    # silence in the mixture stays silence
    assert not through_autoencoder_and_vocoder(pipeline, 0 * target, 0 * mixture).any()


def test_the_ceiling_of_a_mask_is_the_mixture_through_the_decoded_shares(
    toy_bundle: Path, test_set: Path
) -> None:
    pipeline = Separator.load(toy_bundle, threads=1).pipeline
    target, rest = tone(300.0), tone(3000.0)
    found = masked_by_autoencoder(pipeline, target, target + rest)
    assert found.shape == target.shape and np.isfinite(found).all()
    left = masked_by_autoencoder(pipeline, rest, target + rest)
    # the shares of two sounds add up to one: so do the masked mixtures, without the mean
    whole = target + rest
    np.testing.assert_allclose(found + left, whole - whole.mean(), atol=1e-4)
    assert not masked_by_autoencoder(pipeline, 0 * target, 0 * target).any()
    long = masked_by_autoencoder(pipeline, np.tile(target, 3)[:25000], np.tile(whole, 3)[:25000])
    assert long.shape == (25000,) and np.isfinite(long).all()


def test_sets_together_are_all_their_rows(pretend: Pretend, test_set: Path) -> None:
    scores = evaluate(pretend(lambda mixture, _: mixture), read_manifest(test_set), ceiling=False)
    both = together([scores, scores])
    assert both.overall()["query_accuracy"].count == 2 * scores.overall()["query_accuracy"].count


def test_an_empty_test_set_is_refused(pretend: Pretend) -> None:
    with pytest.raises(OptionError, match="test set is empty"):
        evaluate(pretend(lambda mixture, _: mixture), [])
