"""A recording and a sentence in, the sound that the sentence names out."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Floats
from .audio import SILENCE, centred, checked_samples, resampled
from .backends import DeviceBackend, Precision
from .embeddings import Embeddings
from .errors import BackendError, BundleError, FlowSepWarning, OptionError, QueryError, shown
from .manifest import STAGES
from .masking import masked_mixture
from .pipeline import Pipeline
from .resident import Clip
from .solvers import solver_named
from .text import EncodedQuery, Tokenizer
from .windows import cross_fade, window_starts

BUNDLED = Path(__file__).parent / "assets" / "nano"
OVERLAP = 1 / 8  # of a window, shared with the next
LARGEST_BATCH = 4  # channels that go through the model together
PEAK = np.float32(0.5)  # SPEC section 1


@dataclass(frozen=True)
class Separation:
    """What `Separator.separate` gives. All audio has the input's shape, rate and level, in float32."""

    target: Floats
    """The generated target: the model's own waveform, up to 8 kHz."""
    masked: Floats
    """The mixture's own samples through the mask that the target implies."""
    residual: Floats
    """What is left of the mixture: masked + residual = mixture, sample by sample."""
    sample_rate: float
    timings: dict[str, float]
    """Seconds by stage; "load" is the time in which graphs were made ready for the first time."""
    real_time_factor: float
    """Seconds of work, without "load", for a second of audio: below 1 is faster than real time."""


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass
class _Run:
    """What one call of `separate` carries from stage to stage."""

    query: str
    steps: int
    solver: str
    seed: int
    progress: Callable[[int, int], None] | None
    clock: _Clock = field(default_factory=_Clock)
    steps_done: int = 0
    steps_in_all: int = 0

    def advance(self, steps: int) -> None:
        self.steps_done += steps
        if self.progress is not None:
            self.progress(self.steps_done, self.steps_in_all)


