"""Separation of a test set and scores of the outputs, query by query."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsep_eval import metrics
from flowsep_eval.ceiling import masked_by_autoencoder, through_autoencoder_and_vocoder
from flowsep_eval.clap import Clap
from flowsep_eval.manifest import Item, read_mono
from flowsep_eval.mel import SAMPLE_RATE, Floats, mel_magnitudes
from flowsep_eval.scores import ItemScore, Scores
from flowsep_runtime import Options, Separator
from flowsep_runtime.audio.checks import SILENCE, centred
from flowsep_runtime.errors import AudioError, BackendError, FlowSepWarning, OptionError, QueryWarning

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flowsep_runtime.options import OptionFields

#: Largest difference between the lengths of target and mixture without a warning, in seconds.
LENGTHS_AGREE = 0.1


@dataclass(frozen=True)
class Tracks:
    """The audio of one query, `[S]` each; it is dropped as soon as it is scored."""

    mixture: Floats
    target: Floats | None
    other: Floats | None


@dataclass(frozen=True)
class Output:
    """Output of a separator: `[S]`, seconds of work, and the reason for silence after a failure."""

    waveform: Floats
    seconds: float
    failed: str | None = None


def evaluate(
    separator: Separator,
    items: Iterable[Item],
    *,
    ceiling: bool = True,
    clap: Clap | None = None,
    progress: Callable[[], None] | None = None,
    **options: Unpack[OptionFields],
) -> Scores:
    """Separates every item's mixture by its query and scores the output.

    Args:
        separator: The model.
        items: Of `read_manifest`.
        ceiling: Also score what a perfect flow would give.
        clap: For CLAPScore and FAD.
        progress: Called after every item.
        options: The fields of `Options`. The seed is that of the noise (item k has a seed of its own, made of
            this and k) and of the bootstrap.

    Raises:
        AudioError: With the manifest's line, if audio cannot be read or a mixture is silent.
        BackendError: If the backend fails at every item; where it fails at some, they count as silence.
        OptionError: If an option is wrong, or there is no item.
    """
    if separator.pipeline.manifest.model.sample_rate != SAMPLE_RATE:
        raise OptionError(f"The bundle's sample rate is not {SAMPLE_RATE} Hz: this program cannot score it.")
    items = list(items)
    if not items:
        raise OptionError("There is nothing to evaluate: the test set is empty.")
    wanted = Options(**options)
    kind = wanted.kind or separator.pipeline.manifest.model.default_kind
    perfect = masked_by_autoencoder if kind == "masked" else through_autoencoder_and_vocoder
    scored: list[ItemScore] = []
    embeddings: dict[str, list[Floats]] = {"output": [], "target": [], "mixture": []}
    for number, item in enumerate(items):
        tracks = read_tracks(item)
        own_seed = item_seed(wanted.seed, number)
        output = separated(separator, tracks.mixture, item.query, replace(wanted, seed=own_seed))
        rendered = None
        if ceiling and tracks.target is not None:
            rendered = perfect(separator.pipeline, tracks.target, tracks.mixture)
        values = score(tracks, output.waveform, rendered)
        if clap is not None:
            sounds = {"output": output.waveform, "mixture": tracks.mixture}
            if tracks.target is not None:
                sounds["target"] = tracks.target
            embedded = dict(zip(sounds, clap.audio(list(sounds.values())), strict=True))
            values |= clap_scores(embedded, clap.text(item.query))
            if tracks.target is not None:
                for name, embedding in embedded.items():
                    embeddings[name].append(embedding)
        scored.append(ItemScore(item, values, output.seconds, own_seed, output.failed))
        if progress is not None:
            progress()
    failures = [found.failed for found in scored if found.failed is not None]
    if len(failures) == len(scored):
        raise BackendError(f"The model gave nothing for any of {len(scored)} queries: {failures[0]}")
    kept = {name: np.stack(rows) for name, rows in embeddings.items() if rows}
    return Scores(scored, wanted.seed, kept)


def check_audio(items: Iterable[Item], progress: Callable[[], None] | None = None) -> None:
    """Read every item's audio once, to find faults before hours of separations.

    Raises:
        AudioError: With the manifest's line, if audio cannot be read or a mixture is silent.
    """
    for item in items:
        read_tracks(item)
        if progress is not None:
            progress()


def item_seed(seed: int, number: int) -> int:
    """The seed of one item's noise."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def read_tracks(item: Item) -> Tracks:
    """An item's audio, at 16 kHz and of the mixture's length. A silent target counts as none, with a warning.

    Raises:
        AudioError: If a file cannot be read, or the mixture is silent.
    """
    mixture = read_mono(item.mixture, item.where)
    if np.abs(centred(mixture[:, None])).max() <= SILENCE:
        raise AudioError(f"{item.where}: the mixture is silent: leave the row out.")
    target = _as_long_as(mixture, item.target, item)
    if target is not None and np.abs(target).max() <= SILENCE:
        _warn(f"{item.where}: the target is silent and counts as a sound that is not there.")
        target = None
    return Tracks(mixture, target, _as_long_as(mixture, item.other, item))


