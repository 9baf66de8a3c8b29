"""A recording that comes in blocks, at any rate, to parts of its targets and residuals."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from flowsep_runtime.arrays import Floats
from flowsep_runtime.audio.checks import SILENCE, centred
from flowsep_runtime.audio.resampling import BlockResampler, resampled
from flowsep_runtime.errors import FlowSepWarning, QueryWarning
from flowsep_runtime.separation.longform import LongForm, Piece
from flowsep_runtime.separation.masking import MaskFilter
from flowsep_runtime.separation.run import Run

LEAST, MOST = 1, 8  # seconds that are passed on together
HARDLY = 40.0  # dB below the recording from which on a result is said to be hardly anything


@dataclass(frozen=True)
class Part:
    """A piece of the result; consecutive parts are together exactly as long as the input. C is the number of
    the mixture's channels.

    Attributes:
        start: Its first sample, counted in the input.
        mixture: [n, C], as it came.
        targets: The targets, one a query, each [n, C].
        residuals: The mixture without each query's sound, [n, C]. With masked targets, target + residual =
            mixture.
    """

    start: int
    mixture: Floats
    targets: tuple[Floats, ...]
    residuals: tuple[Floats, ...]

    @property
    def rest(self) -> Floats:
        """The mixture without all of the sounds [n, C]."""
        first, *others = {id(residual): residual for residual in self.residuals}.values()
        rest = first.copy()
        for residual in others:
            rest -= self.mixture - residual
        return rest


class Parts(Iterator[Part]):
    """Parts of `Separator.stream`; `close`, or the end of a `with` block, frees its resources."""

    def __init__(
        self,
        generator: Generator[Part, None, None],
        timings: dict[str, float],
        places: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            generator: Gives the parts, with a target for each distinct query.
            timings: Seconds by stage so far, as in `Separation.timings`.
            places: For each query that was given, the number of its target; None is one after the other.
        """
        self._generator, self._places = generator, places
        self.timings = timings

    def __next__(self) -> Part:
        part = next(self._generator)
        if self._places is None:
            return part
        targets, residuals = (
            tuple(tracks[place] for place in self._places) for tracks in (part.targets, part.residuals)
        )
        return replace(part, targets=targets, residuals=residuals)

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
    """Separates blocks [n, C], at least one sample in all; warns of a query that finds hardly anything.

    What is no longer than a window is separated as a whole, with nothing but its samples to go by.
    """
    whole, sounds = 0.0, [0.0] * len(run.queries)
    for part in _parts(blocks, sample_rate, run):
        whole += float(np.square(part.mixture).sum())
        sounds = [
            energy + float(np.square(target).sum())
            for energy, target in zip(sounds, part.targets, strict=True)
        ]
        yield part
    for query, energy in zip(run.queries, sounds, strict=True):
        if energy < 10 ** (-HARDLY / 10) * whole:
            level = f"{10 * np.log10(whole / energy):.0f} dB below it" if energy else "silent"
            warnings.warn(
                f'Hardly anything in the recording is like "{query}": the result is {level}.',
                QueryWarning,
                stacklevel=4,
            )


def _parts(blocks: Iterable[Floats], sample_rate: float, run: Run) -> Iterator[Part]:
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
    tracks = (heard.shape[1], len(run.queries))
    masks = np.zeros((1, *tracks, run.model.mel_bins), np.float32)
    generated = np.zeros((len(mixture), *tracks), np.float32)
    if len(sounding):
        rate = run.model.sample_rate
        with run.timed("resample"):
            length = max(1, round(len(mixture) * rate / sample_rate))
            waveform = resampled(heard[:, sounding], sample_rate, rate, length)
        with run.model_in_use():
            long = LongForm(run, len(sounding))
            pieces = [*long.push(waveform), *long.finish()]
        known = np.concatenate([piece.masks for piece in pieces])
        masks = np.zeros((len(known), *masks.shape[1:]), np.float32)
        masks[:, sounding] = known
        if not run.masked:
            with run.timed("resample"):
                waveforms = np.concatenate([piece.waveforms for piece in pieces]).reshape(length, -1)
                waveforms = resampled(waveforms, rate, sample_rate, len(mixture))
                generated[:, sounding] = waveforms.reshape(len(mixture), len(sounding), -1)
    else:
        run.advance(run.steps_a_window)  # done: nothing is left to wait for
        _warn_of_silence()
    with run.timed("mask"):
        # A constant offset is no sound: it stays in the residual.
        masking = MaskFilter(sample_rate, run.model, mixture.shape[1], *tracks)
        masked = np.concatenate([masking.push(centred(mixture), masks), masking.finish()])
    return _part(0, mixture, masked if run.masked else generated, masked)