class Separator:
    """A model that is ready to separate. One object may serve several threads; with low memory, one at a
    time."""

    def __init__(self, pipeline: Pipeline, cache: bool = True) -> None:
        self.pipeline = pipeline
        self._tokenizer: Tokenizer | None = None
        self._embeddings = Embeddings(
            pipeline.manifest, pipeline.backend.name, pipeline.precision, on_disk=cache
        )
        self._queries_encoded = 0
        # Threads in different stages would keep taking the graphs from each other.
        self._turn = threading.Lock() if pipeline.low_memory else nullcontext()

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        backend: str = "auto",
        precision: Precision = "exact",
        threads: int | None = None,
        low_memory: bool = False,
        cache: bool = True,
    ) -> Separator:
        """Opens a bundle; graphs are loaded when they are first used.

        Args:
            bundle: A folder that flowsep-export wrote; None is the small model that ships with the package.
            backend: "auto" or a name of `backends.BACKENDS`.
            precision: "exact" (float32 arithmetic), "fast" (the engine's quickest whose error is known to be
                small) or "auto" ("fast" where this machine has such an arithmetic).
            threads: Threads of an engine on the CPU; None leaves it to the engine.
            low_memory: Keep the graphs of one stage at a time and load them again for the next window.
            cache: Whether encoded queries, compiled graphs and the results of checks may be kept in the
                user's cache folder.

        Raises:
            BundleError: If it is no bundle or was changed.
            OptionError: If the backend cannot run here.
        """
        if bundle is None:
            if not BUNDLED.is_dir():
                raise BundleError(
                    f"This installation carries no model ({shown(BUNDLED)} is missing): give a bundle folder."
                )
            bundle = BUNDLED
        return cls(Pipeline.load(bundle, backend, precision, threads, low_memory, cache), cache)

    def warm_up(self, channels: int = 1, steps: int | None = None, solver: str | None = None) -> None:
        """Does now what the first separation would do besides its work.

        Graphs are loaded, and the text encoder stays; an engine on a GPU also runs a clip of silence, so that
        its memory is allocated and its CUDA graphs are captured. With low memory every stage is loaded once
        and given back: what an engine keeps in the cache folder is then there.

        Args:
            channels: Channels that sound in the recordings to come; at most 4 go through the model together.
            steps, solver: As they will be given to `separate`.
        """
        pipeline = self.pipeline
        with self._turn:
            try:
                for stage in STAGES:
                    pipeline.load_stage(stage)
                if isinstance(pipeline.backend, DeviceBackend) and not pipeline.low_memory:
                    self._run_silence(channels, steps, solver or "euler")
            finally:
                if pipeline.low_memory:
                    pipeline.free()
        # Who warms up will have more than one query.
        self._queries_encoded = max(1, self._queries_encoded)

    def _run_silence(self, channels: int, steps: int | None, solver: str) -> None:
        pipeline, model = self.pipeline, self.pipeline.manifest.model
        # Not through the remembered queries: it is the encoder itself that has to be ready.
        tokens = self._loaded_tokenizer()("sound")
        text = pipeline.encode_text(tokens.input_ids, tokens.attention_mask)
        latent = (
            1,
            model.latent_channels,
            model.clip_frames // model.latent_stride,
            model.latent_frequencies,
        )
        noise = np.random.default_rng(0).standard_normal(latent, np.float32)
        waveform = np.zeros((min(channels, self._largest_batch()), model.clip_samples), np.float32)
        mask = np.asarray(tokens.attention_mask, np.float32)
        clip = Clip(waveform, noise, noise, text, mask)
        pipeline.generate(clip, model.default_steps if steps is None else steps, solver)

    def separate(
        self,
        audio: ArrayLike,
        sample_rate: float,
        query: str,
        steps: int | None = None,
        solver: str | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Separation:
        """Separates the sound that a query names.

        Every channel is separated for itself, with the same noise, so that a stereo image stays where it is
        and a channel's result is what that channel alone would give. Recordings longer than the model's clip
        (10.24 s) are cut into overlapping windows, each normalised for itself, that are cross-faded.

        Noise comes from one `np.random.default_rng(seed)`. Window by window it gives two standard normal
        float32 arrays [1, 8, t, 16], first the posterior's, then the solver's starting point: same seed,
        same bytes on the same backend.

        Args:
            audio: Floating-point [samples] or [samples, channels], any length from one sample, any level.
            sample_rate: In Hz, 1 000 to 768 000.
            query: What to separate, in words; beyond the model's text length (50 tokens) it is cut, with a
                warning.
            steps: Solver steps; None is the bundle's default (20).
            solver: A name of `solvers.SOLVERS`; None is Euler's.
            seed: Of all noise, 0 or more.
            progress: Called with (steps done, steps in all) after every solver step.

        Returns:
            Target, masked target and residual at the input's level, rate, shape and exact length. A silent
            channel (or one that is constant) gives a silent target; if all are, a `FlowSepWarning` says so
            and no model runs.

        Raises:
            AudioError: If the audio is empty, not floating point, or holds NaN or infinite samples.
            QueryError: If the query is empty.
            OptionError: If steps, solver or seed are out of range.
            BackendError: If the engine fails or gives numbers that are not finite.
        """
        mixture = checked_samples(audio, sample_rate)
        if not query.strip():
            raise QueryError("The query is empty: say in a few words what to separate.")
        steps = self.pipeline.manifest.model.default_steps if steps is None else steps
        if steps < 1:
            raise OptionError(f"steps must be at least 1 and not {steps}.")
        if seed < 0:
            raise OptionError(f"seed must be 0 or more and not {seed}.")
        solver = solver or "euler"
        solver_named(solver)
        run = _Run(query, steps, solver, seed, progress)

        target = np.zeros_like(mixture)
        sound = centred(mixture)
        sounding = np.flatnonzero(np.abs(sound).max(axis=0) > SILENCE)
        if len(sounding):
            with self._turn:
                try:
                    target[:, sounding] = self._generate(mixture[:, sounding], sample_rate, run)
                finally:
                    if self.pipeline.low_memory:
                        self.pipeline.free()
        else:
            warnings.warn("The audio is silent: so is the result.", FlowSepWarning, stacklevel=2)

        model_rate = self.pipeline.manifest.model.sample_rate
        # The resampler rolls off below half the model's rate; at the model's rate or below there is nothing
        # above it.
        band = model_rate / 2 * (0.9 if sample_rate > model_rate else 1.0)
        with run.clock("mask"):
            masked = np.zeros_like(mixture)
            # A constant offset is no sound: it stays in the residual.
            for channel in sounding:
                masked[:, channel] = masked_mixture(sound[:, channel], target[:, channel], sample_rate, band)

        work = sum(seconds for stage, seconds in run.clock.seconds.items() if stage != "load")
        shape = np.shape(audio)
        return Separation(
            target=target.reshape(shape),
            masked=masked.reshape(shape),
            residual=(mixture - masked).reshape(shape),
            sample_rate=sample_rate,
            timings=run.clock.seconds,
            real_time_factor=work * sample_rate / len(mixture),
        )

    def _generate(self, mixture: Floats, sample_rate: float, run: _Run) -> Floats:
        """Mixture [samples, channels] -> generated target, the same shape, rate and level."""
        model = self.pipeline.manifest.model
        with run.clock("resample"):
            length = max(1, round(len(mixture) * model.sample_rate / sample_rate))
            waveform = resampled(mixture, sample_rate, model.sample_rate, length)
        query = self._encoded(run)
        if query.truncated:
            warnings.warn(
                f"The query is longer than the {model.text_length} tokens that the model reads and is cut.",
                FlowSepWarning,
                stacklevel=3,
            )

        starts = window_starts(length, model.clip_samples, int(model.clip_samples * OVERLAP))
        channels = mixture.shape[1]
        together = self._largest_batch()
        groups = [slice(first, first + together) for first in range(0, channels, together)]
        run.steps_in_all = len(starts) * len(groups) * run.steps
        generator = np.random.default_rng(run.seed)
        shape = (1, model.latent_channels, model.clip_frames // model.latent_stride, model.latent_frequencies)

        target = np.zeros_like(waveform)
        known = 0
        for start in starts:
            posterior_noise = generator.standard_normal(shape, np.float32)
            noise = generator.standard_normal(shape, np.float32)
            window = waveform[start : start + model.clip_samples]
            pieces = [self._generate_window(window[:, g], query, posterior_noise, noise, run) for g in groups]
            known = cross_fade(target, known, np.concatenate(pieces, axis=1), start)
        with run.clock("resample"):
            return resampled(target, model.sample_rate, sample_rate, len(mixture))

    def _generate_window(
        self, window: Floats, query: EncodedQuery, posterior_noise: Floats, noise: Floats, run: _Run
    ) -> Floats:
        """One clip or less [samples, channels] at the model's rate -> its target, same shape and level."""
        model = self.pipeline.manifest.model
        target = np.zeros_like(window)
        sound = centred(window)
        peak = np.abs(sound).max(axis=0)
        sounding = np.flatnonzero(peak > SILENCE)
        if not len(sounding):
            run.advance(run.steps)
            return target
        gain = PEAK / (peak[sounding] + np.float32(1e-8))
        waveform = np.zeros((len(sounding), model.clip_samples), np.float32)
        waveform[:, : len(window)] = (sound[:, sounding] * gain).T

        pipeline = self.pipeline
        generated = pipeline.generate(
            Clip(waveform, posterior_noise, noise, query.text, np.asarray(query.mask, np.float32)),
            run.steps,
            run.solver,
            lambda done, steps: run.advance(1),
            lambda stage: self._stage(stage, run),
        )
        if not np.isfinite(generated).all():
            raise BackendError(
                f"The {pipeline.backend.name} backend gave numbers that are not finite: try another backend."
            )
        target[:, sounding] = generated[:, : len(window)].T / gain
        return target

    def _largest_batch(self) -> int:
        backend = self.pipeline.backend
        most = backend.batches.most if isinstance(backend, DeviceBackend) else LARGEST_BATCH
        return min(most, LARGEST_BATCH)

    def _encoded(self, run: _Run) -> EncodedQuery:
        with run.clock("load"):
            tokenizer = self._loaded_tokenizer()
        with run.clock("encode_text"):
            tokens = tokenizer(run.query)
            text = self._embeddings.recall(tokens)
        if text is None:
            with self._stage("encode_text", run):
                encoded = self.pipeline.encode_text(tokens.input_ids, tokens.attention_mask)
                text = self._embeddings.keep(tokens, encoded)
            # The largest graph, and most runs have one query; who has a second will have a third.
            self._queries_encoded += 1
            if self._queries_encoded == 1:
                self.pipeline.free_stage("encode_text")
        return EncodedQuery(text, tokens.attention_mask, tokens.truncated)

    def _loaded_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.pipeline.folder, self.pipeline.manifest)
        return self._tokenizer

    @contextmanager
    def _stage(self, stage: str, run: _Run) -> Iterator[None]:
        with run.clock("load"):
            self.pipeline.load_stage(stage)
        with run.clock(stage):
            yield
