"""The models that requests may name: a bundle, and those in a folder of bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from flowsep_runtime.arrays import Floats
from flowsep_runtime.backends import Precision
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.errors import BundleError, shown
from flowsep_runtime.separation.run import Progress
from flowsep_runtime.separator import BUNDLED, Separator
from flowsep_serve.decoding import Sound, read_samples
from flowsep_serve.jobs import Job
from flowsep_serve.orders import Order

#: Consecutive pieces of a result: float32 [n, channels] for each stem of the job.
Blocks: TypeAlias = Iterator[Sequence[Floats]]


class Models(Mapping[str, Manifest]):
    """Names and manifests of the models, the default first. A name is looked up and is never a path.

    Opened, they compute in the thread that opened them.
    """

    side_by_side = 1

    def __init__(self, bundle: Path | None, folder: Path | None, load: Callable[[Path], Separator]) -> None:
        """Reads the manifests.

        Args:
            bundle: The default; None is the first of `folder` by name, or without it the bundled model.
            folder: Holds bundles, each in a folder whose name is the model's.
            load: Opens one.

        Raises:
            BundleError: If one cannot be read, or there is none.
        """
        self._load = load
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
        """Opens and warms the default model."""
        self._separator(next(iter(self)))

    def blocks(self, job: Job) -> Blocks:
        """The results of a job."""
        job.begin()
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
        """Does nothing: all of it is in this process."""

    def _separator(self, name: str) -> Separator:
        """The model, opened and warm from its first use on."""
        if name not in self._open:
            separator = self._load(self._folders[name])
            separator.warm_up()
            self._open[name] = separator
        return self._open[name]


@dataclass(frozen=True)
class Settings:
    """The models to open, as for `Models`, and how, as for `Separator.load`."""

    bundle: Path | None
    bundle_dir: Path | None
    backend: str
    precision: Precision
    threads: int | None

    def models(self) -> Models:
        """The models, of which none is open yet."""

        def load(path: Path) -> Separator:
            return Separator.load(path, self.backend, self.precision, self.threads)

        return Models(self.bundle, self.bundle_dir, load)
