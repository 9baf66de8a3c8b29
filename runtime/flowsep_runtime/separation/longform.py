"""Audio at the model's rate, coming in blocks, to its targets: any length, a few windows in memory.

Three ways to put the windows of a long recording together:

    joint        solved together (see `joint.py`), their spectrograms averaged, and one vocoder over all of it
    cross-fade   each for itself, their waveforms faded over
    none         each for itself, one after the other

Masks are averaged over what windows share, whichever way. A recording no longer than the model's clip is one
window, and all three are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends import DeviceBackend
from flowsep_runtime.separation.averaging import WindowMean
from flowsep_runtime.separation.joint import Group, GroupSolver, Solved
from flowsep_runtime.separation.levels import LevelCurves, Window, curves, level_of
from flowsep_runtime.separation.run import Run, largest_batch, largest_loop
from flowsep_runtime.separation.shares import shares
from flowsep_runtime.separation.vocoding import ChunkedVocoder
from flowsep_runtime.separation.windows import Weights, next_start, window_weights

GROUP = 4  # joint windows that are solved together
SILENT = np.float32(np.log(1e-5))  # the log-mel spectrogram of silence, docs/model.md#front-end


class Piece(NamedTuple):
    """The next of a recording's results; masks and waveforms have a clock of their own.

    Attributes:
        masks: Masks from 0 to 1, [mel frames, channels, queries, 64].
        waveforms: Generated targets [samples, channels, queries], at the recording's level; none for a masked
            result.
    """

    masks: Floats
    waveforms: Floats


class LongForm:
    """Takes a recording [samples, channels] block by block and gives its masks and targets as they become
    known, from its first sample to its last."""

    def __init__(self, run: Run, channels: int) -> None:
        """
        Args:
            run: The separation.
            channels: Of the recording.
        """
        self._run, self._model, self._frame = run, run.model, run.frame
        sentences, negative = run.encode_queries()
        batch, loop_batch = largest_batch(run.pipeline), largest_loop(run.pipeline)
        if not isinstance(run.pipeline.backend, DeviceBackend):
            # Nothing is quicker on a processor for being done together, but memory grows with it.
            batch = loop_batch = min(batch, channels * len(sentences) * (2 if run.guided else 1))
        self._tracks = (channels, len(run.queries))
        self._solver = GroupSolver(run, sentences, negative, batch, loop_batch)
        self._windows: list[Window] = []
        #: True if a window held more than silence so far.
        self.heard = False
        self._waiting = 0  # number of windows at the end that are not solved yet
        self._planned = False  # whether the recording's last window is among them
        self._audio = np.zeros((0, channels), np.float32)
        self._audio_from = 0  # samples
        self._length: int | None = None  # samples, once it is known
        bands = (*self._tracks, run.model.mel_bins)
        self._masks = WindowMean(bands, silence=0)
        self._log_mels = WindowMean(bands, silence=float(SILENT))
        self._waveforms = WindowMean(self._tracks, silence=0)
        self._vocoder = ChunkedVocoder(
            self._solver.vocode, run.model.clip_frames, run.model.hop_length, float(SILENT)
        )
        self._vocoded = 0  # samples

    def push(self, block: Floats) -> Iterator[Piece]:
        """More of the recording."""
        self._audio = np.concatenate([self._audio, block])
        return self._go_on()

    def finish(self) -> Iterator[Piece]:
        """The recording is over: what is left of the results."""
        self._length = self._audio_from + len(self._audio)
        yield from self._go_on()
        last = self._windows[-1].start + self._run.window
        masks = self._masks.take(last * self._model.latent_stride)
        # The last window ended with the recording, and no other was needed.
        yield Piece(masks, self._waveforms.take(max(self._waveforms.taken, self._faded_end(last))))

    def offsets(self, positions: Weights) -> NDArray[np.float64]:
        """The constant [positions, channels] that is no sound, at positions (in latent frames) for which
        targets were given."""
        # The length was rounded to samples of the model: the very end may lie behind the last window.
        positions = np.minimum(positions, self._windows[-1].start + self._run.window)
        touched = self._touching(positions[0], positions[-1])
        return curves(touched, self._run.window, self._run.overlap, positions).offset

    def forget_before(self, position: float) -> None:
        """No `offsets` will be asked for before that latent frame."""
        joined = self._run.options.windows == "joint" and not self._run.masked
        keep = min(position, self._vocoded / self._frame) if joined else position
        solved = len(self._windows) - self._waiting
        while solved > 1 and self._windows[0].start + self._run.window <= keep:
            del self._windows[0]
            solved -= 1

    def _go_on(self) -> Iterator[Piece]:
        self._plan()
        while group := self._next_group():
            self._waiting -= len(group)
            yield self._solve(group, is_last=self._planned and not self._waiting)
            needed = self._windows[len(self._windows) - max(1, self._waiting)].start * self._frame
            self._audio = self._audio[needed - self._audio_from :].copy()
            self._audio_from = needed

    def _plan(self) -> None:
        """Cut the windows that lie in what is there, and all if the recording is over."""
        is_whole = self._length is not None
        known = self._audio_from + len(self._audio)
        frames = -(-known // self._frame) if is_whole else known // self._frame
        while not self._planned:
            last = self._windows[-1].start if self._windows else None
            start = next_start(last, self._run.window, self._run.overlap, frames, is_whole)
            if start is None:
                self._planned = is_whole
                return
            level = level_of(self._samples(start, start + self._run.window))
            self._windows.append(Window(start, level))
            self.heard = self.heard or bool(level.sounding.any())
            self._waiting += 1

    def _next_group(self) -> list[Window]:
        waiting = self._windows[len(self._windows) - self._waiting :]
        if self._run.options.windows != "joint":
            return waiting[:1]
        # The level moves on to that of the window after the group, so that one must be known.
        return waiting[:GROUP] if self._planned or len(waiting) > GROUP else []

    def _solve(self, group: list[Window], is_last: bool) -> Piece:
        is_only = self._planned and len(self._windows) == 1
        joined = self._run.options.windows == "joint" and not is_only
        waveforms = np.zeros((len(group), self._tracks[0], self._model.clip_samples), np.float32)
        for window, waveform in zip(group, waveforms, strict=True):
            samples = self._samples(window.start, window.start + self._run.window)
            # Windows that are joined hear what they share at one level.
            level = self._levels(window.start * self._frame, len(samples)) if joined else window.level
            waveform[:, : len(samples)] = ((samples - level.offset).astype(np.float32) * level.gain).T
        sounding = np.stack([window.level.sounding for window in group])
        wanted = Group([window.start for window in group], waveforms, sounding)
        solved = self._solver.solve(wanted, joined, vocode=not (joined or self._run.masked))
        masks = shares(
            solved.log_mels, solved.mixtures, bool(self._run.complements), self._model.mask_exponent
        )
        self._add(self._masks, group, masks)
        end = group[-1].start + self._run.window - (0 if is_last else self._run.overlap)
        known = self._masks.take(end * self._model.latent_stride)
        if self._run.masked:
            return Piece(known, np.zeros((0, *self._tracks), np.float32))
        return Piece(known, (self._vocode if joined else self._fade)(group, solved, end, is_last))

    def _add(self, mean: WindowMean, group: list[Window], values: Floats) -> None:
        """Add mel frames [N, C, Q, T, 64]; a silent window leaves what it shares to its neighbour."""
        for window, each in zip(group, values, strict=True):
            weights = self._weights(window, self._model.latent_stride)
            sounding = np.outer(weights, window.level.sounding).astype(np.float32)
            mean.add(window.start * self._model.latent_stride, each.transpose(2, 0, 1, 3), sounding)

    def _vocode(self, group: list[Window], solved: Solved, end: int, is_last: bool) -> Floats:
        """One vocoder over the averaged spectrograms."""
        self._add(self._log_mels, group, solved.log_mels)
        log_mels = self._log_mels.take(end * self._model.latent_stride)
        pieces = [np.zeros((0, *self._tracks), np.float32)]
        for samples in self._vocoder.push(log_mels.reshape(len(log_mels), -1, log_mels.shape[3]), is_last):
            # The last frame may go on for a while after the last sample.
            samples = samples[: None if self._length is None else self._length - self._vocoded]
            if not len(samples):
                break
            level = self._levels(self._vocoded, len(samples))
            self._vocoded += len(samples)
            scale = (level.presence / level.gain)[:, :, None]
            pieces.append(samples.reshape(len(samples), *self._tracks) * scale)
        return np.concatenate(pieces)

    def _fade(self, group: list[Window], solved: Solved, end: int, is_last: bool) -> Floats:
        """The window's own waveforms, faded over from those of the one before."""
        (window,) = group
        assert solved.waveforms is not None
        start = window.start * self._frame
        count = len(self._samples(window.start, window.start + self._run.window))
        samples = solved.waveforms[0, :, :, :count].transpose(2, 0, 1) / window.level.gain[:, None]
        weights = self._weights(window, self._frame)[:count].astype(np.float32)
        self._waveforms.add(start, samples, np.repeat(weights[:, None], self._tracks[0], axis=1))
        return self._waveforms.take(self._faded_end(end))

    def _faded_end(self, end: int) -> int:
        """A latent frame as a sample of the recording, none of which is beyond its end."""
        return end * self._frame if self._length is None else min(end * self._frame, self._length)

    def _weights(self, window: Window, per_frame: int) -> Weights:
        """The window's weights against its neighbours', `per_frame` of them a latent frame."""
        number = next(n for n, each in enumerate(self._windows) if each is window)
        near = [each.start for each in self._windows[max(0, number - 1) : number + 1]]
        if not (self._planned and number == len(self._windows) - 1):
            near.append(window.start)  # another window follows; this one's own start says where it takes over
        positions = window.start + (np.arange(self._run.window * per_frame) + 0.5) / per_frame
        weights = window_weights(near, self._run.window, self._run.overlap, positions)
        return np.asarray(weights[min(number, 1)])

    def _samples(self, begin: int, end: int) -> Floats:
        """The recording between two latent frames, as far as it goes."""
        first = begin * self._frame - self._audio_from
        return self._audio[first : first + (end - begin) * self._frame]

    def _touching(self, begin: float, end: float) -> list[Window]:
        """The windows that touch what lies between two latent frames."""
        return [w for w in self._windows if w.start <= end and begin <= w.start + self._run.window]

    def _levels(self, first: int, samples: int) -> LevelCurves:
        positions = (np.arange(first, first + samples) + 0.5) / self._frame
        near = self._touching(positions[0], positions[-1])
        return curves(near, self._run.window, self._run.overlap, positions)
