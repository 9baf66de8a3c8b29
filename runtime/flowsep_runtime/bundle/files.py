"""The files of a bundle from others: each is a regular file in the folder and refers to no file outside the
bundle.

Every file that a manifest or a graph names is checked before it is opened: a link, a path with folders in it
or a named pipe could show files of this machine to a backend, or make it wait for ever.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from flowsep_runtime.bundle.onnx_references import GraphError, references
from flowsep_runtime.caches import recall, remember
from flowsep_runtime.errors import BundleError, shown

MANIFEST_NAME = "manifest.json"
LARGEST_MANIFEST = 1 << 20  # bytes; a manifest is some kilobytes, and a foreign one must not fill the memory
LARGEST_GRAPH = 2 << 30  # bytes; protocol buffers end there, larger weights lie beside the graph
LARGEST_TOKENIZER = 64 << 20  # bytes; the published one has 2.4 MB
MEMORY, REMEMBERED_GRAPHS = "graphs", 512
REVISION = 1  # of `check_graph`; what another one has let through is checked again


class RefusedFileError(ValueError):
    """A file that must not be used; the message follows its name."""


def is_plain_name(name: str) -> bool:
    """True if a name is a file name without a folder, on every system."""
    return name not in ("", ".", "..") and not any(c in '/\\:*?"<>|' or c < " " for c in name)


def inspected(folder: Path, name: str) -> os.stat_result:
    """The system's status of a file of a bundle.

    Raises:
        RefusedFileError: If it is outside the folder, and of the user's own store if that is a snapshot of
            one; or not a regular file.
        OSError: If it is not there.
    """
    path = folder / name
    found = path.stat()
    try:
        real = path.resolve(strict=True)
    except RuntimeError:  # links in a circle, before Python 3.13
        raise RefusedFileError("is a link to itself") from None
    home = folder.resolve()
    if not is_plain_name(name) or not (real.is_relative_to(home) or _is_in_store(real, home)):
        raise RefusedFileError("lies outside the bundle")
    if not stat.S_ISREG(found.st_mode):
        raise RefusedFileError("is not a plain file")
    return found


def _is_in_store(real: Path, folder: Path) -> bool:
    """True for a file of the store that a folder is a snapshot of, if all of it is the user's own.

    The cache of the Hugging Face hub keeps contents in `blobs`, and beside it `snapshots/REVISION`, whose
    files are links to them.
    """
    store = folder.parent.parent
    if folder.parent.name != "snapshots" or real.parent != store / "blobs":
        return False
    if not hasattr(os, "getuid"):  # Windows
        return True
    return all(path.stat().st_uid == os.getuid() for path in (store, folder, real.parent, real))


def check_graph(folder: Path, name: str, sha256: str, data: Collection[str]) -> None:
    """Compare a graph's references to other files with those of the manifest.

    A graph that was right is remembered by its content, because a search through large graphs is a tenth of
    a start.

    Args:
        folder: The bundle.
        name: The graph's file in it.
        sha256: The checksum of its content.
        data: The files that it may read, by name.

    Raises:
        RefusedFileError: If it reads another file, or beyond the end of one.
        OSError: If a file cannot be read.
    """
    sizes = {file: (folder / file).stat().st_size for file in data}
    key = f"{sha256} beside {sorted(sizes.items())}"
    if recall(MEMORY).get(key) == REVISION:
        return
    try:
        found = references(folder / name)
    except GraphError as error:
        raise RefusedFileError(f"must not be opened ({error})") from None
    for reference in found:
        if reference.location not in sizes:
            raise RefusedFileError(
                f"reads a file that the manifest does not give it ({reference.location!r})"
            )
        if reference.offset + (reference.length or 0) > sizes[reference.location]:
            raise RefusedFileError(f"reads beyond the end of {reference.location}")
    remember(MEMORY, key, REVISION, REMEMBERED_GRAPHS)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to a fault, for a whole sentence."""
    try:
        yield
    except FileNotFoundError:
        raise BundleError(f"{shown(path)} is missing from the bundle: export it again.") from None
    except OSError as error:
        raise BundleError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    except RefusedFileError as error:
        raise BundleError(f"{shown(path)} {error}: export the bundle again.") from None


def read_json(folder: Path) -> dict[str, object]:
    """The JSON object of a bundle's manifest.

    Raises:
        BundleError: If the folder is not a bundle, or its manifest is not a JSON object.
    """
    path = folder / MANIFEST_NAME
    try:
        if not os.path.lexists(folder):
            raise BundleError(f"There is no bundle at {shown(folder)}: give a folder of flowsep-export.")
        inspected(folder, MANIFEST_NAME)
        with path.open("rb") as file:
            text = file.read(LARGEST_MANIFEST + 1)
    except RefusedFileError as error:
        raise BundleError(f"{shown(path)} {error}: give a folder of flowsep-export.") from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise BundleError(
            f"{shown(folder)} is not a bundle (no {MANIFEST_NAME} in it): give a folder of flowsep-export."
        ) from None
    except OSError as error:
        raise BundleError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    except ValueError:  # a NUL in the name
        raise BundleError(f"{shown(folder)} is not a folder name: give a folder of flowsep-export.") from None
    if len(text) > LARGEST_MANIFEST:
        raise BundleError(f"{shown(path)} is far too large to be a manifest: export the bundle again.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise BundleError(f"{shown(path)} is not valid JSON: export the bundle again.") from None
    if not isinstance(content, dict):
        raise BundleError(f"{shown(path)} is no FlowSep manifest: export the bundle again.")
    return content