def _as_long_as(mixture: Floats, path: Path | None, item: Item) -> Floats | None:
    if path is None:
        return None
    track = read_mono(path, item.where)
    if abs(len(track) - len(mixture)) > LENGTHS_AGREE * SAMPLE_RATE:
        _warn(f"{item.where}: {path.name} is not as long as its mixture and is cut or filled with silence.")
    fitted = np.zeros_like(mixture)
    fitted[: len(track)] = track[: len(mixture)]
    return fitted


def _warn(sentence: str) -> None:
    warnings.warn(sentence, FlowSepWarning, stacklevel=4)


def separated(separator: Separator, mixture: Floats, query: str, options: Options) -> Output:
    """One separation; silence if the backend fails or the output is not finite."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QueryWarning)  # the scores tell how well it was understood
            result = separator.separate(mixture, SAMPLE_RATE, query, **options.fields())
    except BackendError as error:
        return Output(np.zeros_like(mixture), time.perf_counter() - start, str(error))
    seconds = time.perf_counter() - start - result.timings.get("load", 0.0)
    if not np.isfinite(result.target).all():
        return Output(np.zeros_like(mixture), seconds, "The output holds numbers that are not finite.")
    return Output(result.target, seconds)


def score(tracks: Tracks, output: Floats, rendered: Floats | None = None) -> dict[str, float]:
    """Every metric that applies to one output, without CLAP's.

    Args:
        tracks: The query's audio.
        output: What came out, `[S]`.
        rendered: The result of a perfect flow, `[S]`.

    Returns:
        By name, as `ItemScore.values` has them.
    """
    mixture, target = tracks.mixture, tracks.target
    if target is None:
        quieter = metrics.attenuation(output, mixture)
        return {"attenuation": quieter, "silenced": float(quieter >= metrics.ABSENT_DB)}
    mixture_mel, target_mel = mel_magnitudes(mixture), mel_magnitudes(target)
    other_mel = None if tracks.other is None else mel_magnitudes(tracks.other)
    floor = metrics.floor_below(mixture_mel)
    values: dict[str, float] = {}
    for suffix, sound in (("", output), ("_mixture", mixture), ("_ceiling", rendered)):
        if sound is None:
            continue
        mel = mixture_mel if sound is mixture else mel_magnitudes(sound)
        distance = metrics.log_mel_distance(mel, target_mel, floor)
        values["log_mel_distance" + suffix] = distance
        if other_mel is not None:
            to_other = metrics.log_mel_distance(mel, other_mel, floor)
            values["log_mel_distance_other" + suffix] = to_other
            values["query_accuracy" + suffix] = float(distance < to_other)
        values["mel_si_sdr" + suffix] = metrics.si_sdr(mel, target_mel)
        values["si_sdr" + suffix] = metrics.si_sdr(_centred(sound), _centred(target))
        values["level_error" + suffix] = metrics.level_error(sound, target, mixture)
    for name in ("mel_si_sdr", "si_sdr"):
        values[name + "_improvement"] = values[name] - values[name + "_mixture"]
    return values


def _centred(waveform: Floats) -> Floats:
    return centred(waveform[:, None])[:, 0]


def clap_scores(embedded: dict[str, Floats], sentence: Floats) -> dict[str, float]:
    """CLAPScores of output, mixture and target, if there is one, for the query."""
    return {
        "clap_score" + ("" if name == "output" else f"_{name}"): metrics.cosine_similarity(
            embedding, sentence
        )
        for name, embedding in embedded.items()
    }
