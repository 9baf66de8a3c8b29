"""A recording that comes in blocks, at any rate, to parts of its targets and of the mixture through their
masks."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from flowsep_runtime.arrays import Floats
from flowsep_runtime.audio.checks import SILENCE, centred
from flowsep_runtime.audio.resampling import BlockResampler, resampled
from flowsep_runtime.errors import FlowSepWarning
from flowsep_runtime.separation.longform import LongForm
from flowsep_runtime.separation.masking import MaskStream, masked_mixture
from flowsep_runtime.separation.run import Run

LEAST, MOST = 1, 8  # seconds that are passed on together


@dataclass(frozen=True)
class Part:
    """A piece of the result; consecutive parts are together exactly as long as the input. C is the number of
    the mixture's channels."""

    start: int
    """Its first sample, counted in the input."""
    mixture: Floats
    """[n, C], as it came."""
    targets: tuple[Floats, ...]
    """The generated targets, one a query, each [n, C]."""
    masked: tuple[Floats, ...]
    """The mixture through the mask that each target implies; masked + residual = mixture."""


class Parts(Iterator[Part]):
    """Parts of `Separator.stream`; `close`, or the end of a `with` block, frees its resources."""

    def __init__(self, generator: Generator[Part, None, None], timings: dict[str, float]) -> None:
        self._generator = generator
        self.timings = timings
        """Seconds by stage so far, as in `Separation.timings`."""

    def __next__(self) -> Part:
        return next(self._generator)

    def close(self) -> None:
        """No more parts are wanted."""
        self._generator.close()

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parts(blocks: Iterable[Floats], sample_rate: float, run: Run) -> Generator[Part, None, None]:
    """Separates blocks [n, C], at least one sample in all.

    What is no longer than a window is separated as a whole, with nothing but its samples to go by.
    """
    incoming = _portions(blocks, int(LEAST * sample_rate), int(MOST * sample_rate))
    head: list[Floats] = []
    for block in incoming:
        head.append(block)
        if sum(map(len, head)) * run.model.sample_rate / sample_rate > run.model.clip_samples:
            yield from _Stream(sample_rate, run, block.shape[1]).parts(head, incoming)
            return
    yield _whole(np.concatenate(head), sample_rate, run)


def _portions(blocks: Iterable[Floats], least: int, most: int) -> Iterator[Floats]:
    """The same samples in pieces that are neither tiny nor huge, but for the last."""
    waiting: list[Floats] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count < least:
            continue
        joined = np.concatenate(waiting) if len(waiting) > 1 else block
        for first in range(0, len(joined), most):
            yield joined[first : first + most]
        waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _whole(mixture: Floats, sample_rate: float, run: Run) -> Part:
    heard = run.heard(mixture)
    sound = centred(heard)
    sounding = np.flatnonzero(np.abs(sound).max(axis=0) > SILENCE)
    targets = np.zeros((*heard.shape, len(run.queries)), np.float32)
    if len(sounding):
        rate = run.model.sample_rate
        with run.timed("resample"):
            length = max(1, round(len(mixture) * rate / sample_rate))
            waveform = resampled(heard[:, sounding], sample_rate, rate, length)
        with run.model_in_use():
            long = LongForm(run, len(sounding))
            pieces = [*long.push(waveform), *long.finish()]
        with run.timed("resample"):
            generated = np.concatenate(pieces).reshape(length, -1)
            generated = resampled(generated, rate, sample_rate, len(mixture))
            targets[:, sounding] = generated.reshape(len(mixture), len(sounding), -1)
    else:
        _warn_of_silence()
    masked = np.zeros((*mixture.shape, len(run.queries)), np.float32)
    band = run.band(sample_rate)
    with run.timed("mask"):
        # A constant offset is no sound: it stays in the residual.
        centre = centred(mixture) if run.options.mono else sound
        for query in range(len(run.queries)):
            for channel in range(mixture.shape[1]) if run.options.mono and len(sounding) else sounding:
                heard_one = 0 if run.options.mono else channel
                masked[:, channel, query] = masked_mixture(
                    centre[:, channel],
                    targets[:, heard_one, query],
                    sample_rate,
                    band,
                    sound[:, 0] if run.options.mono else None,
                )
    return Part(0, mixture, _each(targets, mixture.shape[1]), _each(masked, mixture.shape[1]))


