"""Windows, mask, tokenizer and output names, each for itself."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowsep_runtime import BundleError, Manifest, OptionError
from flowsep_runtime.app.naming import BESIDE, named, slug
from flowsep_runtime.app.outputs import check_outputs, replacing
from flowsep_runtime.app.recordings import Recording
from flowsep_runtime.separation.queries import Tokenizer
from flowsep_runtime.separation.windows import window_starts, window_weights


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(8, 600), st.data())
def test_windows_cover_everything_and_their_weights_add_up_to_one(
    samples: int, window: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(1, window // 2))
    starts = window_starts(samples, window, overlap)
    assert starts[0] == 0
    if samples <= window:
        assert starts == [0]
    else:
        assert starts[-1] == samples - window
        assert all(a < b <= a + window - overlap for a, b in pairwise(starts))
    positions = np.arange(samples) + 0.5
    weights = window_weights(starts, window, overlap, positions)
    assert weights.shape == (len(starts), samples)
    assert np.allclose(weights.sum(axis=0), 1)
    for start, weight in zip(starts, weights, strict=True):
        assert not weight[(positions < start) | (positions > start + window)].any()


def test_one_window_hands_over_to_the_next_smoothly() -> None:
    first, second = window_weights([0, 50], 100, 50, np.arange(150) + 0.5)
    assert np.all(np.diff(first) <= 0) and np.all(np.diff(second) >= 0)
    assert np.abs(np.diff(first)).max() < 0.04
    assert (first[:50] == 1).all() and (second[100:] == 1).all()


def test_tokens_are_padded_and_cut_with_the_end_kept(toy_bundle: Path) -> None:
    tokenizer = Tokenizer(toy_bundle, Manifest.read(toy_bundle))
    short = tokenizer("dog barking")
    assert short.input_ids.tolist() == [[3, 4, 1, *[0] * 47]]
    assert short.attention_mask.tolist() == [[1, 1, 1, *[0] * 47]]
    assert not short.truncated
    long = tokenizer("dog " * 60)
    assert long.input_ids.tolist() == [[*[3] * 49, 1]]
    assert long.attention_mask.all() and long.truncated


def test_the_empty_query_has_a_mask_of_ones(toy_bundle: Path) -> None:
    tokens = Tokenizer(toy_bundle, Manifest.read(toy_bundle))("")
    assert tokens.input_ids.tolist() == [[1, *[0] * 49]]
    assert tokens.attention_mask.tolist() == [[1] * 50]


def test_a_file_that_is_no_tokenizer_is_named(own_bundle: Path) -> None:
    manifest = Manifest.read(own_bundle)
    (own_bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(own_bundle, manifest)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("dog barking", "dog-barking"),
        ("  A dog, barking!  ", "a-dog-barking"),
        ("../../etc/passwd", "etc-passwd"),
        ("снег и дождь", "снег-и-дождь"),
        ("🐶🔊", "dog-face-speaker-with-three-sound-waves"),
        ("?!", "question-mark-exclamation-mark"),
        ("👩‍🚒", "woman-fire-engine"),
        ("snake_case__x", "snake-case--x"),
        ("\x00\n\t", "target"),
        ("word " * 100, "-".join(["word"] * 10) + "-569ed24c"),
        ("x" * 500, "x" * 51 + "-c38c2bf3"),
    ],
)
def test_a_query_becomes_a_part_of_a_file_name(query: str, name: str) -> None:
    assert slug(query) == name


def test_long_queries_that_begin_alike_have_names_of_their_own() -> None:
    names = {
        slug("the sound of a " + "very " * 12 + animal) for animal in ("big dog", "small dog", "big cat")
    }
    assert len(names) == 3 and all(len(name) <= 60 for name in names)


@given(
    st.text(max_size=300),
    st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=80),
)
def test_a_default_output_is_a_plain_name_that_fits(query: str, stem: str) -> None:
    path = named(BESIDE, Recording(Path("/music") / f"{stem}.wav"), query, 1)
    assert path.parent == Path()
    assert path.name.endswith(".wav")
    assert len(os.fsencode(path.name)) <= 255


def test_outputs_appear_together_or_not_at_all(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing([first, second]) as files:
        for file in files:
            file.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert first.read_text() == "old"
    with replacing([first, second]) as files:
        for file in files:
            file.write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    assert first.read_text() == second.read_text() == "new"


def test_an_output_that_is_a_link_writes_its_target(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    with replacing([link]) as (file,):
        file.write_text("new")
    assert link.is_symlink() and real.read_text() == "new"


def test_a_device_is_never_replaced(mixture: Path) -> None:
    with pytest.raises(OptionError, match="not a regular file"):
        check_outputs([Path("/dev/null")], mixture, force=True)