def _part(start: int, mixture: Floats, targets: Floats, masked: Floats) -> Part:
    """Mixture [n, C], targets [n, C or 1, queries] and masked mixture [n, C, queries]."""
    residuals = mixture[:, :, None] - masked
    targets = np.broadcast_to(targets, masked.shape)
    return Part(
        start,
        mixture,
        *(
            tuple(np.ascontiguousarray(each[:, :, query]) for query in range(each.shape[2]))
            for each in (targets, residuals)
        ),
    )


class _Stream:
    """A recording of more than one window."""

    def __init__(self, sample_rate: float, run: Run, channels: int) -> None:
        self._rate, self._run = sample_rate, run
        self._heard = heard = 1 if run.options.mono else channels
        self._incoming = BlockResampler(sample_rate, run.model.sample_rate, heard)
        self._outgoing = BlockResampler(run.model.sample_rate, sample_rate, heard * len(run.queries))
        self._masking = MaskFilter(sample_rate, run.model, channels, heard, len(run.queries))
        self._frames_a_sample = run.model.sample_rate / sample_rate / run.frame
        self._offset = np.zeros(heard)
        self._start = 0  # of the next part
        self._mixture = np.zeros((0, channels), np.float32)
        self._filtered = 0  # samples whose mask is known
        self._masks = 0  # frames that are known
        self._masked = np.zeros((0, channels, len(run.queries)), np.float32)
        self._generated = np.zeros((0, heard, len(run.queries)), np.float32)

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
                yield from self._known(long, piece)
        with run.timed("resample"):
            length = max(1, round(taken * run.model.sample_rate / self._rate))
            waveform = self._incoming.finish(length)
        with run.model_in_use():
            pieces = [*long.push(waveform), *long.finish()]
        for piece in pieces:
            yield from self._known(long, piece)
        self._go_on(long, taken)
        if not run.masked:
            with run.timed("resample"):
                self._add(self._outgoing.finish(taken))
        with run.timed("mask"):
            self._masked = np.concatenate([self._masked, self._masking.finish()])
        yield from self._next_part()
        if not long.heard:
            _warn_of_silence()

    def _known(self, long: LongForm, piece: Piece) -> Iterator[Part]:
        """Parts that are known with one more piece."""
        if not self._run.masked:
            with self._run.timed("resample"):
                waveforms = piece.waveforms.reshape(-1, self._heard * len(self._run.queries))
                self._add(self._outgoing.push(waveforms))
        self._masks += len(piece.masks)
        seconds = self._masks * self._run.model.hop_length / self._run.model.sample_rate
        self._go_on(long, int(seconds * self._rate), piece.masks)
        yield from self._next_part()

    def _add(self, waveforms: Floats) -> None:
        more = waveforms.reshape(len(waveforms), *self._generated.shape[1:])
        self._generated = np.concatenate([self._generated, more])

    def _go_on(self, long: LongForm, end: int, masks: Floats | None = None) -> None:
        """Filter the mixture up to the sample `end`, as far as it is there."""
        begin = self._filtered - self._start
        mixture = self._mixture[begin : max(begin, end - self._start)]
        with self._run.timed("mask"):
            if len(mixture):
                samples = np.arange(self._filtered, self._filtered + len(mixture), dtype=np.float64)
                positions = (samples + 0.5) * self._frames_a_sample
                long.forget_before(positions[0])
                # A constant offset is no sound: it stays in the residual.
                mixture = (mixture - (self._offset + long.offsets(positions))).astype(np.float32)
            self._filtered += len(mixture)
            known = np.zeros((0, self._heard, *self._masked.shape[2:], self._run.model.mel_bins), np.float32)
            masked = self._masking.push(mixture, known if masks is None else masks)
            self._masked = np.concatenate([self._masked, masked])

    def _next_part(self) -> Iterator[Part]:
        targets = self._masked if self._run.masked else self._generated
        count = min(len(targets), len(self._masked))
        if not count:
            return
        part = _part(self._start, self._mixture[:count], targets[:count], self._masked[:count])
        self._start += count
        self._mixture = self._mixture[count:].copy()
        self._masked = self._masked[count:].copy()
        self._generated = self._generated[count:].copy()
        yield part


def _after(first: list[Floats], rest: Iterable[Floats]) -> Iterator[Floats]:
    while first:
        yield first.pop(0)
    yield from rest


def _warn_of_silence() -> None:
    warnings.warn("The audio is silent: so is the result.", FlowSepWarning, stacklevel=4)
