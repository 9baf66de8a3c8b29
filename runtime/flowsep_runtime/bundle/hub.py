"""Bundles by name, from the Hugging Face hub through its own library and cache.

Only a name whose bundle is not in that cache yet opens a connection. The manifest comes first; then the files
that it names and no others, of the same revision, each compared with the manifest's checksum.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from flowsep_runtime.bundle.checksums import remembered_sha256
from flowsep_runtime.bundle.files import MANIFEST_NAME
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.errors import BundleError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = "main"


def located(bundle: str | os.PathLike[str]) -> Path:
    """The folder of a bundle that was given as a path or, in a string, as `owner/name`.

    Raises:
        BundleError: If a name's bundle is not in the cache and cannot be fetched.
    """
    path = Path(bundle)
    try:
        # A folder's name in a folder that is there is a path, if with a typing error.
        is_path = not isinstance(bundle, str) or path.exists() or path.parent.exists()
    except (OSError, ValueError):
        return path
    if is_path or not _NAME.fullmatch(str(bundle)):
        return path
    return cached(str(bundle)) or _fetched(str(bundle))


def cached(name: str) -> Path | None:
    """The folder of a bundle in the hub's cache; None if not all of its files are there."""
    hub = _library()
    if hub is None:
        return None
    manifest = hub.try_to_load_from_cache(name, MANIFEST_NAME, revision=_REVISION)
    if not isinstance(manifest, str):
        return None
    folder = Path(manifest).parent
    try:
        files = _files(Manifest.listed(folder))
    except BundleError:  # said where it is opened
        return folder
    return folder if all((folder / file).exists() for file in files) else None


@dataclass(frozen=True)
class Known:
    """A bundle that has a name.

    Attributes:
        name: Name in lists.
        folder: Its place; None if not all of it is there.
        model: The model's own name.
        kind: The result that it gives by default.
        precision: That of its weights.
        bytes: Size of its graphs.
        why_not: Reason for which it does not run; None if there is none.
    """

    name: str
    folder: str | None = None
    model: str = ""
    kind: str = ""
    precision: str = ""
    bytes: int = 0
    why_not: str | None = None


def bundle_at(name: str, folder: Path | None) -> Known:
    """A bundle and its manifest, which is read without looking at the other files."""
    if folder is None:
        return Known(name, why_not="not all of its files are here")
    try:
        manifest = Manifest.listed(folder)
    except BundleError as error:
        return Known(name, str(folder), why_not=str(error))
    size = sum(file.bytes for file in manifest.files())
    return Known(name, str(folder), manifest.name, manifest.model.default_kind, manifest.precision, size)


def cached_names() -> Iterator[str]:
    """Names of the models in the hub's cache that have a manifest, in their order."""
    hub = _library()
    if hub is None:
        return
    root = Path(import_module("huggingface_hub.constants").HF_HUB_CACHE)
    for folder in sorted({path.parents[2] for path in root.glob(f"models--*/snapshots/*/{MANIFEST_NAME}")}):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        if _NAME.fullmatch(name):
            yield name


def _fetched(name: str) -> Path:
    hub = _library()
    if hub is None:
        raise BundleError(
            f"There is no bundle at {name}, and one from the Hugging Face hub needs its library, run: "
            "pip install huggingface_hub."
        )
    if not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    try:
        folder = Path(hub.hf_hub_download(name, MANIFEST_NAME, revision=_REVISION)).parent
        manifest = Manifest.listed(folder)
        for file, sha256 in _files(manifest).items():
            path = Path(hub.hf_hub_download(name, file, revision=folder.name))
            if remembered_sha256(path) != sha256:
                path.resolve().unlink()
                path.unlink(missing_ok=True)
                raise BundleError(
                    f"{file} of {name} arrived with another checksum than its manifest has: try again, or "
                    "tell its owner."
                )
    except BundleError:
        raise
    except hub.utils.GatedRepoError:
        raise BundleError(
            f"{name} on the Hugging Face hub asks for an agreement: give it there, and run: hf auth login."
        ) from None
    except hub.utils.RepositoryNotFoundError:
        raise BundleError(
            f"There is no bundle {name}, neither as a folder here nor on the Hugging Face hub: look at its "
            "name."
        ) from None
    except hub.utils.LocalEntryNotFoundError:  # what the library makes of no network
        raise _unreachable(name, "no connection, or HF_HUB_OFFLINE is set") from None
    except hub.utils.EntryNotFoundError:
        raise BundleError(
            f"{name} on the Hugging Face hub is not a whole bundle: look at its name, or tell its owner."
        ) from None
    except Exception as error:  # of its HTTP library, which it has changed before
        reason = str(error).strip() or type(error).__name__
        raise _unreachable(name, reason.splitlines()[0].rstrip(".")) from None
    return folder


def _unreachable(name: str, reason: str) -> BundleError:
    return BundleError(
        f"{name} cannot be fetched from the Hugging Face hub ({reason}): try again, which keeps the files "
        "that have arrived, or give the folder of a bundle."
    )


def _files(manifest: Manifest) -> dict[str, str]:
    """Files that a manifest names, with their checksums."""
    tokenizer = {manifest.tokenizer.file: manifest.tokenizer.sha256}
    return {file.name: file.sha256 for file in manifest.files()} | tokenizer


def _library() -> Any:
    """The library, which tells its maker nothing and writes no remarks; None if it is not installed."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        return import_module("huggingface_hub")
    except ImportError:
        return None
