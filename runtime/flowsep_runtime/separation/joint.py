"""Overlapping windows that are solved together.

Every window has the velocity network to itself, but their states are one: at each evaluation the velocities
of the frames that windows share are averaged, with weights that move smoothly from one window to the next, so
that the windows agree while the sound is still being decided. All solvers work on that average, for it is
formed inside the velocity that they ask for.

A group of windows follows the one before it. What was decided there stays: the next group starts from the
same noise in those frames, and its velocities there are those that were found before, so that every solver
repeats the same states and the new frames are solved to agree with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends import DeviceBackend
from flowsep_runtime.device_pipeline import Clip, ClipResult, Guidance
from flowsep_runtime.errors import BackendError
from flowsep_runtime.separation.noise import NoiseTrack
from flowsep_runtime.separation.queries import EncodedQuery
from flowsep_runtime.separation.run import Run
from flowsep_runtime.separation.twins import leaders
from flowsep_runtime.separation.windows import window_weights
from flowsep_runtime.solvers import guided, solver_named
from flowsep_runtime.stage_arrays import QueryFeatures


class Group(NamedTuple):
    """Consecutive windows: their starts in latent frames, their normalised waveforms [N, C, S], and which of
    those are heard [N, C]; the others run no model."""

    starts: list[int]
    waveforms: Floats
    sounding: NDArray[np.bool_]

    def spread(self, rows: Floats) -> Floats:
        """Results of the windows that are heard [R, ...] -> of all [N, C, ...], zeros in silence."""
        spread = np.zeros((*self.sounding.shape, *rows.shape[1:]), np.float32)
        spread[self.sounding] = rows
        return spread


class Solved(NamedTuple):
    """Results of a group; Q counts queries.

    Attributes:
        mixtures: Log-mel spectrograms of the mixture [N, C, T, 64].
        log_mels: Log-mel spectrograms of the targets [N, C, Q, T, 64].
        waveforms: Waveforms of the targets [N, C, Q, 160 T + 32], if they were asked for.
    """

    mixtures: Floats
    log_mels: Floats
    waveforms: Floats | None

    def of(self, channels: NDArray[np.intp]) -> Solved:
        """Results of some channels, in that order; a channel may come more than once."""
        waveforms = None if self.waveforms is None else self.waveforms[:, channels]
        return Solved(self.mixtures[:, channels], self.log_mels[:, channels], waveforms)


class _Row(NamedTuple):
    """One window of one track, a track being a query in a channel."""

    track: int
    begin: int  # latent frames from the group's first
    mixture: int  # its row among the mixtures
    query: int
    share: Floats  # [t]


@dataclass(frozen=True)
class _Past:
    """The end of what was solved; E evaluations, F frames."""

    start: int  # its first frame
    noise: Floats  # [tracks, 8, F, 16]
    velocities: Floats  # [E, tracks, 8, F, 16]
    known: NDArray[np.bool_]  # [tracks, F]: not in silence

    def of(self, tracks: NDArray[np.intp]) -> _Past:
        """The past of some tracks."""
        return _Past(self.start, self.noise[tracks], self.velocities[:, tracks], self.known[tracks])


class GroupSolver:
    """Log-mel spectrograms of the targets, from the waveforms of windows."""

    def __init__(
        self,
        run: Run,
        queries: Sequence[EncodedQuery],
        negative: EncodedQuery | None,
        batch: int,
        loop_batch: int,
    ) -> None:
        """
        Args:
            run: The separation.
            queries: Those that targets are wanted of.
            negative: With a guidance other than 1, the velocity is `unwanted + guidance (wanted - unwanted)`,
                where `unwanted` answers this query; None with guidance 1.
            batch: Mixtures that are encoded together.
            loop_batch: Rows that go through the velocity network, the decoder and the vocoder together; where
                guidance asks twice, both count.
        """
        self._run, self._texts, self._negative = run, queries, negative
        self._batch, self._loop_batch = batch, loop_batch
        self._noise = NoiseTrack(run.model, run.options.seed)
        self._queries: list[QueryFeatures] = []
        self._times: Floats | None = None
        self._past: _Past | None = None
        self._leaders: NDArray[np.intp] | None = None  # of the channels, while there is a past

    def solve(self, group: Group, joined: bool, vocode: bool) -> Solved:
        """Solve some windows; channels that are equal, and were so all along, are solved once.

        Args:
            group: The next windows; silent ones give zeros.
            joined: True if they are to agree with those of the call before, and the next with them.
            vocode: True if waveforms are wanted too.
        """
        channels = group.sounding.shape[1]
        before = np.zeros(channels, np.intp) if self._past is None or self._leaders is None else self._leaders
        found = leaders(group.waveforms, np.concatenate([group.sounding, before[None]]))
        distinct, places = np.unique(found, return_inverse=True)
        if self._past is not None:
            rows = np.searchsorted(np.unique(before), before[distinct]) * len(self._texts)
            self._past = self._past.of((rows[:, None] + np.arange(len(self._texts))).reshape(-1))
        wanted = Group(group.starts, group.waveforms[:, distinct], group.sounding[:, distinct])
        solved = self._solve(wanted, joined, vocode)
        self._leaders = found
        return solved.of(places) if len(distinct) < channels else solved

    def _solve(self, group: Group, joined: bool, vocode: bool) -> Solved:
        windows, channels = np.nonzero(group.sounding)
        run, pipeline = self._run, self._run.pipeline
        if not len(windows):
            self._past = None
            run.advance(len(group.starts) * run.steps_a_window)
            size = (run.model.clip_frames, run.model.mel_bins)
            log_mels = np.zeros((*group.sounding.shape, len(self._texts), *size), np.float32)
            waveforms = np.zeros((*log_mels.shape[:3], run.model.clip_samples), np.float32)
            return Solved(log_mels[:, :, 0], log_mels, waveforms if vocode else None)
        is_one_loop = self._negative is None or self._loop_batch > 1
        if isinstance(pipeline.backend, DeviceBackend) and is_one_loop and not joined:
            return self._solve_on_device(group, vocode)
        with run.stage("log_mel"):
            (mixtures,) = self._in_batches(
                lambda w: (pipeline.log_mel(w),), group.waveforms[windows, channels], self._batch
            )
        with run.stage("encode_mixture"):
            mean, std = self._in_batches(pipeline.encode_mixture, mixtures, self._batch)
        log_mels, past = self._log_mels(group, mean, std, self._past if joined else None)
        self._past = past if joined else None
        if not vocode:
            return Solved(group.spread(mixtures), group.spread(log_mels), None)
        vocoded = self.vocode(log_mels.reshape(-1, *log_mels.shape[2:])).reshape(*log_mels.shape[:2], -1)
        return Solved(group.spread(mixtures), group.spread(log_mels), group.spread(vocoded))

    def _solve_on_device(self, group: Group, vocode: bool) -> Solved:
        """One window on a backend that keeps a clip in its own memory from stage to stage."""
        run, (start,) = self._run, group.starts
        posterior, noise = self._noise.frames(start, start + run.window)
        sounding = group.waveforms[group.sounding]
        queries = len(self._texts)
        results: list[ClipResult] = []
        for first in range(0, len(sounding), self._batch):
            clip = self._clip(sounding[first : first + self._batch], posterior, noise)
            told = (lambda done, steps: run.advance(queries)) if first == 0 else None
            steps, solver = run.options.steps, run.options.solver
            results.append(
                run.pipeline.run(clip, steps, solver, told, run.stage, vocode, largest_loop=self._loop_batch)
            )
        mixtures = np.concatenate([result.mixture for result in results])
        log_mels = np.concatenate([result.log_mel for result in results])
        log_mels = log_mels.reshape(len(mixtures), queries, *log_mels.shape[1:])
        self.check(log_mels)
        if not vocode:
            return Solved(group.spread(mixtures), group.spread(log_mels), None)
        vocoded = np.concatenate([result.waveform for result in results])
        vocoded = vocoded.reshape(len(mixtures), queries, -1)
        self.check(vocoded)
        return Solved(group.spread(mixtures), group.spread(log_mels), group.spread(vocoded))

    def _clip(self, waveform: Floats, posterior: Floats, noise: Floats) -> Clip:
        """Mixtures [M, S], a row for every query of each."""
        mixtures, texts = len(waveform), len(self._texts)
        text = np.concatenate([query.text for query in self._texts] * mixtures)
        mask = np.concatenate([query.mask for query in self._texts] * mixtures).astype(np.float32)
        guidance = None
        if self._negative is not None:
            scale = np.array([self._run.options.guidance], np.float32)
            guidance = Guidance(self._negative.text, self._negative.mask.astype(np.float32), scale)
        rows = np.repeat(np.arange(mixtures), texts).tolist()
        return Clip(waveform, posterior, noise, text, mask, rows, guidance)

    def vocode(self, log_mels: Floats) -> Floats:
        """Log-mel spectrograms [R, T, 64] -> waveforms [R, 160 T + 32]."""
        with self._run.stage("vocode"):
            (waveforms,) = self._in_batches(
                lambda m: (self._run.pipeline.vocode(m),), log_mels, self._loop_batch
            )
        self.check(waveforms)
        return waveforms

    def _log_mels(self, group: Group, mean: Floats, std: Floats, past: _Past | None) -> tuple[Floats, _Past]:
        """Log-mel spectrograms of the targets in the windows that are heard, [R, Q, T, 64], and the state
        that the next group must agree with."""
        windows, channels = (indices.tolist() for indices in np.nonzero(group.sounding))
        run, frames, queries = self._run, self._run.window, len(self._texts)
        begin, end = group.starts[0], group.starts[-1] + frames
        posterior, start = self._noise.frames(begin, end)
        spans = [slice(s - begin, s - begin + frames) for s in group.starts]
        latents = mean + std * np.concatenate([posterior[:, :, spans[window]] for window in windows])
        tracks = group.sounding.shape[1] * queries
        weights = window_weights(group.starts, frames, run.overlap, np.arange(begin, end) + 0.5)
        # Never quite nothing: where its neighbour is silent, a window has its frames to itself.
        least: Floats = np.maximum(weights, 1e-6).astype(np.float32)
        rows = [
            _Row(channel * queries + query, spans[window].start, row, query, least[window, spans[window]])
            for row, (window, channel) in enumerate(zip(windows, channels, strict=True))
            for query in range(queries)
        ]
        with run.stage("solve"):
            velocity = self._velocity(rows, latents, np.repeat(start, tracks, axis=0), begin, past)
            x = velocity.noise
            for state in solver_named(run.options.solver).integrate(velocity, x, run.options.steps):
                x = state
                run.advance(len(group.starts) * queries)
        solved = np.stack([x[row.track, :, row.begin : row.begin + frames] for row in rows])
        with run.stage("decode_latent"):
            (decoded,) = self._in_batches(
                lambda z: (run.pipeline.decode_latent(z),), solved, self._loop_batch
            )
        self.check(decoded)
        return decoded.reshape(len(windows), queries, *decoded.shape[1:]), velocity.past(end)

    def _velocity(
        self, rows: Sequence[_Row], latents: Floats, noise: Floats, begin: int, past: _Past | None
    ) -> _Velocity:
        run, pipeline = self._run, self._run.pipeline
        if self._times is None:
            self._times = pipeline.time_features(solver_named(run.options.solver).times(run.options.steps))
            asked = [*self._texts, *([] if self._negative is None else [self._negative])]
            self._queries = [
                pipeline.query_features(query.text, np.asarray(query.mask, np.float32)) for query in asked
            ]
        (features,) = self._in_batches(lambda z: (pipeline.mixture_features(z),), latents, self._batch)
        together = max(1, self._loop_batch // (1 if self._negative is None else 2))
        chunks = [
            _Chunk(
                rows[first : first + together],
                features[[row.mixture for row in rows[first : first + together]]],
                _stacked([self._queries[row.query] for row in rows[first : first + together]]),
            )
            for first in range(0, len(rows), together)
        ]
        unwanted = None if self._negative is None else self._queries[-1]
        return _Velocity(run, chunks, self._times, unwanted, self._loop_batch, noise, begin, past)

    def _in_batches(
        self, work: Callable[[Floats], tuple[Floats, ...]], rows: Floats, batch: int
    ) -> tuple[Floats, ...]:
        pieces = [work(rows[first : first + batch]) for first in range(0, len(rows), batch)]
        return tuple(np.concatenate(outputs) for outputs in zip(*pieces, strict=True))

    def check(self, numbers: Floats) -> None:
        """Raises BackendError if there is one that is not finite."""
        if not np.isfinite(numbers).all():
            raise BackendError(
                f"The {self._run.pipeline.backend.name} backend gave numbers that are not finite: "
                "try another backend."
            )


class _Chunk(NamedTuple):
    """Rows that go through the network together."""

    rows: Sequence[_Row]
    mixture_features: Floats
    queries: QueryFeatures


class _Velocity:
    """The averaged velocity of all windows of a group, for a solver; remembers what it answered."""

    def __init__(
        self,
        run: Run,
        chunks: Sequence[_Chunk],
        times: Floats,
        unwanted: QueryFeatures | None,
        batch: int,
        noise: Floats,
        begin: int,
        past: _Past | None,
    ) -> None:
        self._pipeline, self._chunks, self._times = run.pipeline, chunks, times
        self._unwanted, self._guidance, self._batch = unwanted, np.float32(run.options.guidance), batch
        rows = [row for chunk in chunks for row in chunk.rows]
        self._frames = len(rows[0].share)
        cover = np.zeros((len(noise), noise.shape[2]), np.float32)
        for row in rows:
            cover[row.track, row.begin : row.begin + self._frames] += row.share
        self._known = cover > 0
        self._cover = np.where(self._known, cover, np.float32(1))[:, None, :, None]
        self._velocities = np.zeros((len(times), *noise[:, :, -self._frames :].shape), np.float32)
        #: Where the solver starts, [tracks, 8, F, 16]: the noise of what is decided already is part of it.
        self.noise = noise
        self._decided: Floats | None = None
        if past is not None and past.start + past.known.shape[1] > begin:
            skip = past.start + past.known.shape[1] - begin  # frames that are decided
            mask = past.known[:, None, -skip:, None]
            self.noise = noise.copy()
            self.noise[:, :, :skip] = np.where(mask, past.noise[:, :, -skip:], noise[:, :, :skip])
            self._known[:, :skip] |= past.known[:, -skip:]
            self._decided = past.velocities[:, :, :, -skip:]
            self._mask = mask

    def __call__(self, x: Floats, k: int) -> Floats:
        total = np.zeros_like(x)
        for chunk in self._chunks:
            states = np.stack([x[r.track, :, r.begin : r.begin + self._frames] for r in chunk.rows])
            for row, velocity in zip(chunk.rows, self._of_chunk(states, chunk, k), strict=True):
                total[row.track, :, row.begin : row.begin + self._frames] += row.share[:, None] * velocity
        total /= self._cover
        if self._decided is not None:
            decided = self._decided[k]
            shared = total[:, :, : decided.shape[2]]
            shared[:] = np.where(self._mask, decided, shared)
        self._velocities[k] = total[:, :, -self._frames :]
        return total

    def past(self, end: int) -> _Past:
        """The state that the next group must agree with, after the solver has finished."""
        last = slice(-self._frames, None)
        return _Past(
            end - self._frames, self.noise[:, :, last].copy(), self._velocities, self._known[:, last].copy()
        )

    def _of_chunk(self, x: Floats, chunk: _Chunk, k: int) -> Floats:
        if self._unwanted is None:
            return self._run(x, chunk.mixture_features, chunk.queries, k)
        unwanted = _stacked([self._unwanted] * len(x))
        if 2 * len(x) <= self._batch:
            both = _stacked([chunk.queries, unwanted])
            features = np.concatenate([chunk.mixture_features] * 2)
            velocities = self._run(np.concatenate([x, x]), features, both, k)
        else:
            asked = (self._run(x, chunk.mixture_features, q, k) for q in (chunk.queries, unwanted))
            velocities = np.concatenate(list(asked))
        return guided(velocities, self._guidance)

    def _run(self, x: Floats, mixture_features: Floats, queries: QueryFeatures, k: int) -> Floats:
        return self._pipeline.velocity_from(x, self._times[k : k + 1], mixture_features, queries)


def _stacked(features: Sequence[QueryFeatures]) -> QueryFeatures:
    return QueryFeatures(
        np.concatenate([each.keys_values for each in features]),
        np.concatenate([each.mask_bias for each in features]),
    )
