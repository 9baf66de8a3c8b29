"""Whole clips, and their way on a backend that keeps arrays in its own memory: one upload, one download.

A row is one text for one mixture. Rows go through the solver's loop together as far as the backend's batch
allows, whatever their texts and mixtures are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.backends import ArrayOnDevice, DeviceBackend
from flowsep_runtime.stage_arrays import of_batch

#: `stage(name)`: a context around the work of a stage, for example to time it.
StageContext: TypeAlias = Callable[[str], AbstractContextManager[None]]

#: Called with (steps done, steps) after every step.
StepProgress: TypeAlias = Callable[[int, int], None]


class Guidance(NamedTuple):
    """Texts that rows are led away from (`solvers.guided`), for which a loop must take two rows; R counts the
    others."""

    text: Floats  # [1 or R, 50, D]
    mask: Floats  # [1 or R, 50]
    scale: Floats  # [1 or R]


@dataclass(frozen=True)
class Clip:
    """Input of a generation; M counts mixtures, R rows, T mel frames, t = T / 4.

    Every row has a text of its own and one of the mixtures; a mixture is encoded once for all its rows.
    """

    waveform: Floats  # [M, 160 T]
    posterior_noise: Floats  # [1 or M, 8, t, 16]
    noise: Floats  # [1 or M, 8, t, 16]
    text: Floats  # [1 or R, 50, D]
    mask: Floats  # [1 or R, 50]
    mixtures: Sequence[int] | None = None  # of every row; None: a row for each mixture
    guidance: Guidance | None = None

    @property
    def rows(self) -> NDArray[np.intp]:
        """The mixture of every row [R]."""
        return np.arange(len(self.waveform)) if self.mixtures is None else np.asarray(self.mixtures, np.intp)


@dataclass(frozen=True)
class ClipResult:
    """Results of a clip's way through all stages."""

    mixture: Floats  # log-mels of the mixtures [M, T, 64], of no frame if no log-mel was asked for
    log_mel: Floats  # log-mels of the targets [R, T, 64], likewise
    waveform: Floats  # [R, 160 T + 32], of no sample if no waveform was asked for


class LoopRows(NamedTuple):
    """The input of one loop, B rows of it; with guidance those of the second half say what the first are led
    away from."""

    mixtures: NDArray[np.intp]  # [B]
    noise: Floats  # [B, 8, t, 16]
    text: Floats  # [1 or B, 50, D]
    mask: Floats  # [1 or B, 50]
    guidance: Floats | None  # scales [B / 2]


def joined(clips: Sequence[Clip]) -> Clip:
    """Several clips as one, mixtures and rows of one after those of the other.

    Raises:
        ValueError: If the arrays have other numbers of rows or other shapes, or some clips guidance and
            others none.
    """

    def all_of(arrays: Iterable[Floats], counts: Sequence[int], name: str) -> Floats:
        return np.concatenate([of_batch(*each, name) for each in zip(arrays, counts, strict=True)])

    mixtures, rows = [len(clip.waveform) for clip in clips], [len(clip.rows) for clip in clips]
    firsts = np.cumsum([0, *mixtures[:-1]])
    guides = [clip.guidance for clip in clips if clip.guidance is not None]
    guidance = None
    if guides:
        guidance = Guidance(*(all_of(arrays, rows, "text") for arrays in zip(*guides, strict=True)))
    return Clip(
        np.concatenate([clip.waveform for clip in clips]),
        all_of((clip.posterior_noise for clip in clips), mixtures, "noise"),
        all_of((clip.noise for clip in clips), mixtures, "noise"),
        all_of((clip.text for clip in clips), rows, "text"),
        all_of((clip.mask for clip in clips), rows, "mask"),
        np.concatenate([clip.rows + first for clip, first in zip(clips, firsts, strict=True)]).tolist(),
        guidance,
    )


def parted(result: ClipResult, clips: Sequence[Clip]) -> list[ClipResult]:
    """The result of clips that were joined, as one for each."""
    mixtures, rows = (
        np.cumsum(counts)[:-1]
        for counts in ([len(clip.waveform) for clip in clips], [len(clip.rows) for clip in clips])
    )
    parts = (
        np.split(result.mixture, mixtures),
        np.split(result.log_mel, rows),
        np.split(result.waveform, rows),
    )
    return [ClipResult(*each) for each in zip(*parts, strict=True)]


