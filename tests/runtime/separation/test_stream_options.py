"""Options of a long recording: queries, channels, guidance, window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowsep_runtime import AudioError, OptionError, Pipeline, QueryError, Separator
from tests.runtime.separation.test_stream import CLIP, RATE, noted
from tests.runtime.test_separator import noise
from tests.runtime.toy_bundle import Reference


def test_bad_options_are_refused_before_the_first_block(separator: Separator) -> None:
    for error, change in (
        (AudioError, {"sample_rate": 12}),
        (QueryError, {"query": ["rain", " "]}),
        (QueryError, {"query": []}),
        (OptionError, {"seed": -1}),
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
