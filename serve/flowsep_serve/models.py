"""The models that requests may name: a bundle, and those in a folder of bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.errors import BundleError, shown
from flowsep_runtime.separator import BUNDLED, Separator


class Models(Mapping[str, Manifest]):
    """Names and manifests of the models, the default first. A name is looked up and is never a path."""

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

    def separator(self, name: str) -> Separator:
        """The model, opened and warm from its first use on; for the worker's thread alone."""
        if name not in self._open:
            separator = self._load(self._folders[name])
            separator.warm_up()
            self._open[name] = separator
        return self._open[name]
