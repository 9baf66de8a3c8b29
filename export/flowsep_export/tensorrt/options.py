"""The part of `flowsep-export` that makes TensorRT engines: its options, and what it says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowsep_runtime.app.console import FILE, options
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.tensorrt.engines import BACKEND, EngineSet
from flowsep_runtime.errors import OptionError, shown

if TYPE_CHECKING:
    from flowsep_ref import FlowSep


def parsed_range(context: click.Context, parameter: click.Parameter, value: str | None) -> Range | None:
    """`N` or `MIN:OPT:MAX`."""
    if value is None:
        return None
    parts = value.split(":")
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is neither N nor MIN:OPT:MAX")
    sizes = [int(part) for part in parts]
    return Range(*(sizes if len(sizes) == 3 else sizes * 3))


#: The engines to make.
engine_options = options(
    click.option(
        "--tensorrt", is_flag=True, help="Also build and verify TensorRT engines for this machine's GPU."
    ),
    click.option(
        "--bundle", type=FILE, help="With --tensorrt: build engines for this bundle and export nothing."
    ),
    click.option(
        "--batch",
        callback=parsed_range,
        metavar="N|MIN:OPT:MAX",
        help="Batch to build engines for; a fixed one is fastest.  [default: 1, and 1:2:2 in the "
        "solver's loop where masks are given and a query has a complement]",
    ),
    click.option(
        "--frames",
        callback=parsed_range,
        metavar="N|MIN:OPT:MAX",
        help="Mel frames to build engines for.  [default: a clip's, 1024 as published]",
    ),
    click.option(
        "--builder-level",
        type=click.IntRange(0, 5),
        default=3,
        help="Effort that TensorRT spends on finding fast kernels.",
    ),
    click.option(
        "--workspace",
        type=click.FloatRange(min=0, min_open=True),
        help="GiB of GPU memory that TensorRT may use while building.  [default: all of it]",
    ),
)


@dataclass(frozen=True)
class Answer:
    """Engines that were made."""

    folder: Path
    engines: EngineSet

    def content(self) -> dict[str, Any]:
        """The result for JSON."""
        return {"folder": str(self.folder), **asdict(self.engines)}

    def show(self) -> None:
        """Print the result."""
        from flowsep_export.report import print_errors

        if self.engines.stages:
            print_errors(self.engines.stages)
        else:
            click.echo("not verified: the engines were not measured against the reference")
        size = sum(entry.plan.bytes for entry in self.engines.engines.values()) / 1e6
        machine = self.engines.machine
        loop = "" if self.engines.loop_batch is None else f" ({self.engines.loop_batch} in the loop)"
        click.echo(
            f"{shown(self.folder)}: {len(self.engines.engines)} engines for {machine.gpu}, TensorRT "
            f"{machine.tensorrt}, batch {self.engines.batch}{loop}, {self.engines.frames} frames, "
            f"{size:.0f} MB"
        )


@dataclass(frozen=True)
class EngineRequest:
    """Engines requested by the options."""

    batch: Range | None
    frames: Range | None
    level: int
    workspace: float | None  # GiB
    recording: Path | None
    is_verified: bool

    def check(self) -> None:
        """Refuses a machine that cannot build engines, before hours of work are spent.

        Raises:
            OptionError: With what is missing.
        """
        from flowsep_runtime.backends import why_not

        reason = why_not(BACKEND)
        if reason is not None:
            raise OptionError(f"TensorRT engines cannot be built here: {reason}.")

    def build(self, bundle: Path, model: FlowSep | None = None) -> Answer:
        """Builds the engines of a bundle and verifies them.

        Args:
            bundle: What flowsep-export wrote.
            model: Its model, to be the judge; None is the bundle itself on the CPU.
        """
        from flowsep_export.report import export_progress
        from flowsep_export.stage_inputs import read_recording
        from flowsep_export.tensorrt.engines import build_engines, default_batches
        from flowsep_export.tensorrt.verify import verify_engines
        from flowsep_export.verify import checks, reference_judge
        from flowsep_runtime.bundle.manifest import Manifest

        sizes = Manifest.read(bundle).model
        batch, loop_batch = (self.batch, None) if self.batch else default_batches(sizes)
        frames = self.frames or Range(sizes.clip_frames, sizes.clip_frames, sizes.clip_frames)
        workspace = None if self.workspace is None else int(self.workspace * (1 << 30))
        recording = (
            None
            if self.recording is None
            else read_recording(self.recording, sizes.sample_rate, sizes.clip_samples)
        )
        with export_progress() as progress:
            folder, engines = build_engines(
                bundle,
                batch,
                frames,
                self.level,
                workspace,
                lambda doing, done: progress(doing, 0.8 * done),
                None if loop_batch == batch else loop_batch,
            )
            if self.is_verified and not engines.stages:
                names = list(checks())
                engines = verify_engines(
                    bundle,
                    folder,
                    engines,
                    recording,
                    None if model is None else reference_judge(model),
                    lambda stage: progress(f"verifying {stage}", 0.8 + 0.2 * names.index(stage) / len(names)),
                )
        return Answer(folder, engines)
