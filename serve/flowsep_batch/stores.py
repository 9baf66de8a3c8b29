"""Folders that may lie anywhere: on this machine's disks, or wherever fsspec reaches."""

from __future__ import annotations

import os
import posixpath
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from flowsep_runtime.app.made import made_by, mark_in
from flowsep_runtime.app.outputs import ABANDONED
from flowsep_runtime.app.recordings import AUDIO, files_in, is_folder
from flowsep_runtime.errors import AudioError, OptionError, OutputError, shown

#: Protocols of fsspec whose stores show an upload when it is complete. On others it gets its name then.
ATOMIC = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2")


def split(address: str) -> tuple[str, str]:
    """The folder and the name of a file, wherever it lies."""
    if "://" not in address:
        path = Path(os.path.abspath(address))
        return str(path.parent), path.name
    folder, _, name = address.rstrip("/").rpartition("/")
    return folder if "://" in folder else f"{folder}/", name


class Store:
    """A folder and what is in it, by names that count from it and have slashes.

    Attributes:
        address: For reports and messages.
        local: The folder if it is on a disk of this machine, else None.
    """

    def __init__(self, address: str) -> None:
        """Takes the address apart; nothing is read yet.

        Raises:
            OptionError: If no library here knows its protocol.
        """
        self._address = address
        #: Without the name and password that an address may hold, which no report or message shows.
        self.address = re.sub(r"(?<=://)[^/]*@", "", address)
        self._tidied: set[str] = set()
        is_local = "://" not in address or address.startswith("file://")
        self.local = Path(address.removeprefix("file://")) if is_local else None
        if self.local is None:
            self._system  # noqa: B018  # what is wrong with the address is said now

    @cached_property
    def _system(self) -> tuple[Any, str]:
        """Fsspec's file system, and the folder's path in it."""
        from fsspec.core import url_to_fs

        try:
            # a listing would stay in memory
            system, path = url_to_fs(self._address, use_listings_cache=False)
        except ImportError as error:
            raise OptionError(f"{shown(self.address)} needs a library: {error}.") from None
        except Exception as error:  # of any library
            raise OptionError(f"{shown(self.address)} is no address that can be used: {error}.") from None
        return system, str(path).rstrip("/")

    def at(self, name: str) -> str:
        """A name in messages and reports."""
        return str(self.local / name) if self.local is not None else f"{self.address.rstrip('/')}/{name}"

    def is_folder(self) -> bool:
        """True for a folder.

        Raises:
            OptionError: If a store elsewhere cannot be asked.
        """
        if self.local is not None:
            return is_folder(self.local)
        system, base = self._system
        try:
            return bool(system.isdir(base))
        except Exception as error:  # of any library
            raise OptionError(f"{shown(self.address)} cannot be read: {error}.") from None

    def recordings(self, results: Store) -> Iterator[str]:
        """The names of the audio files in it and in the folders below, without hidden ones and those among
        the results; one folder's names are in memory at a time.

        Raises:
            OptionError: If a folder cannot be read.
        """
        if self.local is not None:
            for path in files_in(self.local, results.local):
                yield path.relative_to(self.local).as_posix()
            return
        system, base = self._system
        left_out = results._system[1] if results.local is None else None
        try:
            for place, folders, files in system.walk(base, detail=True, on_error="raise"):
                for name in list(folders):
                    if name.startswith(".") or posixpath.join(place, name) == left_out:
                        del folders[name]
                below = place[len(base) :].strip("/")
                for name in sorted(files):
                    if not name.startswith(".") and posixpath.splitext(name)[1].lower() in AUDIO:
                        yield posixpath.join(below, name)
        except Exception as error:  # of any library
            raise OptionError(f"{shown(self.address)} cannot be read: {error}.") from None

    def exists(self, name: str) -> bool:
        """True if there is such a file.

        Raises:
            OutputError: If a store elsewhere cannot be asked.
        """
        if self.local is not None:
            return (self.local / name).exists()
        system, base = self._system
        try:
            return bool(system.exists(f"{base}/{name}"))
        except Exception as error:  # of any library
            raise OutputError(f"{shown(self.at(name))} cannot be looked up: {error}.") from None

    def mark(self, name: str) -> str | None:
        """The mark of a result (`made.py`); None if it has none, or is not audio.

        Raises:
            OutputError: If a store elsewhere cannot be asked.
        """
        if self.local is not None:
            return made_by(self.local / name)
        system, base = self._system
        try:
            with system.open(f"{base}/{name}", "rb") as file:
                return mark_in(file)
        except FileNotFoundError:
            return None
        except Exception as error:  # of any library
            raise OutputError(f"{shown(self.at(name))} cannot be looked up: {error}.") from None

    def fetch(self, name: str, file: Path) -> None:
        """Copies one of its files to `file`.

        Raises:
            AudioError: If it cannot be read.
        """
        system, base = self._system
        try:
            system.get_file(f"{base}/{name}", str(file))
        except FileNotFoundError:
            raise AudioError(f"{shown(self.at(name))} does not exist.") from None
        except Exception as error:  # of any library
            raise AudioError(f"{shown(self.at(name))} cannot be read: {error}.") from None

    def put(self, file: Path, name: str) -> None:
        """Copies `file` to a name, where it appears whole or not at all and takes the place of another.

        Raises:
            OutputError: If it cannot be written.
        """
        system, base = self._system
        final = f"{base}/{name}"
        folder, _, _ = final.rpartition("/")
        protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
        is_atomic = any(protocol in ATOMIC for protocol in protocols)
        temporary = final if is_atomic else f"{folder}/.flowsep-{secrets.token_hex(6)}.tmp"
        try:
            if not is_atomic:
                system.makedirs(folder, exist_ok=True)
                self._remove_abandoned(folder)
            try:
                system.put_file(str(file), temporary)
                if not is_atomic:
                    system.mv(temporary, final)
            except BaseException:
                if not is_atomic:
                    with suppress(Exception):
                        system.rm_file(temporary)
                raise
        except NotImplementedError:
            raise OutputError(
                f"{shown(self.at(name))} cannot be written: its store cannot write or rename files, so that "
                "results would appear in parts; give another folder for results."
            ) from None
        except Exception as error:  # of any library
            raise OutputError(f"{shown(self.at(name))} cannot be written: {error}.") from None

    def _remove_abandoned(self, folder: str) -> None:
        """Removes what killed workers have left in a folder, when it is a day old; it is looked at once."""
        if folder in self._tidied:
            return
        self._tidied.add(folder)
        system, _ = self._system
        with suppress(Exception):  # tidying up is no reason to fail
            for path in system.glob(f"{folder}/.flowsep-*.tmp"):
                written = system.modified(path)
                zone = written.tzinfo or timezone.utc
                if (datetime.now(zone) - written.replace(tzinfo=zone)).total_seconds() > ABANDONED:
                    system.rm_file(path)
