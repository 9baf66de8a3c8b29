"""A recording and a sentence in, the sound that the sentence names out."""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from flowsep_runtime.arrays import Floats
from flowsep_runtime.audio.checks import checked_rate, checked_samples
from flowsep_runtime.backends import DeviceBackend, Precision
from flowsep_runtime.bundle.manifest import STAGES, ModelEntry
from flowsep_runtime.checks import real_number, whole_number
from flowsep_runtime.device_pipeline import Clip
from flowsep_runtime.errors import AudioError, BundleError, FlowSepWarning, OptionError, QueryError, shown
from flowsep_runtime.pipeline import Pipeline
from flowsep_runtime.separation.joint import Request
from flowsep_runtime.separation.longform import JOININGS, OVERLAPS, Joining, LongForm
from flowsep_runtime.separation.queries import EncodedQuery, Tokenizer
from flowsep_runtime.separation.query_cache import Embeddings
from flowsep_runtime.separation.streaming import Parts, Work, parts
from flowsep_runtime.separation.windows import window_starts
from flowsep_runtime.solvers import solver_named

BUNDLED = Path(__file__).parent / "assets" / "nano"
_AHEAD = ("log_mel", "encode_mixture", "velocity", "decode_latent", "vocode")  # as they will be needed
MOST_STEPS, MOST_CANDIDATES = 10_000, 1000
LARGEST_BATCH = 4  # rows that go through the model together
WINDOWS: Joining = "joint"  # docs/long-recordings.md has the numbers


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


