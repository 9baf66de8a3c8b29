"""One recording through the model into its files, block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flowsep_runtime.app.jobs import Job
from flowsep_runtime.app.made import TAG, made_by, mark
from flowsep_runtime.app.outputs import check_outputs, make_folder, replacing
from flowsep_runtime.app.plot import Plot
from flowsep_runtime.audio.clipping import ClipMode
from flowsep_runtime.audio.reading import AudioReader
from flowsep_runtime.audio.writing import AudioWriter, WavStream, encoding_for
from flowsep_runtime.errors import OptionError, shown

if TYPE_CHECKING:
    from flowsep_runtime.options import ResolvedOptions
    from flowsep_runtime.pipeline import Pipeline
    from flowsep_runtime.separation.run import Progress
    from flowsep_runtime.separator import Separator


@dataclass(frozen=True)
class Extras:
    """Files beside the results, the picture of a job with one query, and how all are written."""

    residual: Path | None = None
    mixture: Path | None = None
    plot: Path | None = None
    clip_mode: ClipMode = "clamp"

    @property
    def files(self) -> list[Path]:
        """Those files."""
        return [path for path in (self.residual, self.mixture, self.plot) if path is not None]

    def missing(self) -> Extras:
        """Those that are not there yet."""
        residual, mixture, plot = (
            None if path is None or path.exists() else path
            for path in (self.residual, self.mixture, self.plot)
        )
        return replace(self, residual=residual, mixture=mixture, plot=plot)


@dataclass(frozen=True)
class Report:
    """Result of a run.

    Attributes:
        timings: Seconds by stage; "load" is the time in which graphs were made ready for the first time.
        real_time_factor: Seconds of work, without "load", for a second of audio.
    """

    timings: dict[str, float]
    real_time_factor: float


def mark_of(
    job: Job,
    queries: Sequence[str],
    pipeline: Pipeline,
    options: ResolvedOptions,
    clip_mode: ClipMode,
    **former: object,
) -> str:
    """The mark of a job's result for some of its queries; `former` are options that were removed since."""
    # sounds that share the mixture depend on each other
    sharing = [query for query, _ in (*job.outputs, *job.done)] if options.kind == "masked" else []
    asked = {
        **asdict(options),
        "queries": list(queries),
        "sharing": sorted(sharing),
        "removes": job.removes,
        "span": asdict(job.span),
        "bundle": [pipeline.manifest.name, pipeline.manifest.provenance.sha256, pipeline.manifest.precision],
        "precision": pipeline.precision,
        "clip_mode": clip_mode,
        **former,
    }
    return mark(options.kind, asked)


def check_done(
    job: Job,
    pipeline: Pipeline,
    options: ResolvedOptions,
    clip_mode: ClipMode,
    mark_at: Callable[[Path], str | None] = made_by,
) -> None:
    """Compares the results that are there with what would be made now; `mark_at` looks up their marks.

    Raises:
        OptionError: If one was made with other options, or shares its mask with queries that are new.
    """
    former = replace(job, outputs=())  # before the queries whose results are missing were added
    for query, path in job.done:
        found = mark_at(path)
        asked = (job, [query], pipeline, options, clip_mode)
        # there was an option for several candidates once, of which 1 did what is done now
        if found is not None and found not in (mark_of(*asked), mark_of(*asked, candidates=1)):
            is_extended = found == mark_of(former, *asked[1:])
            made_with = (
                "fewer queries, and each sound depends on all of them"
                if is_extended
                else "other options or queries"
            )
            raise OptionError(
                f"{shown(path)} is there from a run with {made_with}: choose another output or add --force."
            )


class FileRun:
    """A job whose recording is open and whose outputs have been checked."""

    def __init__(self, job: Job, reader: AudioReader, extras: Extras, force: bool) -> None:
        """Checks the outputs before any work is done.

        Raises:
            AudioError: If an output's format does not take this recording.
            OptionError: If an output cannot be written or would destroy something.
        """
        self.job = job
        self._reader = reader
        self._extras = extras
        self._force = force
        sounds = [path for _, path in job.outputs] + [extras.residual, extras.mixture]
        self._encodings = {
            path: encoding_for(path, reader, extras.clip_mode) for path in sounds if path is not None
        }
        if job.makes_folders:
            for _, path in job.outputs:
                if path is not None:
                    make_folder(path.parent)
        self._files = [*self._encodings, *([] if extras.plot is None else [extras.plot])]
        check_outputs([path for path in [*sounds, extras.plot] if path is not None], job.source, force)

    def run(self, separator: Separator, options: ResolvedOptions, progress: Progress | None = None) -> Report:
        """Separates and writes; every file appears at the end, whole, or not at all.

        Raises:
            FlowSepError: Whatever goes wrong.
        """
        reader, extras, job = self._reader, self._extras, self.job
        queries = [query for query, _ in job.outputs]
        if options.kind == "masked" or extras.files:
            # Sounds share the mixture: each keeps its share whichever results are there already.
            queries += [query for query, _ in job.done]
        complement = separator.pipeline.manifest.model.complement_of(queries[0])
        asks_for_rest = job.removes and options.kind == "generated" and complement is not None
        parts = separator.stream(
            reader.blocks(),
            reader.sample_rate,
            [complement] if asks_for_rest and complement is not None else queries,
            samples=reader.frames,
            progress=progress,
            **options.fields(),
        )
        with replacing(self._files, keep=not self._force) as temporary:
            places = dict(zip(self._files, temporary, strict=True))
            plot = None if extras.plot is None else Plot(reader.sample_rate, reader.frames)

            def made(asked: Sequence[str]) -> dict[str, str]:
                return {TAG: mark_of(job, asked, separator.pipeline, options, extras.clip_mode)}

            with ExitStack() as stack:
                writers = [self._writer(stack, path, places, made([query])) for query, path in job.outputs]
                beside = {
                    name: self._writer(stack, path, places, made(queries))
                    for name, path in (("residual", extras.residual), ("mixture", extras.mixture))
                    if path is not None
                }
                for part in parts:
                    results, rest = part.targets, part.rest
                    if job.removes and not asks_for_rest:
                        results, rest = part.residuals, part.mixture - part.residuals[0]
                    # The results that are there already come last.
                    for writer, result in zip(writers, results, strict=False):
                        writer.write(result)
                    for name, writer in beside.items():
                        writer.write(rest if name == "residual" else part.mixture)
                    if plot is not None:
                        plot.add(part.mixture, results[0], rest)
            if plot is not None and extras.plot is not None:
                plot.draw(places[extras.plot], queries[0], extras.plot)
        work = sum(seconds for stage, seconds in parts.timings.items() if stage != "load")
        return Report(parts.timings, work * reader.sample_rate / reader.frames)

    def _writer(
        self, stack: ExitStack, path: Path | None, places: dict[Path, Path], tags: dict[str, str]
    ) -> AudioWriter | WavStream:
        reader = self._reader
        rate, channels = reader.sample_rate, reader.channels
        if path is None:
            return stack.enter_context(
                WavStream(rate, channels, reader.frames, reader.subtype, self._extras.clip_mode)
            )
        encoding = self._encodings[path]
        return stack.enter_context(
            AudioWriter(
                places[path], rate, channels, encoding, reader.tags | tags, path, self._extras.clip_mode
            )
        )
