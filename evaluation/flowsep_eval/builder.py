"""A test set made of labelled recordings: mixtures of two classes at a given loudness, with a query each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowsep_eval.mel import SAMPLE_RATE, Floats
from flowsep_runtime.app.outputs import replacing
from flowsep_runtime.audio.writing import Encoding, write_audio
from flowsep_runtime.errors import OptionError, shown

if TYPE_CHECKING:
    from flowsep_train.sounds import SoundBank

MANIFEST = "manifest.jsonl"
AUDIO = "audio"
TRACKS = ("mixture", "target", "other")
FLAC = Encoding("FLAC", "PCM_16")

Phrasings = Literal["trained", "held-out"]
# Streams of random numbers that do not depend on each other: the same mixtures may be queried in other words.
ORDER, SOUNDS, WORDS = 0, 1, 2


@dataclass(frozen=True)
class Recipe:
    """Composition of a test set.

    Attributes:
        count: Number of queries.
        seconds: Length of a mixture.
        loudness: Level of the target relative to the other sound, in dB.
        absent: Query for a class that is not in the mixture.
        seed: Seed of all random choices.
    """

    count: int = 300
    seconds: float = 10.24
    loudness: float = 0.0
    absent: bool = False
    seed: int = 0


def build_test_set(
    sounds: Path,
    captions: Path,
    output: Path,
    split: str = "train",
    phrasings: Phrasings = "trained",
    recipe: Recipe | None = None,
    force: bool = False,
    progress: Callable[[], None] | None = None,
) -> list[str]:
    """Writes a test set: audio first, its manifest last.

    The queried classes take turns, so that each is tested equally often. Where both cover the same
    classes, the same seed gives the same mixtures for trained and for held-out phrasings.

    Args:
        sounds: Recordings, as `flowsep-train --sounds` takes them.
        captions: Table of label, caption, use (`train` or `held-out`), tab-separated.
        output: Folder of the test set.
        split: `train` or `test` recordings.
        phrasings: Which captions to ask by.
        recipe: What to make; None is 300 mixtures at 0 dB.
        force: Replace a test set that is there.
        progress: Called after every mixture.

    Returns:
        Classes that were left out because the table has no such caption for them.

    Raises:
        OptionError: If recordings or captions cannot be read or are too few, or the folder is taken.
    """
    recipe = recipe or Recipe()
    bank, queries = _materials(sounds, captions, split, phrasings)
    labels = [label for label in bank.labels if label in queries]
    needed = 3 if recipe.absent else 2
    if len(labels) < needed:
        raise OptionError(
            f"{shown(captions)} has {phrasings} captions for {len(labels)} of the classes in "
            f"{shown(sounds)}: a mixture needs {needed}."
        )
    _prepare(output, force)
    rows = []
    for number, label in enumerate(_turns(labels, recipe)):
        rows.append(_write_mixture(bank, labels, label, number, output, recipe))
        choice = int(np.random.default_rng([recipe.seed, WORDS, number]).integers(len(queries[label])))
        rows[-1]["query"] = queries[label][choice]
        if progress is not None:
            progress()
    with replacing([output / MANIFEST]) as (file,):
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return [label for label in bank.labels if label not in queries]


def _materials(
    sounds: Path, captions: Path, split: str, phrasings: Phrasings
) -> tuple[SoundBank, Mapping[str, Sequence[str]]]:
    try:
        from flowsep_train.mixtures import Captions
        from flowsep_train.sounds import SoundBank
    except ImportError as error:
        raise OptionError(
            f"Building a test set needs {error.name}: pip install 'flowsep-engine[eval]'."
        ) from None
    try:
        table = Captions.read(captions)
    except OSError as error:
        raise OptionError(f"{shown(captions)} cannot be read: {error.strerror}.") from None
    except (KeyError, ValueError):
        raise OptionError(
            f"{shown(captions)} is not a table of captions: its columns are label, caption and use,"
            " with tabs."
        ) from None
    try:
        bank = SoundBank(sounds, split)
    except (OSError, ValueError, KeyError) as error:
        raise OptionError(f"{str(error).rstrip('.')}.") from None
    return bank, table.trained if phrasings == "trained" else table.held_out


def _prepare(output: Path, force: bool) -> None:
    """Make the folder; an existing set loses its manifest first, so that the two are never mixed."""
    manifest = output / MANIFEST
    try:
        if manifest.exists() and not force:
            raise OptionError(f"{shown(manifest)} exists already: choose another folder or add --force.")
        (output / AUDIO).mkdir(parents=True, exist_ok=True)
        manifest.unlink(missing_ok=True)
        for track in TRACKS:
            for file in (output / AUDIO).glob(f"[0-9]*-{track}.flac"):
                file.unlink()
    except OSError as error:
        raise OptionError(f"{shown(output)} cannot be written: {error.strerror}.") from None


def _turns(labels: list[str], recipe: Recipe) -> list[str]:
    """Classes to query: every class once, in random order, and again."""
    rng = np.random.default_rng([recipe.seed, ORDER])
    rounds = [rng.permutation(len(labels)) for _ in range(-(-recipe.count // len(labels)))]
    return [labels[index] for index in np.concatenate(rounds)[: recipe.count]]


def _write_mixture(
    bank: SoundBank, labels: list[str], label: str, number: int, output: Path, recipe: Recipe
) -> dict[str, Any]:
    """Draw and write one mixture; return its manifest row, still without a query."""
    from flowsep_train.mixtures import level, mix

    rng = np.random.default_rng([recipe.seed, SOUNDS, number])
    samples = max(1, round(recipe.seconds * SAMPLE_RATE))
    rest = [other for other in labels if other != label]
    drawn = [rest[index] for index in rng.permutation(len(rest))[:2]]
    pair = drawn if recipe.absent else [label, drawn[0]]
    first, second = (bank.track(name, samples, rng) for name in pair)
    gain = level(first) / max(level(second), 1e-6) * 10 ** (-recipe.loudness / 20)
    mixture = mix([first, second * np.float32(gain)], tuple(pair))
    tracks: dict[str, Floats] = {"mixture": mixture.mixture}
    if not recipe.absent:
        tracks |= {"target": mixture.sources[0], "other": mixture.sources[1]}
    # Sounds that partly cancel may be louder than their mixture, but a file is limited to full scale.
    loudest = max(float(np.abs(track).max()) for track in tracks.values())
    scale = np.float32(min(1.0, 0.99 / loudest))
    files = {name: f"{AUDIO}/{number:04d}-{name}.flac" for name in tracks}
    for name, track in tracks.items():
        write_audio(output / files[name], (track * scale)[:, None], SAMPLE_RATE, FLAC)
    return {
        "id": f"{number:04d}",
        "mixture": files["mixture"],
        "target": files.get("target"),
        "other": files.get("other"),
        "query": "",
        "label": label,
        "other_label": " + ".join(pair) if recipe.absent else pair[1],
        "kind": "absent" if recipe.absent else "present",
    }
