"""Download of the published checkpoint from Zenodo into the user's cache folder.

An interrupted download leaves a `.part` file and resumes from it. The file gets its name only when size and
checksum match the record, so a file of that name needs no network.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowsep_export.errors import DownloadError
from flowsep_runtime.caches import cache_folder, replace_whole
from flowsep_runtime.errors import shown

ZENODO = "https://zenodo.org/api"
RECORD = "13869712"
CONCEPT = "13869711"  # stands for all versions; Zenodo redirects to the newest
CHECKPOINT = "v2_100k.ckpt"

BLOCK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without an answer

#: Called with bytes done and bytes in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RemoteFile:
    """The record's entry of the file."""

    url: str
    size: int
    md5: str


def published_checkpoint(
    progress: Progress = lambda done, size: None, base_url: str | None = None, folder: Path | None = None
) -> Path:
    """The path of `v2_100k.ckpt`, downloaded if it is not there.

    Args:
        progress: called after every block.
        base_url: of the Zenodo API; default `ZENODO`.
        folder: destination; default `flowsep/checkpoints` in the user's cache folder.

    Raises:
        DownloadError: no network, no such file, a wrong checksum, no room on the disk.
    """
    path = (cache_folder() / "checkpoints" if folder is None else folder) / CHECKPOINT
    if path.is_file():
        return path
    by_hand = f"get {CHECKPOINT} from https://zenodo.org/records/{RECORD} by hand and put it at {shown(path)}"
    try:
        remote = _look_up(base_url or ZENODO)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        digest = _fetch(remote, part, progress)
    except urllib.error.HTTPError as error:
        raise DownloadError(
            f"Zenodo answers {error.code} ({error.reason}) for {CHECKPOINT}: {by_hand}."
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(
            f"{CHECKPOINT} cannot be downloaded ({reason}): try again, which resumes, or {by_hand}."
        ) from None
    except (KeyError, StopIteration, TypeError, ValueError):
        raise DownloadError(
            f"Zenodo's record {RECORD} does not list {CHECKPOINT} as expected: {by_hand}."
        ) from None
    except OSError as error:
        raise DownloadError(f"{shown(path)} cannot be written: {error.strerror}.") from None
    if part.stat().st_size < remote.size:
        raise DownloadError(
            f"The download of {CHECKPOINT} ended early ({part.stat().st_size} of {remote.size} bytes): "
            "try again to go on where it stopped."
        )
    if digest != remote.md5:
        part.unlink()
        raise DownloadError(
            f"The downloaded {CHECKPOINT} is damaged (its checksum differs): try again, or {by_hand}."
        )
    replace_whole(part, path)
    return path


def _look_up(base_url: str) -> RemoteFile:
    """The file in its record, or, if that is gone or has lost it, in the newest version."""
    try:
        return _listed(f"{base_url}/records/{RECORD}")
    except urllib.error.HTTPError as error:
        if error.code not in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
            raise
    except StopIteration:
        pass
    return _listed(f"{base_url}/records/{CONCEPT}")


def _listed(url: str) -> RemoteFile:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        record = json.load(response)
    entry = next(file for file in record["files"] if file["key"] == CHECKPOINT)
    kind, _, checksum = entry["checksum"].partition(":")
    if kind != "md5" or not checksum:
        raise ValueError(kind)
    return RemoteFile(entry["links"]["self"], int(entry["size"]), checksum)


def _fetch(remote: RemoteFile, part: Path, progress: Progress) -> str:
    """Bring `part` to the remote file's length, as far as the server gives; returns its MD5."""
    digest, done = hashlib.md5(usedforsecurity=False), 0
    if part.is_file() and part.stat().st_size <= remote.size:
        with part.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                done += len(block)
                progress(done, remote.size)
    if done == remote.size and part.is_file():
        return digest.hexdigest()
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        resumes = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if done and not resumes:
            # this server ignores ranges and sends the whole file
            digest, done = hashlib.md5(usedforsecurity=False), 0
        with part.open("ab" if resumes else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                digest.update(block)
                done += len(block)
                progress(done, remote.size)
    return digest.hexdigest()
