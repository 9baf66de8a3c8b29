"""A recording and a sentence in, the sound that the sentence names out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from flowsep_runtime.arrays import Floats
from flowsep_runtime.audio.checks import checked_rate, checked_samples
from flowsep_runtime.backends import DeviceBackend, Precision
from flowsep_runtime.checks import whole_number
from flowsep_runtime.device_pipeline import Clip, Guidance
from flowsep_runtime.errors import AudioError, BundleError, QueryError, shown
from flowsep_runtime.options import OptionFields, Options
from flowsep_runtime.pipeline import Pipeline
from flowsep_runtime.separation.run import Progress, Run, largest_batch, largest_loop
from flowsep_runtime.separation.streaming import Parts, parts
from flowsep_runtime.separation.texts import Texts

if TYPE_CHECKING:
    from typing_extensions import Unpack

BUNDLED = Path(__file__).parent / "assets" / "nano"


@dataclass(frozen=True)
class Separation:
    """Result of `Separator.separate`. All audio has the input's shape, rate and level, in float32.

    Attributes:
        target: The sound that was asked for: the mixture's own samples through a mask, or, of kind
            "generated", the model's own waveform, up to 8 kHz.
        residual: The rest of the mixture, without the sound. With a masked target, target + residual =
            mixture, sample by sample.
        timings: Seconds by stage; "load" is the time in which graphs were made ready for the first time.
        real_time_factor: Seconds of work, without "load", for a second of audio: below 1 is faster than real
            time.
    """

    target: Floats
    residual: Floats
    sample_rate: float
    timings: dict[str, float]
    real_time_factor: float


class Separator:
    """A model that is ready to separate. One object may serve several threads; with low memory, one at a
    time."""

    def __init__(self, pipeline: Pipeline, cache: bool = True) -> None:
        self.pipeline = pipeline
        self._cache = cache
        self._texts = Texts(pipeline, cache)
        # Threads in different stages would keep taking the graphs from each other.
        self._turn = threading.Lock() if pipeline.low_memory else nullcontext()

    def __reduce__(self) -> tuple[type[Separator], tuple[Pipeline, bool]]:
        """Opens the bundle again in the process that unpickles it: graphs do not travel."""
        return Separator, (self.pipeline, self._cache)

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
            bundle: A folder that flowsep-export wrote, or, in a string, `owner/name` on the Hugging Face hub,
                which is fetched if it is not in the hub's cache; None is the small model that ships with the
                package.
            backend: "auto" or a name of `backends.BACKENDS`.
            precision: "exact" (float32 arithmetic), "fast" (the backend's quickest whose error is known to be
                small) or "auto" ("fast" where this machine has such an arithmetic).
            threads: Threads of a backend on the CPU; None leaves it to the backend.
            low_memory: Keep the graphs of one stage at a time and load them again for the next window.
            cache: Whether encoded queries, compiled graphs and the results of checks may be kept in the
                user's cache folder.

        Raises:
            BundleError: If it is not a bundle or was changed.
            OptionError: If the backend cannot run here.
        """
        if bundle is None:
            if not BUNDLED.is_dir():
                raise BundleError(
                    f"This installation has no model ({shown(BUNDLED)} is missing): give a bundle folder."
                )
            bundle = BUNDLED
        return cls(Pipeline.load(bundle, backend, precision, threads, low_memory, cache), cache)

    def warm_up(self, channels: int = 1, **options: Unpack[OptionFields]) -> None:
        """Does now what the first separation would do besides its work.

        Graphs are loaded, the vocoder's only if results of the options' kind need it, and the text encoder
        stays. A backend on a GPU also runs a clip of silence, so that its memory is allocated and its CUDA
        graphs are captured. With low memory every stage is loaded once and given back: what a backend keeps
        in the cache folder is then there.

        Args:
            channels: Channels that sound in the recordings to come; at most 4 go through the model together.
            options: As they will be given to `separate`.
        """
        whole_number("channels", channels, 1)
        run = self._run(["sound"], options)
        with run.model_in_use():
            self.pipeline.load_ahead(run.stages)
            for stage in ("encode_text", *run.stages):
                self.pipeline.load_stage(stage)
            if isinstance(self.pipeline.backend, DeviceBackend) and not self.pipeline.low_memory:
                self._run_silence(run, channels)
        self._texts.expect_more()

    def _run_silence(self, run: Run, channels: int) -> None:
        # Not through the remembered queries: the encoder itself has to be ready.
        tokens = self._texts.open_tokenizer()("sound")
        text = self.pipeline.encode_text(tokens.input_ids, tokens.attention_mask)
        model = self.pipeline.manifest.model
        frames = model.clip_frames // model.latent_stride
        latent = (1, model.latent_channels, frames, model.latent_frequencies)
        noise = np.random.default_rng(0).standard_normal(latent, np.float32)
        channels = min(channels, largest_batch(self.pipeline))
        waveform = np.zeros((channels, model.clip_samples), np.float32)
        mask = np.asarray(tokens.attention_mask, np.float32)
        together, guidance = largest_loop(self.pipeline), None
        if run.guided and together > 1:
            guidance = Guidance(text, mask, np.ones(1, np.float32))
        rows = np.repeat(np.arange(channels), len(run.sentences)).tolist()
        clip = Clip(waveform, noise, noise, text, mask, rows, guidance)
        steps, solver, vocode = run.options.steps, run.options.solver, not run.masked
        self.pipeline.run(clip, steps, solver, vocode=vocode, largest_loop=together)

    def separate(
        self,
        audio: ArrayLike,
        sample_rate: float,
        query: str,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Unpack[OptionFields],
    ) -> Separation:
        """Separates the sound that a query names from a recording in memory.

        Every channel is separated for itself, with the same noise, so that a stereo image stays where it is
        and a channel's result is what that channel alone would give. Recordings longer than the model's clip
        (10.24 s) are cut into overlapping windows.

        Noise comes from one `np.random.default_rng(seed)`. Clip length by clip length it gives two standard
        normal float32 arrays [1, 8, t, 16], first the posterior's, then the solver's starting point: same
        seed, same bytes on the same backend.

            separator.separate(samples, 44100, "dog barking", steps=10)

        Args:
            audio: Floating-point [samples] or [samples, channels], any length from one sample, any level.
            sample_rate: In Hz, 1 000 to 768 000.
            query: What to separate, in words; beyond the model's text length (50 tokens) it is cut, with a
                warning.
            progress: Called with (steps done, steps in all) as steps are done; a window takes its steps for
                every query.
            options: The fields of `Options`.

        Returns:
            Target and residual at the input's level, rate, shape and exact length. A silent
            channel (or one that is constant) gives a silent target; if all are, a `FlowSepWarning` says so
            and no model runs.

        Raises:
            AudioError: If the audio is empty, not floating point, or holds NaN or infinite samples.
            QueryError: If the query is empty.
            OptionError: If an option is out of range.
            BackendError: If the backend fails or gives numbers that are not finite.
        """
        if not isinstance(query, str):
            raise QueryError("separate takes one query: give several to separate_all.")
        (separation,) = self.separate_all(audio, sample_rate, [query], progress=progress, **options)
        return separation

    def separate_all(
        self,
        audio: ArrayLike,
        sample_rate: float,
        queries: Sequence[str],
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Unpack[OptionFields],
    ) -> list[Separation]:
        """Separates the sounds that several queries name; the mixture is encoded once for all of them.

        They share the mixture: their masks add up to at most 1, and what is left is no query's. A query that
        is given twice is one sound, and both get its result.

            dog, rain = separator.separate_all(samples, 44100, ["dog barking", "rain"])

        Args and errors are those of `separate`.

        Returns:
            A separation for every query.
        """
        mixture = checked_samples(audio, sample_rate)
        told: Progress | None = None
        if progress is not None:
            told = lambda done, total: progress(done, total or done)  # noqa: E731
        run = self._run(queries, options, told)
        run.expect(len(mixture), sample_rate)
        slices = (mixture[first : first + (1 << 20)] for first in range(0, len(mixture), 1 << 20))
        known = list(parts(slices, sample_rate, run))
        work = sum(seconds for stage, seconds in run.seconds.items() if stage != "load")
        shape, factor = np.shape(audio), work * sample_rate / len(mixture)
        separations = []
        for number in map(run.queries.index, queries):
            target, residual = (
                np.concatenate([tracks[number] for tracks in each]).reshape(shape)
                for each in ([part.targets for part in known], [part.residuals for part in known])
            )
            separations.append(Separation(target, residual, sample_rate, run.seconds, factor))
        return separations

    def stream(
        self,
        blocks: Iterable[ArrayLike],
        sample_rate: float,
        query: str | Sequence[str],
        *,
        samples: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[OptionFields],
    ) -> Parts:
        """Separates a recording of any length while it comes in; memory is that of a few windows.

        The result is that of `separate`, in parts that are given as soon as they are known. How far they lag
        behind the input is in docs/long-recordings.md.

            for part in separator.stream(blocks, 44100, "dog barking"):
                play(part.targets[0])

        Args:
            blocks: Floating-point [samples] or [samples, channels], of any lengths; all of one channel count.
            sample_rate: Of all of them, in Hz, 1 000 to 768 000.
            query: One query, or several.
            samples: Of the whole recording, if that is known: for `progress` only.
            progress: Called with (steps done, steps in all or None if `samples` is not given).
            options: The fields of `Options`.

        Returns:
            An iterator over consecutive parts, together exactly as long as the input. It may be closed, or
            left alone, at any time: it holds nothing but memory of its own.

        Raises:
            As `separate`; what concerns the audio is raised when it is reached.
        """
        checked_rate(sample_rate)
        queries = [query] if isinstance(query, str) else query
        run = self._run(queries, options, progress)
        if samples is not None:
            run.expect(samples, sample_rate)
        places = [run.queries.index(each) for each in queries]
        return Parts(parts(_checked(blocks, sample_rate), sample_rate, run), run.seconds, places)

    def _run(self, queries: Sequence[str], options: OptionFields, progress: Progress | None = None) -> Run:
        if not isinstance(queries, Sequence) or not all(isinstance(query, str) for query in queries):
            raise QueryError("A query must be text: give a sentence, or several in a list.")
        if not queries or any(not query.strip() for query in queries):
            raise QueryError("The query is empty: say in a few words what to separate.")
        resolved = Options(**options).resolved(self.pipeline.manifest.model, self.pipeline.precision)
        # Given twice, a query would share its sound with itself.
        distinct = tuple(dict.fromkeys(queries))
        return Run(self.pipeline, self._texts, self._turn, resolved, distinct, progress)


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