@dataclass(frozen=True)
class _Options:
    """What a caller asks for, checked."""

    queries: tuple[str, ...]
    steps: int
    solver: str
    seed: int
    mono: bool
    guidance: float
    negative: str | None
    candidates: int
    windows: Joining
    model: ModelEntry  # its clip is a window

    @property
    def window_steps(self) -> int:
        """Steps for one window, as they are counted."""
        return self.steps * len(self.queries) * self.candidates

    def count(self, samples: int, sample_rate: float) -> int:
        """Steps for a recording."""
        length = max(1, round(samples * self.model.sample_rate / sample_rate))
        per_frame = self.model.hop_length * self.model.latent_stride
        overlap = int(self.model.clip_samples // per_frame * OVERLAPS[self.windows]) * per_frame
        return len(window_starts(length, self.model.clip_samples, overlap)) * self.window_steps


@dataclass
class _Run:
    """What one separation carries from stage to stage."""

    progress: Callable[[int, int | None], None] | None
    steps_in_all: int | None
    clock: _Clock = field(default_factory=_Clock)
    steps_done: int = 0
    loads_ahead: bool = False

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
        whole_number("channels", channels, 1)
        with self._turn:
            try:
                for stage in STAGES:
                    pipeline.load_stage(stage)
                if isinstance(pipeline.backend, DeviceBackend) and not pipeline.low_memory:
                    self._run_silence(
                        channels, *pipeline.manifest.model.schedule(pipeline.precision, steps, solver)
                    )
            finally:
                if pipeline.low_memory:
                    pipeline.free()
        # Who warms up will have more than one query.
        self._queries_encoded = max(1, self._queries_encoded)

    def _run_silence(self, channels: int, steps: int, solver: str) -> None:
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
        pipeline.generate(clip, steps, solver)

    @overload
    def separate(
        self,
        audio: ArrayLike,
        sample_rate: float,
        query: str,
        steps: int | None = None,
        solver: str | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
        *,
        mono: bool = False,
        guidance: float = 1.0,
        negative: str | None = None,
        candidates: int = 1,
        windows: Joining = WINDOWS,
        window: float | None = None,
    ) -> Separation: ...

    @overload
    def separate(
        self,
        audio: ArrayLike,
        sample_rate: float,
        query: list[str] | tuple[str, ...],
        steps: int | None = None,
        solver: str | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
        *,
        mono: bool = False,
        guidance: float = 1.0,
        negative: str | None = None,
        candidates: int = 1,
        windows: Joining = WINDOWS,
        window: float | None = None,
    ) -> list[Separation]: ...

    def separate(
        self,
        audio: ArrayLike,
        sample_rate: float,
        query: str | Sequence[str],
        steps: int | None = None,
        solver: str | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
        *,
        mono: bool = False,
        guidance: float = 1.0,
        negative: str | None = None,
        candidates: int = 1,
        windows: Joining = WINDOWS,
        window: float | None = None,
    ) -> Separation | list[Separation]:
        """Separates the sounds that queries name from a recording in memory.

        Every channel is separated for itself, with the same noise, so that a stereo image stays where it is
        and a channel's result is what that channel alone would give. Recordings longer than the model's clip
        (10.24 s) are cut into overlapping windows.

        Noise comes from one `np.random.default_rng(seed)`. Clip length by clip length it gives two standard
        normal float32 arrays [1, 8, t, 16], first the posterior's, then the solver's starting point: same
        seed, same bytes on the same backend.

        Args:
            audio: Floating-point [samples] or [samples, channels], any length from one sample, any level.
            sample_rate: In Hz, 1 000 to 768 000.
            query: What to separate, in words, or several such; beyond the model's text length (50 tokens) one
                is cut, with a warning. The mixture is encoded once for all of them.
            steps: Solver steps; None is the bundle's default for this precision (20 as published).
            solver: A name of `solvers.SOLVERS`; None is the bundle's default for this precision (Euler's).
            seed: Of all noise, 0 or more.
            progress: Called with (steps done, steps in all) as steps are done; a window takes its steps for
                every query and candidate.
            mono: Separate the mid (the mean of all channels) only: the target is the same in all channels,
                and one mask filters them all.
            guidance: How far to go from what the negative query says towards what the query says: 1 is the
                query alone, more exaggerates the difference. Other values than 1 double the solver's work.
            negative: What not to have; None is the empty query. Needs a guidance other than 1.
            candidates: Generate so many targets, with this seed and the following ones, and keep the one that
                explains the mixture best (`candidates.py`), query by query; in a long recording, group of
                windows by group.
            windows: How the windows of a long recording are put together: "joint", "cross-fade" or "none".
            window: Length of the windows in seconds, rounded up to what the model takes; None is its clip.
                A short window saves the time that silence behind a short recording would take; what it costs
                is measured in docs/long-recordings.md.

        Returns:
            For every query (a list where a sequence was given) target, masked target and residual at the
            input's level, rate, shape and exact length. A silent channel (or one that is constant) gives a
            silent target; if all are, a `FlowSepWarning` says so and no model runs.

        Raises:
            AudioError: If the audio is empty, not floating point, or holds NaN or infinite samples.
            QueryError: If a query is empty.
            OptionError: If another argument is out of range.
            BackendError: If the engine fails or gives numbers that are not finite.
        """
        mixture = checked_samples(audio, sample_rate)
        options = self._options(
            query, steps, solver, seed, mono, guidance, negative, candidates, windows, window
        )
        told: Callable[[int, int | None], None] | None = None
        if progress is not None:
            told = lambda done, total: progress(done, total or done)  # noqa: E731
        run = _Run(told, options.count(len(mixture), sample_rate))
        slices = (mixture[first : first + (1 << 20)] for first in range(0, len(mixture), 1 << 20))
        known = list(parts(slices, sample_rate, self._work(options, run)))
        work = sum(seconds for stage, seconds in run.clock.seconds.items() if stage != "load")
        shape, factor = np.shape(audio), work * sample_rate / len(mixture)
        separations = []
        for number in range(len(options.queries)):
            target = np.concatenate([part.targets[number] for part in known])
            masked = np.concatenate([part.masked[number] for part in known])
            residual = (mixture - masked).reshape(shape)
            target, masked = target.reshape(shape), masked.reshape(shape)
            separations.append(Separation(target, masked, residual, sample_rate, run.clock.seconds, factor))
        return separations[0] if isinstance(query, str) else separations

    def stream(
        self,
        blocks: Iterable[ArrayLike],
        sample_rate: float,
        query: str | Sequence[str],
        *,
        steps: int | None = None,
        solver: str | None = None,
        seed: int = 0,
        mono: bool = False,
        guidance: float = 1.0,
        negative: str | None = None,
        candidates: int = 1,
        windows: Joining = WINDOWS,
        window: float | None = None,
        samples: int | None = None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Parts:
        """Separates a recording of any length while it comes in; memory is that of a few windows.

        The result is that of `separate`, in parts that are given as soon as they are known. How far they lag
        behind the input is in docs/long-recordings.md.

        Args:
            blocks: Floating-point [samples] or [samples, channels], of any lengths; all of one channel count.
            sample_rate: Of all of them, in Hz, 1 000 to 768 000.
            query, steps, solver, seed, mono, guidance, negative, candidates, windows, window: As for
                `separate`.
            samples: Of the whole recording, if that is known: for `progress` only.
            progress: Called with (steps done, steps in all or None if `samples` is not given).

        Returns:
            An iterator over consecutive parts, together exactly as long as the input. It may be closed, or
            left alone, at any time: it holds nothing but memory of its own.

        Raises:
            As `separate`; what concerns the audio is raised when it is reached.
        """
        checked_rate(sample_rate)
        options = self._options(
            query, steps, solver, seed, mono, guidance, negative, candidates, windows, window
        )
        run = _Run(progress, None if samples is None else options.count(max(1, samples), sample_rate))
        work = self._work(options, run)
        return Parts(parts(_checked(blocks, sample_rate), sample_rate, work), run.clock.seconds)

    def _options(
        self,
        query: str | Sequence[str],
        steps: int | None,
        solver: str | None,
        seed: int,
        mono: bool,
        guidance: float,
        negative: str | None,
        candidates: int,
        windows: Joining,
        window: float | None,
    ) -> _Options:
        model = self.pipeline.manifest.model
        is_one = isinstance(query, str) or not isinstance(query, Iterable)
        given: tuple[object, ...] = (query,) if is_one else tuple(query)
        queries = tuple(each for each in given if isinstance(each, str))
        if len(queries) < len(given) or not isinstance(negative, str | None):
            raise QueryError("A query must be text: give a sentence, or several in a list.")
        if not queries or any(not each.strip() for each in queries):
            raise QueryError("The query is empty: say in a few words what to separate.")
        steps, solver = model.schedule(self.pipeline.precision, steps, solver)
        steps = whole_number("steps", steps, 1, MOST_STEPS)
        seed = whole_number("seed", seed, 0)
        candidates = whole_number("candidates", candidates, 1, MOST_CANDIDATES)
        solver_named(solver)
        guidance = real_number("guidance", guidance)
        if negative is not None and guidance == 1:
            raise OptionError("A negative query has no say at guidance 1: give a guidance of 1.5, say.")
        if windows not in JOININGS:
            raise OptionError(f"There are no windows {windows!r}: choose from {', '.join(JOININGS)}.")
        if window is not None:
            window = real_number("window", window)
            if not 0 < window <= model.clip_samples / model.sample_rate:
                raise OptionError(
                    f"window must be above 0 and at most {model.clip_samples / model.sample_rate:g} seconds, "
                    f"the model's clip, and not {window}."
                )
            multiple = model.hop_length * model.frame_multiple
            model = replace(
                model, clip_samples=math.ceil(round(window * model.sample_rate) / multiple) * multiple
            )
        return _Options(queries, steps, solver, seed, mono, guidance, negative, candidates, windows, model)

    def _work(self, options: _Options, run: _Run) -> Work:
        def open_long(channels: int) -> LongForm:
            encoded = [self._encoded(query, run) for query in options.queries]
            guided = options.guidance != 1
            if any(query.truncated for query in encoded):
                warnings.warn(
                    f"The query is longer than the {options.model.text_length} tokens that the model reads "
                    "and is cut.",
                    FlowSepWarning,
                    stacklevel=4,
                )
            request = Request(
                tuple(encoded),
                self._encoded(options.negative or "", run) if guided else None,
                options.guidance,
                options.steps,
                options.solver,
                options.seed,
                options.candidates,
            )
            return LongForm(
                self.pipeline,
                options.model,
                request,
                options.windows,
                channels,
                self._largest_batch(),
                lambda stage: self._stage(stage, run),
                run.advance,
            )

        return Work(options.model, options.mono, len(options.queries), open_long, self._alone, run.clock)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """What the model's work is done in: with low memory, one thread at a time, and nothing stays."""
        with self._turn:
            try:
                yield
            finally:
                if self.pipeline.low_memory:
                    self.pipeline.free()

    def _largest_batch(self) -> int:
        backend = self.pipeline.backend
        most = backend.batches.most if isinstance(backend, DeviceBackend) else LARGEST_BATCH
        return min(most, LARGEST_BATCH)

    def _encoded(self, query: str, run: _Run) -> EncodedQuery:
        with run.clock("load"):
            tokenizer = self._loaded_tokenizer()
        with run.clock("encode_text"):
            tokens = tokenizer(query)
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
        if stage == _AHEAD[0] and not run.loads_ahead:
            # not before: what is silent needs no model
            run.loads_ahead = True
            self.pipeline.load_ahead(_AHEAD)
        with run.clock("load"):
            self.pipeline.load_stage(stage)
        with run.clock(stage):
            yield


def _checked(blocks: Iterable[ArrayLike], sample_rate: float) -> Iterator[Floats]:
    """Blocks as float32 [samples, channels], all of one channel count; empty ones are left out."""
    channels: int | None = None
    for block in blocks:
        if not np.size(block):
            continue
        samples = checked_samples(block, sample_rate)
        if channels is not None and samples.shape[1] != channels:
            raise AudioError(
                f"A block has {samples.shape[1]} channels and those before it {channels}: "
                "give all of them the same."
            )
        channels = samples.shape[1]
        yield samples
    if channels is None:
        raise AudioError("The audio is empty: it holds no samples.")