def loops_of(clip: Clip, most: int) -> list[LoopRows]:
    """The rows of a clip in as few loops of at most `most` rows as can be, all about equally long.

    Raises:
        ValueError: If the arrays have other numbers of rows, or a loop has no room for a row with guidance.
    """
    if clip.guidance is not None and most < 2:
        raise ValueError("guidance takes loops of two rows")
    mixtures = clip.rows
    noise, count = of_batch(clip.noise, len(clip.waveform), "noise"), len(mixtures)
    together = most // (1 if clip.guidance is None else 2)
    loops = []
    for part in np.array_split(np.arange(count), -(-count // together)):

        def some(array: Floats, name: str, part: NDArray[np.intp] = part) -> Floats:
            return array if len(array) == 1 else of_batch(array, count, name)[part]

        heard, text, mask, scales = mixtures[part], some(clip.text, "text"), some(clip.mask, "mask"), None
        if clip.guidance is not None:
            away = some(clip.guidance.text, "text"), some(clip.guidance.mask, "mask")
            text, mask = (
                np.concatenate([of_batch(array, len(part), "text") for array in both])
                for both in ((text, away[0]), (mask, away[1]))
            )
            scales = of_batch(some(clip.guidance.scale, "scale"), len(part), "scale")
            heard = np.tile(heard, 2)
        loops.append(LoopRows(heard, noise[heard], text, mask, scales))
    return loops


def share_of(progress: StepProgress | None, loop: int, loops: int) -> StepProgress | None:
    """The progress of one of several loops, which are one after the other: the steps of all together, as
    those of one."""
    if progress is None or loops == 1:
        return progress

    def told(done: int, steps: int) -> None:
        before, now = ((loop * steps + each) // loops for each in (done - 1, done))
        if now > before:
            progress(now, steps)

    return told


def run_on_device(
    backend: DeviceBackend,
    clip: Clip,
    loops: Sequence[LoopRows],
    steps: int,
    solver: str,
    progress: StepProgress | None,
    stage: StageContext,
    vocode: bool,
    log_mels: bool,
) -> ClipResult:
    """Mixtures' waveforms to their targets, one a row; what is not asked for stays on the device.

    A loop may be one piece of work for the device: all its steps are reported when it is done.

    Args:
        backend: Where the clip goes through.
        loops: Its rows.
        clip, steps, solver, progress, stage, vocode, log_mels: As for `Pipeline.run`.
    """

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        with stage(name):
            yield
            backend.synchronize()  # or the time would be that of asking for the work

    # A graph's outputs are valid until it runs again: what comes of a loop is taken before the next one.
    results: list[tuple[Array, Array]] = []
    with backend.session():
        with timed("log_mel"):
            log_mel = backend.keep("log_mel", {"waveform": clip.waveform})["log_mel"]
        with timed("encode_mixture"):
            posterior = backend.keep("encode_mixture", {"log_mel": log_mel})
            mixture = backend.keep("posterior", {**posterior, "noise": clip.posterior_noise})
        mixture_bands = _host(log_mel, log_mels)
        features: Mapping[str, ArrayOnDevice] | None = None
        for number, rows in enumerate(loops):
            batch = len(rows.noise)
            with timed("solve"):
                features = features or backend.keep("velocity_mixture", mixture)
                text, mask = (of_batch(array, batch, "text") for array in (rows.text, rows.mask))
                context = backend.keep("velocity_text", {"text": text, "mask": mask})
                latent = backend.keep_solution(
                    solver, steps, rows.noise, {**features, **context}, rows.mixtures.tolist(), rows.guidance
                )
            told = share_of(progress, number, len(loops))
            if told is not None:
                for done in range(1, steps + 1):
                    told(done, steps)
            with timed("decode_latent"):
                target = backend.keep("decode_latent", {"latent": latent})
            waveform: Array = np.zeros((latent.shape[0], 0), np.float32)
            if vocode:
                with timed("vocode"):
                    waveform = backend.keep("vocode", target)["waveform"].numpy()
            results.append((_host(target["log_mel"], log_mels), waveform))
    targets, waveforms = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
    return ClipResult(*(np.asarray(array, np.float32) for array in (mixture_bands, targets, waveforms)))


def _host(bands: ArrayOnDevice, is_wanted: bool) -> Array:
    """A log-mel spectrogram, of no frame if none is wanted."""
    return bands.numpy() if is_wanted else _no_frames(bands.shape)


def _no_frames(shape: tuple[int, ...]) -> Floats:
    return np.zeros((shape[0], 0, *shape[2:]), np.float32)