class _Stream:
    """A recording of more than one window."""

    def __init__(self, sample_rate: float, run: Run, channels: int) -> None:
        self._rate, self._run, self._channels = sample_rate, run, channels
        self._heard = heard = 1 if run.options.mono else channels
        self._incoming = BlockResampler(sample_rate, run.model.sample_rate, heard)
        self._outgoing = BlockResampler(run.model.sample_rate, sample_rate, heard * len(run.queries))
        # In mono one mask filters all channels.
        band, filtered = run.band(sample_rate), channels if run.options.mono else 1
        self._masks = [
            [MaskStream(sample_rate, band, filtered) for _ in range(heard)] for _ in range(len(run.queries))
        ]
        per_frame = run.model.hop_length * run.model.latent_stride
        self._frames_a_sample = run.model.sample_rate / sample_rate / per_frame
        self._offset = np.zeros(heard)
        self._start = 0  # of the next part
        self._mixture = np.zeros((0, channels), np.float32)
        self._targets = np.zeros((0, heard, len(run.queries)), np.float32)

    def parts(self, head: list[Floats], rest: Iterable[Floats]) -> Iterator[Part]:
        run = self._run
        with run.model_in_use():
            long = LongForm(run, self._heard)
        waiting = list(head)
        head.clear()  # the caller's reference too: nothing is kept longer than it is needed
        # Taken off before resampling, where a constant that sets in and ends would be two clicks.
        first = int(run.model.clip_samples * self._rate / run.model.sample_rate)
        self._offset = run.heard(np.concatenate(waiting)[:first]).mean(axis=0, dtype=np.float64)
        taken = 0
        for block in _after(waiting, rest):
            taken += len(block)
            self._mixture = np.concatenate([self._mixture, block])
            with run.timed("resample"):
                waveform = self._incoming.push((run.heard(block) - self._offset).astype(np.float32))
            # As a list: between parts the caller has the word, and others the model.
            with run.model_in_use():
                pieces = list(long.push(waveform))
            for piece in pieces:
                with run.timed("resample"):
                    target = self._outgoing.push(piece.reshape(len(piece), -1))
                yield from self._part(long, target)
        with run.timed("resample"):
            length = max(1, round(taken * run.model.sample_rate / self._rate))
            waveform = self._incoming.finish(length)
        with run.model_in_use():
            pieces = [*long.push(waveform), *long.finish()]
        for piece in pieces:
            with run.timed("resample"):
                target = self._outgoing.push(piece.reshape(len(piece), -1))
            yield from self._part(long, target)
        with run.timed("resample"):
            target = self._outgoing.finish(taken)
        yield from self._part(long, target, is_last=True)
        if not long.heard:
            _warn_of_silence()

    def _part(self, long: LongForm, more: Floats, is_last: bool = False) -> Iterator[Part]:
        """The next part, given more samples [n, heard * queries] of the targets."""
        run, known = self._run, len(self._targets)
        targets = more.reshape(len(more), self._heard, len(run.queries))
        self._targets = np.concatenate([self._targets, targets])
        mixture = self._mixture[known : known + len(more)]
        with run.timed("mask"):
            sound = run.heard(mixture)
            if len(more):
                first = self._start + known
                positions = (
                    np.arange(first, first + len(more), dtype=np.float64) + 0.5
                ) * self._frames_a_sample
                long.forget_before(positions[0])
                offsets = self._offset + long.offsets(positions)
                # A constant offset is no sound: it stays in the residual.
                sound = (sound - offsets).astype(np.float32)
                mixture = (mixture - offsets).astype(np.float32)
            masked = []
            for query, masks in enumerate(self._masks):
                each = []
                for channel, mask in enumerate(masks):
                    filtered = mixture if run.options.mono else sound[:, channel : channel + 1]
                    done = [mask.push(filtered, sound[:, channel], targets[:, channel, query])]
                    each.append(np.concatenate([*done, mask.finish()] if is_last else done))
                masked.append(np.concatenate(each, axis=1))
        count = len(masked[0])
        if not count:
            return
        part = Part(
            self._start, self._mixture[:count], _each(self._targets[:count], self._channels), tuple(masked)
        )
        self._start += count
        self._mixture, self._targets = self._mixture[count:].copy(), self._targets[count:].copy()
        yield part


def _after(first: list[Floats], rest: Iterable[Floats]) -> Iterator[Floats]:
    while first:
        yield first.pop(0)
    yield from rest


def _each(tracks: Floats, channels: int) -> tuple[Floats, ...]:
    """[n, C or 1, queries] -> a tuple of [n, C]."""
    shape = (len(tracks), channels)
    return tuple(
        np.ascontiguousarray(np.broadcast_to(tracks[:, :, query], shape)) for query in range(tracks.shape[2])
    )


def _warn_of_silence() -> None:
    warnings.warn("The audio is silent: so is the result.", FlowSepWarning, stacklevel=4)
