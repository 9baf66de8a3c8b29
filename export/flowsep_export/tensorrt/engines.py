"""TensorRT engines of a bundle: built on the GPU that runs them, rebuilt only when something changed.

Needs the bundle and no checkpoint. Every plan is written atomically and `engines.json` after each of them, so
that a build which is interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flowsep_export.onnx.loop_parts import named_axes
from flowsep_export.tensorrt.build import Axes, BuilderSettings, PlanBuilder, Spelling
from flowsep_export.tensorrt.passes import PASSES, fixed, prepared, prepared_loop
from flowsep_runtime.backends import why_not
from flowsep_runtime.backends.axes import Range, axis_ranges
from flowsep_runtime.backends.device_graphs import DEVICE_GRAPHS, device_graph_path, device_graph_shape
from flowsep_runtime.backends.loop_parts import CONSTANTS, STEP, engines_of
from flowsep_runtime.backends.tensorrt.backend import this_machine
from flowsep_runtime.backends.tensorrt.cuda_device import Device
from flowsep_runtime.backends.tensorrt.engines import (
    BACKEND,
    BETWEEN_STAGES,
    GUIDE,
    SIDECAR,
    EngineEntry,
    EngineSet,
    Machine,
    engines_folder,
    sources,
)
from flowsep_runtime.backends.tensorrt.plans import Loader
from flowsep_runtime.bundle.checksums import sha256_of
from flowsep_runtime.bundle.manifest import GRAPHS, FileEntry, Manifest, ModelEntry
from flowsep_runtime.caches import read_checked, write_checked, write_whole
from flowsep_runtime.errors import BackendError, OptionError, shown

TIMING_CACHE = "timings.cache"

#: Graphs that run on the rows of the loop. The others run on mixtures, or once for each text or mixture.
OF_ROWS = (CONSTANTS, STEP, GUIDE, "decode_latent", "vocode")


def default_batches(model: ModelEntry) -> tuple[Range, Range]:
    """The batches to build for where none is asked for: of mixtures, and of rows of the loop.

    A channel at a time; and its query and the complement together where that is what the bundle gives.
    """
    one = Range(1, 1, 1)
    asks_twice = model.default_kind == "masked" and model.complement is not None
    return one, Range(1, 2, 2) if asks_twice else one


def check_shapes(manifest: Manifest, batch: Range, frames: Range) -> None:
    """Refuses ranges that no graph can have.

    Raises:
        OptionError: If they are out of order, or frames are not multiples.
    """
    multiple = manifest.model.frame_multiple
    for option, sizes in (("--batch", batch), ("--frames", frames)):
        if not 1 <= sizes.least <= sizes.best <= sizes.most:
            raise OptionError(f"{option} must be N or MIN:OPT:MAX in order, from 1 on, and not {sizes}.")
    if any(size % multiple for size in (frames.least, frames.best, frames.most)):
        raise OptionError(f"--frames must be multiples of {multiple} and not {frames}.")


def build_engines(
    bundle: Path,
    batch: Range,
    frames: Range,
    level: int = 3,
    workspace: int | None = None,
    progress: Callable[[str, float], None] = lambda doing, done: None,
    loop_batch: Range | None = None,
) -> tuple[Path, EngineSet]:
    """Builds what is missing or was built from something else.

    Args:
        bundle: The folder that flowsep-export wrote.
        batch, frames: The shapes to build for; fixed ones are fastest.
        level: Of TensorRT's optimisation, 0 to 5.
        workspace: Bytes of device memory for building; None is all of it.
        progress: Called before each piece of work.
        loop_batch: Rows of the loop to build for, at least those of `batch`; None: those.

    Returns:
        The folder of the engines, and what is in it; its errors are not measured yet.

    Raises:
        OptionError: If this machine cannot build engines, or the shapes are no good.
        ExportError: If TensorRT cannot build one.
    """
    reason = why_not(BACKEND)
    if reason is not None:
        raise OptionError(f"TensorRT engines cannot be built here: {reason}.")
    manifest = Manifest.read(bundle)
    check_shapes(manifest, batch, frames)
    settings = BuilderSettings(level, workspace, tf32=manifest.precision == "float16")
    with closing(Device()) as device:
        machine = this_machine(device)
        folder = engines_folder(bundle, machine)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            empty = EngineSet(
                machine, manifest.precision, batch, frames, settings.words(), {}, loop_batch=loop_batch
            )
            return folder, _build(bundle, folder, manifest, empty, settings, progress)
        except OSError as error:
            raise OptionError(f"{shown(folder)} cannot be written ({error.strerror}).") from None


def _build(
    bundle: Path,
    folder: Path,
    manifest: Manifest,
    result: EngineSet,
    settings: BuilderSettings,
    progress: Callable[[str, float], None],
) -> EngineSet:
    """Adds the engines to an empty set."""
    old = _old(folder)
    cache = folder / TIMING_CACHE
    builder, loader = PlanBuilder(settings, read_checked(cache) or b""), Loader()
    graphs = [source for name in (*BETWEEN_STAGES, *GRAPHS) for source in _sources(bundle, manifest, name)]
    for index, (name, path, digests, inputs, spell) in enumerate(graphs):
        ranges = graph_ranges(manifest, name, result.batch, result.frames, result.loop_batch)
        key = _key(result.machine, settings, digests, inputs, ranges)
        entry = old.engines.get(name) if old is not None else None
        if entry is None or entry.key != key:
            progress(f"building {name}", index / len(graphs))
            content = builder.build(name, spell, path, inputs, ranges)
            plan = folder / f"{name}-{key[:12]}.plan"
            write_whole(plan, content)
            write_checked(cache, builder.timing_cache)
            # loading it is the proof that it can be, and tells how much memory it wants
            engine = loader.load(plan)
            entry = EngineEntry(FileEntry.of(plan), key, digests, int(engine.device_memory_size_v2))
            del engine
        result = replace(result, engines={**result.engines, name: entry})
        if old is None or old.engines.get(name) != entry:
            kept = {} if old is None else old.engines
            replace(result, engines={**kept, **result.engines}).write(folder)
    if old is not None and old.engines == result.engines:
        result = replace(result, stages=old.stages)
    result.write(folder)
    plans = {entry.plan.name for entry in result.engines.values()}
    for stale in folder.glob("*.plan"):
        if stale.name not in plans:
            stale.unlink()
    return result


def graph_ranges(
    manifest: Manifest, name: str, batch: Range, frames: Range, loop_batch: Range | None = None
) -> dict[str, Range]:
    """The range of every axis of a graph."""
    ranges, loop = dict(axis_ranges(manifest, batch, frames)), loop_batch or batch
    # what runs once for a text or a mixture, whatever the batch of everything else is
    once = {"encode_text": 1, "velocity_text": loop.best, "velocity_mixture": batch.best}
    if name in once:
        ranges["batch"] = Range(1, once[name], loop.most)
    elif name in OF_ROWS:
        # a mask needs no vocoder, and without a complement there is a row for each mixture
        best = batch.best if name == "vocode" else loop.best
        ranges["batch"] = Range(loop.least, best, loop.most)
    (shifts,) = (tensor.shape[1] for tensor in manifest.graphs["velocity_time"].outputs)
    model = manifest.model
    for axis, size in (
        ("channels", model.latent_channels),
        ("frequencies", model.latent_frequencies),
        ("shifts", shifts),
    ):
        assert isinstance(size, int)
        ranges[axis] = Range(size, size, size)
    return ranges


class _Source(NamedTuple):
    """The parts that one engine is built from."""

    name: str
    path: Path
    digests: tuple[str, ...]
    inputs: Axes
    spell: Spelling


def _sources(bundle: Path, manifest: Manifest, name: str) -> Iterator[_Source]:
    """The names of the engines of one graph."""
    if name in BETWEEN_STAGES:
        path = device_graph_path(name)
        axes: Axes = {tensor: device_graph_shape(tensor) for tensor in DEVICE_GRAPHS[name][0]}
        yield _Source(name, path, (sha256_of(path),), axes, partial(prepared, path))
        return
    entry = manifest.graph(name, BACKEND)
    path = bundle / entry.files[0].name
    if engines_of(name) == (name,):
        axes = {tensor.name: tensor.shape for tensor in entry.inputs}
        yield _Source(name, path, sources(entry), axes, partial(prepared, path))
        return
    for part, model in prepared_loop(path, {}).items():
        axes = {tensor: shape for tensor, _, shape in map(named_axes, model.graph.input)}
        yield _Source(part, path, sources(entry), axes, partial(fixed, model))


def _key(
    machine: Machine,
    settings: BuilderSettings,
    digests: tuple[str, ...],
    inputs: Axes,
    ranges: dict[str, Range],
) -> str:
    shapes = {
        tensor: [axis if isinstance(axis, int) else str(ranges[axis]) for axis in axes]
        for tensor, axes in inputs.items()
    }
    content = [
        PASSES,
        [machine.gpu, machine.compute_capability, machine.tensorrt, machine.driver],
        settings.words(),
        digests,
        shapes,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _old(folder: Path) -> EngineSet | None:
    """The set that was built before, if it can be read; one that is damaged or of another format is built
    again."""
    if not (folder / SIDECAR).is_file():
        return None
    try:
        return EngineSet.read(folder)
    except (BackendError, OptionError):
        return None
