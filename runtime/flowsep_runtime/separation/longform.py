"""Audio at the model's rate, coming in blocks, to its targets: any length, a few windows in memory.

Three ways to put the windows of a long recording together:

    joint        solved together (see `joint.py`), their spectrograms averaged, and one vocoder over all of it
    cross-fade   each for itself, their waveforms faded over
    none         each for itself, one after the other

A recording no longer than the model's clip is one window, and all three are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends import DeviceBackend
from flowsep_runtime.device_pipeline import Clip
from flowsep_runtime.separation.joint import Group, GroupSolver
from flowsep_runtime.separation.levels import LevelCurves, Window, curves, level_of
from flowsep_runtime.separation.noise import NoiseTrack
from flowsep_runtime.separation.run import Run, largest_batch
from flowsep_runtime.separation.vocoding import ChunkedVocoder
from flowsep_runtime.separation.windows import Weights, cross_fade, next_start, window_weights

GROUP = 4  # joint windows that are solved together
SILENT = np.float32(np.log(1e-5))  # the log-mel spectrogram of silence, docs/model.md#front-end


class LongForm:
    """Takes a recording [samples, channels] block by block and gives its targets [samples, channels, queries]
    as they become known, at its level and in its time, from its first sample to its last."""

    def __init__(self, run: Run, channels: int) -> None:
        """
        Args:
            run: The separation.
            channels: Of the recording.
        """
        self._run, self._model, self._frame = run, run.model, run.frame
        self._queries, negative = run.encode_queries()
        self._batch = largest_batch(run.pipeline)
        if not isinstance(run.pipeline.backend, DeviceBackend):
            # Nothing is quicker on a processor for being done together, but memory grows with it.
            rows = channels * len(run.queries) * (2 if run.guided else 1)
            self._batch = min(self._batch, rows)
        self._tracks = (channels, len(run.queries))
        self._solver = GroupSolver(run, self._queries, negative, self._batch)
        self._noise = NoiseTrack(run.model, run.options.seed)
        self._windows: list[Window] = []
        #: Whether anything but silence came so far, as far as windows were cut.
        self.heard = False
        self._waiting = 0  # the last so many of them are not solved yet
        self._planned = False  # whether the recording's last window is among them
        self._audio = np.zeros((0, channels), np.float32)
        self._audio_from = 0  # samples
        self._length: int | None = None  # samples, once it is known
        self._given = 0  # samples
        # Joint: sums of weighted spectrograms and of the weights, from the first mel frame not averaged yet.
        self._sums = np.zeros((0, *self._tracks, run.model.mel_bins), np.float32)
        self._cover = np.zeros((0, channels), np.float32)
        self._averaged = 0
        self._vocoder = ChunkedVocoder(
            self._solver.vocode, run.model.clip_frames, run.model.hop_length, float(SILENT)
        )
        # Alone: what the next window takes over from.
        self._tail = np.zeros((0, channels * len(run.queries)), np.float32)

    def push(self, block: Floats) -> Iterator[Floats]:
        """More of the recording."""
        self._audio = np.concatenate([self._audio, block])
        return self._go_on()

    def finish(self) -> Iterator[Floats]:
        """The recording is over: what is left of the targets."""
        self._length = self._audio_from + len(self._audio)
        yield from self._go_on()
        if len(self._tail):  # the last window ended with the recording, and no other was needed
            yield self._tail.reshape(-1, *self._tracks)

    def offsets(self, positions: Weights) -> NDArray[np.float64]:
        """The constant [positions, channels] that is no sound, at positions (in latent frames) for which
        targets were given."""
        touched = self._touching(positions[0], positions[-1])
        return curves(touched, self._run.window, self._run.overlap, positions).offset

    def forget_before(self, position: float) -> None:
        """No `offsets` will be asked for before that latent frame."""
        keep = min(position, self._given / self._frame)
        solved = len(self._windows) - self._waiting
        while solved > 1 and self._windows[0].start + self._run.window <= keep:
            del self._windows[0]
            solved -= 1

    def _go_on(self) -> Iterator[Floats]:
        self._plan()
        while group := self._next_group():
            self._waiting -= len(group)
            is_only = self._planned and len(self._windows) == 1
            joint = self._run.options.windows == "joint"
            solve = self._solve_jointly if joint and not is_only else self._solve_alone
            yield from solve(group, self._planned and not self._waiting)
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

    def _solve_jointly(self, group: list[Window], is_last: bool) -> Iterator[Floats]:
        starts = [window.start for window in group]
        waveforms = np.zeros((len(group), self._tracks[0], self._model.clip_samples), np.float32)
        for start, waveform in zip(starts, waveforms, strict=True):
            samples = self._samples(start, start + self._run.window)
            level = self._levels(start * self._frame, len(samples))
            waveform[:, : len(samples)] = ((samples - level.offset).astype(np.float32) * level.gain).T
        sounding = np.stack([window.level.sounding for window in group])
        log_mels = self._solver.log_mels(Group(starts, waveforms, sounding), joined=True)
        end = (
            starts[-1] + self._run.window - (0 if is_last else self._run.overlap)
        ) * self._model.latent_stride
        known = self._spectrograms(group, log_mels, end)
        for samples in self._vocoder.push(known.reshape(len(known), -1, known.shape[3]), is_last):
            # The last frame may go on for a while after the last sample.
            samples = samples[: None if self._length is None else self._length - self._given]
            if not len(samples):
                return
            level = self._levels(self._given, len(samples))
            self._given += len(samples)
            scale = (level.presence / level.gain)[:, :, None]
            yield samples.reshape(len(samples), *self._tracks) * scale

    def _spectrograms(self, group: list[Window], log_mels: Floats, end: int) -> Floats:
        """Averages the windows' spectrograms [N, C, Q, T, 64] -> those of the recording [n, C, Q, 64], up to
        the frame `end`, from which on the next window has a share."""
        begin, last = self._averaged, (group[-1].start + self._run.window) * self._model.latent_stride
        missing = last - begin - len(self._sums)
        sums = np.pad(self._sums, ((0, missing), *[(0, 0)] * 3))
        cover = np.pad(self._cover, ((0, missing), (0, 0)))
        for window, spectrogram in zip(group, log_mels, strict=True):
            # A recording's last window may begin before what has been averaged.
            start = window.start * self._model.latent_stride
            positions = (
                np.arange(max(begin, start), start + self._model.clip_frames) + 0.5
            ) / self._model.latent_stride
            near = self._touching(positions[0], positions[-1])
            weights = window_weights(
                [each.start for each in near], self._run.window, self._run.overlap, positions
            )
            weight = np.outer(weights[near.index(window)], window.level.sounding).astype(np.float32)
            span = slice(max(begin, start) - begin, start + self._model.clip_frames - begin)
            cover[span] += weight
            sums[span] += weight[:, :, None, None] * spectrogram[:, :, -len(weight) :].transpose(2, 0, 1, 3)
        known = end - begin
        self._sums, self._cover, self._averaged = sums[known:].copy(), cover[known:].copy(), end
        weight = cover[:known, :, None, None]
        return np.where(weight > 0, sums[:known] / np.where(weight > 0, weight, np.float32(1)), SILENT)

    def _solve_alone(self, group: list[Window], is_last: bool) -> Iterator[Floats]:
        (window,) = group
        samples = self._samples(window.start, window.start + self._run.window)
        piece = np.zeros((len(samples), *self._tracks), np.float32)
        sounding = np.flatnonzero(window.level.sounding)
        if len(sounding):
            gain = window.level.gain[sounding]
            sound = (samples - window.level.offset).astype(np.float32)[:, sounding]
            waveforms = np.zeros((len(sounding), self._model.clip_samples), np.float32)
            waveforms[:, : len(samples)] = (sound * gain).T
            generated = self._generate(window.start, waveforms)[:, :, : len(samples)]
            piece[:, sounding] = generated.transpose(2, 0, 1) / gain[:, None]
        else:
            self._run.advance(self._run.steps_a_window)
        # A last window may begin before what was given already.
        begin = window.start * self._frame
        piece, begin = piece[max(0, self._given - begin) :], max(0, begin - self._given)
        known = len(self._tail)
        track = np.pad(self._tail, ((0, begin + len(piece) - known), (0, 0)))
        cross_fade(track, known, piece.reshape(len(piece), -1), begin, known)
        settled = len(track) - (0 if is_last else self._run.overlap * self._frame)
        self._tail = track[settled:].copy()
        self._given += settled
        yield track[:settled].reshape(settled, *self._tracks)

    def _generate(self, start: int, waveforms: Floats) -> Floats:
        """Normalised waveforms [C, S] of one window -> its targets' [C, Q, S + 32]."""
        run, queries = self._run, len(self._queries)
        pipeline, options = run.pipeline, run.options
        if not isinstance(pipeline.backend, DeviceBackend) or run.guided or options.candidates > 1:
            everyone = np.ones((1, len(waveforms)), np.bool_)
            log_mels = self._solver.log_mels(Group([start], waveforms[None], everyone), joined=False)[0]
            generated = self._solver.vocode(log_mels.reshape(-1, *log_mels.shape[2:]))
            return generated.reshape(len(waveforms), queries, -1)
        # Such a backend keeps a clip in its own memory from stage to stage, and the loop is one piece.
        posterior, noise = self._noise.frames(start, start + run.window)
        results = []
        for query in self._queries:
            text, mask = query.text, np.asarray(query.mask, np.float32)
            for first in range(0, len(waveforms), self._batch):
                clip = Clip(waveforms[first : first + self._batch], posterior, noise, text, mask)
                told = (lambda done, steps: run.advance(1)) if first == 0 else None
                results.append(pipeline.generate(clip, options.steps, options.solver, told, run.stage))
        together = np.concatenate(results)
        self._solver.check(together)
        return together.reshape(queries, len(waveforms), -1).transpose(1, 0, 2)

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
