"""The models that requests may name: a bundle, and those in a folder of bundles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends import Precision
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.errors import BundleError, shown
from flowsep_runtime.pipeline import Pipeline
from flowsep_runtime.separation.run import Progress
from flowsep_runtime.separator import BUNDLED, Separator
from flowsep_serve.decoding import Sound, read_samples
from flowsep_serve.jobs import Job
from flowsep_serve.orders import Order
from flowsep_serve.sharing import DeviceThread, SharedPipeline, mixtures_together, still_wanted

#: Consecutive pieces of a result: float32 [n, channels] for each stem of the job.
Blocks: TypeAlias = Iterator[Sequence[Floats]]


class Models(Mapping[str, Manifest]):
    """Names and manifests of the models, the default first. A name is looked up and is never a path.

    Opened, they compute in the thread that asks, one job at a time; on a device that takes several requests
    together, in the device's own thread, for the threads of several jobs.
    """

    def __init__(
        self,
        bundle: Path | None,
        folder: Path | None,
        load: Callable[[Path], Pipeline],
        alone: bool = False,
        separator: Callable[[Pipeline], Separator] = Separator,
    ) -> None:
        """Reads the manifests.

        Args:
            bundle: The default; None is the first of `folder` by name, or without it the bundled model.
            folder: Holds bundles, each in a folder whose name is the model's.
            load: Opens one.
            alone: True to compute one job at a time on a device too.
            separator: Makes a separator of an open one.

        Raises:
            BundleError: If one cannot be read, or there is none.
        """
        self._load, self._alone, self._separator_of = load, alone, separator
        self._device: DeviceThread | None = None
        self._opening = threading.Lock()
        #: Jobs that are computed side by side at most, known when the default model is open.
        self.side_by_side = 1
        #: Told the rows of every run on a device that jobs share.
        self.on_run: Callable[[int], None] = lambda rows: None
        self._folders: dict[str, Path] = {}
        if bundle is not None or folder is None:
            path = (bundle or BUNDLED).absolute()
            self._folders[path.name] = path
        if folder is not None:
            if not folder.is_dir():
                raise BundleError(f"There is no folder {shown(folder)}: give a folder of bundles.")
            found = sorted(path.parent.absolute() for path in folder.glob("*/manifest.json"))
            if not found:
                raise BundleError(f"{shown(folder)} holds no bundle: give a folder of bundles.")
            for path in found:
                self._folders.setdefault(path.name, path)
        self._manifests = {name: Manifest.read(path) for name, path in self._folders.items()}
        self._open: dict[str, Separator] = {}

    def __getitem__(self, name: str) -> Manifest:
        return self._manifests[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifests)

    def __len__(self) -> int:
        return len(self._manifests)

    def open(self) -> None:
        """Opens and warms the default model, which decides how many jobs are computed side by side."""
        name = next(iter(self))
        pipeline = self._load(self._folders[name])
        together = 1 if self._alone else mixtures_together(pipeline)
        if together > 1:
            self._device = DeviceThread()
            # While the device computes some, as many others are read, cut, put together and written.
            self.side_by_side = 2 * together
        self._open[name] = self._warm(pipeline)

    def blocks(self, job: Job) -> Blocks:
        """The results of a job."""
        job.begin()
        still_wanted.set(job.go_on)
        samples = read_samples(job.folder, job.sound)
        return self.separated(samples, job.sound, job.order, job.wanted, job.advance)

    def separated(
        self,
        samples: Iterable[Floats],
        sound: Sound,
        order: Order,
        wanted: Sequence[int | None],
        progress: Progress,
    ) -> Blocks:
        """The results of an order.

        Args:
            samples: Of the recording, in blocks [n, channels].
            sound: What it is.
            order: What to make of it.
            wanted: The numbers of queries whose sounds are given; None is the rest.
            progress: As for `Separator.stream`.
        """
        parts = self._separator(order.model).stream(
            samples,
            sound.sample_rate,
            order.queries,
            samples=sound.frames,
            progress=progress,
            **order.options.fields(),
        )
        for part in parts:
            yield [part.rest if number is None else part.targets[number] for number in wanted]

    def ready(self) -> int:
        return int(bool(self._open))

    def close(self) -> None:
        """Ends the device's thread, if there is one; what it computes has some seconds."""
        if self._device is not None:
            self._device.close()

    @property
    def is_computing(self) -> bool:
        return self._device is not None and self._device.is_alive

    def _separator(self, name: str) -> Separator:
        """The model, opened and warm from its first use on."""
        if name not in self._open:
            with self._opening:
                if name not in self._open:
                    load = partial(self._load, self._folders[name])
                    self._open[name] = self._warm(load() if self._device is None else self._device.do(load))
        return self._open[name]

    def _warm(self, pipeline: Pipeline) -> Separator:
        if self._device is None:
            separator = self._separator_of(pipeline)
            separator.warm_up()
            return separator
        shared = SharedPipeline(pipeline, self._device)
        separator = self._separator_of(shared)
        for channels in range(1, mixtures_together(pipeline) + 1):  # as many as requests bring together
            separator.warm_up(channels)
        shared.on_run = self.on_run
        return separator


@dataclass(frozen=True)
class Settings:
    """The models to open, as for `Models`, and how, as for `Pipeline.load`."""

    bundle: Path | None
    bundle_dir: Path | None
    backend: str
    precision: Precision
    threads: int | None
    alone: bool = False

    def models(self) -> Models:
        """The models, of which none is open yet."""

        def load(path: Path) -> Pipeline:
            return Pipeline.load(path, self.backend, self.precision, self.threads)

        return Models(self.bundle, self.bundle_dir, load, self.alone)
