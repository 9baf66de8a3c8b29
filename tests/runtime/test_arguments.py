"""Wrong arguments give one sentence, and never reach a C library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowsep_runtime import AudioError, FlowSepError, OptionError, QueryError, Separator
from flowsep_runtime.audio.resampling import BlockResampler, resampled

GOOD = np.random.default_rng(0).uniform(-0.5, 0.5, (2000, 2)).astype(np.float32)


@pytest.mark.parametrize("samples", [65, 10_000, 50_000, 1 << 20])
def test_channels_first_is_named_and_reaches_no_resampler(
    separator: Separator, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    """Channels first, as in librosa: soxr overflows its stack with some ten thousand channels."""
    monkeypatch.setattr("soxr.resample", lambda *_: pytest.fail("reached soxr"))
    audio = np.zeros((2, samples), np.float32)
    sentence = rf"has 2 samples of {samples} channels: .*at most 64 channels, so transpose"
    with pytest.raises(AudioError, match=sentence):
        separator.separate(audio, 44100, "rain")
    with pytest.raises(AudioError, match=sentence):
        list(separator.stream([audio], 44100, "rain"))


def test_as_many_channels_as_are_allowed_are_separated(separator: Separator) -> None:
    audio = np.tile(GOOD[:, :1], (1, 64))
    assert separator.separate(audio, 44100, "rain", steps=1).target.shape == (2000, 64)


@pytest.mark.parametrize("channels", [1, 64, 65, 1000])
def test_any_number_of_columns_is_resampled_as_each_alone(channels: int) -> None:
    """Queries times channels may be many."""
    samples = np.random.default_rng(0).uniform(-1, 1, (3000, channels)).astype(np.float32)
    length = 1088
    stream = BlockResampler(44100, 16000, channels)
    together = np.concatenate(
        [stream.push(samples[:1000]), stream.push(samples[1000:]), stream.finish(length)]
    )
    for column in {0, channels // 2, channels - 1}:
        alone = resampled(samples[:, column : column + 1], 44100, 16000, length)
        assert np.allclose(together[:, column : column + 1], alone, atol=1e-6)
        assert np.array_equal(resampled(samples, 44100, 16000, length)[:, column : column + 1], alone)


@pytest.mark.parametrize(
    "audio",
    [None, "mix.wav", [[1.0, 2.0], [3.0]], {}, np.float32(1), np.zeros((2, 3, 4)), GOOD.astype(object)],
)
def test_what_is_no_audio_is_said(separator: Separator, audio: Any) -> None:
    with pytest.raises(AudioError):
        separator.separate(audio, 16000, "rain")


@pytest.mark.parametrize("rate", [None, "16000", np.nan, np.inf, -16000, 0, 1e9, 16000j, True, [16000]])
def test_what_is_no_sample_rate_is_said(separator: Separator, rate: Any) -> None:
    with pytest.raises(AudioError, match="sample rate"):
        separator.separate(GOOD, rate, "rain")
    with pytest.raises(AudioError, match="sample rate"):
        separator.stream([GOOD], rate, "rain")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("steps", value) for value in (0, -1, 1.5, "3", np.nan, True, 10_001, 1 << 70)),
        *(("seed", value) for value in (-1, 0.5, "1", [1])),
        *(("guidance", value) for value in (np.nan, np.inf, "2", None, [1.5])),
        *(("window", value) for value in (0, -1, np.nan, 1e9, "1")),
        *(("windows", value) for value in (None, 3, "joined")),
        *(("solver", value) for value in ("eulers", 5)),
    ],
)
def test_options_out_of_range_are_named(separator: Separator, name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"(?i){name}"):
        separator.separate(GOOD, 16000, "rain", **{name: value})


@pytest.mark.parametrize("query", [None, 5, b"rain", ["rain", None], [], "", [" "]])
def test_what_is_no_query_is_said(separator: Separator, query: Any) -> None:
    for call in (separator.separate, separator.separate_all):
        with pytest.raises(QueryError):
            call(GOOD, 16000, query)
    with pytest.raises(QueryError):
        separator.stream([GOOD], 16000, query)
    with pytest.raises(QueryError):
        separator.separate(GOOD, 16000, "rain", guidance=2, negative=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [0, -1, 1.5, "2"])
def test_what_is_no_number_of_channels_is_said(separator: Separator, channels: Any) -> None:
    with pytest.raises(FlowSepError, match="channels must be"):
        separator.warm_up(channels)


def test_numpys_own_numbers_are_numbers(separator: Separator) -> None:
    plain = separator.separate(GOOD, 16000, "rain", steps=1, seed=3)
    numbers: dict[str, Any] = {"steps": np.int64(1), "seed": np.uint8(3), "guidance": np.float32(1)}
    same = separator.separate(GOOD, float(np.float32(16000)), "rain", **numbers)
    assert np.array_equal(plain.target, same.target)
