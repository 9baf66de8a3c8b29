"""Answers of `flowsep-run`: what was done, in words or as JSON, warnings, and a progress bar."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowsep_runtime.app.console import one_line
from flowsep_runtime.errors import FlowSepWarning, shown

if TYPE_CHECKING:
    from flowsep_runtime.app.file_runs import Extras, Report
    from flowsep_runtime.app.jobs import Job
    from flowsep_runtime.audio.reading import AudioReader
    from flowsep_runtime.options import ResolvedOptions
    from flowsep_runtime.separation.run import Progress
    from flowsep_runtime.separator import Separator

PROGRAM = "flowsep-run"


def naming(job: Job, sentence: str) -> str:
    return sentence if job.name in sentence else f"{job.name}: {sentence}"


@contextmanager
def told(job: Job | None = None) -> Iterator[list[str]]:
    """Says the warnings of the work inside on stderr, with the job's name; the list has them at the end."""
    remarks: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FlowSepWarning)
        yield remarks
    remarks += [str(warning.message) for warning in caught]
    for remark in remarks:
        said = remark if job is None else naming(job, remark)
        click.echo(f"{PROGRAM}: warning: {one_line(said)}", err=True)


@dataclass(frozen=True)
class Speaker:
    """Says what was done: in words or as JSON, on stdout unless the sound goes there.

    Attributes:
        several: True if there is more than one recording.
    """

    as_json: bool
    on_stderr: bool
    several: bool

    def done_before(self, job: Job) -> None:
        for _, path in job.done:
            if self.as_json:
                answer = {"input": _path(job.source), "output": str(path), "skipped": True}
                click.echo(json.dumps(answer), err=self.on_stderr)
            else:
                click.echo(f"{shown(path)}: done before; --force does it again", err=self.on_stderr)

    def done(
        self,
        job: Job,
        extras: Extras,
        reader: AudioReader,
        separator: Separator,
        options: ResolvedOptions,
        report: Report,
        remarks: Sequence[str],
    ) -> None:
        from flowsep_runtime.app.memory import peak_memory

        peak = peak_memory()
        if not self.as_json:
            # without a result of its own, the run was for the files beside those that are there
            made = [path for _, path in job.outputs] or extras.files
            names = ", ".join("standard output" if path is None else shown(path) for path in made)
            stages = [f"{name.replace('_', ' ')} {spent:.2f} s" for name, spent in report.timings.items()]
            channels = "1 channel" if reader.channels == 1 else f"{reader.channels} channels"
            length = reader.frames / reader.sample_rate
            parts = [f"{options.kind}, {length:.2f} s, {channels} at {reader.sample_rate} Hz"]
            parts.extend([", ".join(stages)] if stages else [])
            parts.append(f"real-time factor {report.real_time_factor:.3f}")
            parts.extend([] if peak is None else [f"peak memory {peak / 1e6:.0f} MB"])
            parts.append(separator.pipeline.backend.description)
            click.echo(f"{names}: {'; '.join(parts)}", err=self.on_stderr)
            return
        pipeline = separator.pipeline
        for query, path in job.outputs:
            answer: dict[str, Any] = {
                "input": _path(job.source),
                "output": _path(path),
                "residual": None if extras.residual is None else str(extras.residual),
                "mixture": None if extras.mixture is None else str(extras.mixture),
                "plot": None if extras.plot is None else str(extras.plot),
                "sample_rate": reader.sample_rate,
                "channels": reader.channels,
                "start": job.span.start,
                "seconds": reader.frames / reader.sample_rate,
                "bundle": pipeline.manifest.name,
                "backend": pipeline.backend.name,
                "description": pipeline.backend.description,
                "precision": pipeline.precision,
                "query": query,
                "removed": job.removes,
                **asdict(options),
                "timings": report.timings,
                "real_time_factor": report.real_time_factor,
                "peak_memory": peak,
                "warnings": list(remarks),
            }
            click.echo(json.dumps(answer), err=self.on_stderr)


def _path(path: Path | None) -> str:
    return "-" if path is None else str(path)


def say_prepared(separator: Separator, seconds: float, as_json: bool) -> None:
    pipeline = separator.pipeline
    if as_json:
        answer = {
            "bundle": pipeline.manifest.name,
            "backend": pipeline.backend.name,
            "description": pipeline.backend.description,
            "seconds": seconds,
        }
        click.echo(json.dumps(answer))
    else:
        click.echo(f"{pipeline.manifest.name} is ready after {seconds:.1f} s: {pipeline.backend.description}")


def say_backends(as_json: bool) -> None:
    from flowsep_runtime.backends import BACKENDS, report

    reports = [report(name) for name in BACKENDS]
    if as_json:
        click.echo(json.dumps([asdict(report) | {"available": report.why_not is None} for report in reports]))
        return
    width = max(map(len, BACKENDS))
    for found in reports:
        able = ", ".join(f"{precision} is {words}" for precision, words in found.precisions.items())
        state = f"available; {able}" if found.why_not is None else f"not available; {found.why_not}"
        click.echo(f"{found.name:{width}}  {state}")


def say_bundles(as_json: bool) -> None:
    """Lists the bundled model and the bundles in the hub's cache, without a connection."""
    from flowsep_runtime.bundle.hub import bundle_at, cached, cached_names
    from flowsep_runtime.separator import BUNDLED

    places = {"the model that ships with the package": BUNDLED if BUNDLED.is_dir() else None}
    places |= {name: cached(name) for name in cached_names()}
    found = [bundle_at(name, folder) for name, folder in places.items()]
    if as_json:
        click.echo(json.dumps([asdict(bundle) for bundle in found]))
        return
    for bundle in found:
        size, folder = f"{bundle.bytes / 1e6:.0f} MB", shown(bundle.folder or "")
        state = ", ".join([bundle.model, bundle.kind, bundle.precision, size, folder])
        click.echo(f"{bundle.name}: {state if bundle.why_not is None else bundle.why_not}")


@contextmanager
def progress_bar(doing: str = "separating") -> Iterator[Progress | None]:
    """A bar on stderr if that is a terminal. Its label also names what a first start prepares."""
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label=doing, file=sys.stderr, show_percent=True) as bar:

        def report(done: int, total: int | None) -> None:
            bar.label = doing
            bar.length = total or done + 1
            bar.update(done - bar.pos)

        class Label(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                bar.label = record.getMessage()
                bar.render_progress()

        log, handler = logging.getLogger("flowsep_runtime"), Label(logging.INFO)
        level = log.level
        log.setLevel(logging.INFO)
        log.addHandler(handler)
        try:
            yield report
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
