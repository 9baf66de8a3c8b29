"""Compiled OpenVINO graphs, read back from where OpenVINO kept them.

OpenVINO reads its own cache slowly: it hashes all weights of the given graph, reads the whole file into
memory and copies the weights from there. Here the file is mapped.

OpenVINO also takes what it reads for whole: with some wrong bytes a graph gives noise, silence or NaN. So
it writes into a folder of its own each time, and what it wrote is read again only through here, by a name
that says its size and its checksum.
"""

from __future__ import annotations

import ctypes
import locale
import mmap
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flowsep_runtime.backends import offline
from flowsep_runtime.backends.openvino.mapped_files import give_back_mapped, repeated
from flowsep_runtime.caches import remove_damaged

if TYPE_CHECKING:
    from openvino import CompiledModel, Core

#: What is whole has its size and its CRC-32 in its name, in hexadecimal. Against chance that is enough, and
#: cheaper than a digest that withstands an enemy, who could as well write a graph and its digest.
_NAME = "whole-*.blob"
_BLOCK = 1 << 22  # bytes


class _KeptLocale:
    """The process's locale, restored when no thread is inside any more.

    OpenVINO sets it to C while it writes, and back to what it found, which is C if another thread writes too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._locale = ""

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._locale = locale.setlocale(locale.LC_ALL)
            self._inside += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                locale.setlocale(locale.LC_ALL, self._locale)


_LOCALE = _KeptLocale()


class Compiled(NamedTuple):
    """A compiled graph, and what has to be kept as long as it."""

    graph: CompiledModel
    memory: mmap.mmap | None = None


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A folder for OpenVINO to write its cache into, empty before and gone afterwards; what was written
    goes to `folder` by the name under which `read` takes it. The process's locale is C meanwhile.

    Raises:
        OSError: If it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="writing-", dir=folder, ignore_cleanup_errors=True) as scratch:
        with _LOCALE:
            yield Path(scratch)
        with suppress(OSError):  # such as a full disk: then there is nothing to read
            for path in Path(scratch).glob("*.blob"):
                with _mapped(path) as memory:
                    name = _name(memory)
                if not is_kept(folder):  # another thread or process may have been quicker
                    # Not forced to the disk, which takes seconds: the name tells what a power cut spoils.
                    os.replace(path, folder / name)


def is_kept(folder: Path) -> bool:
    """True if there is an entry for `read`."""
    return any(folder.glob(_NAME))


def read(core: Core, folder: Path, properties: Mapping[str, str]) -> Compiled | None:
    """The graph that was written for this folder; None if there is none that can be read.

    What is damaged, or OpenVINO refuses, is removed.

    Warns:
        FlowSepWarning: If it was damaged.
    """
    for path in folder.glob(_NAME):
        try:
            memory = _mapped(path)
            whole = path.name == _name(memory)
            if whole:
                return _imported(core, memory, properties)
        except (OSError, MemoryError):  # not the file's fault
            return None
        except ValueError:  # nothing of it is left
            whole = False
        except Exception:  # OpenVINO's exceptions share no base class
            whole = True
        if whole:
            with suppress(OSError):
                path.unlink()
        else:
            remove_damaged(path)
    return None


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _name(memory: mmap.mmap) -> str:
    """The name of a file of this content."""
    checksum = 0
    with memoryview(memory) as content:
        for start in range(0, len(content), _BLOCK):
            checksum = zlib.crc32(content[start : start + _BLOCK], checksum)
            give_back_mapped(memory)
    return f"whole-{len(memory):x}-{checksum:08x}.blob"


def _imported(core: Core, memory: mmap.mmap, properties: Mapping[str, str]) -> Compiled:
    start = memory.find(b"\n") + 1
    # OpenVINO takes no array that is read-only, though it does not write to it.
    address = np.frombuffer(memory, np.uint8).ctypes.data + start
    content = np.ctypeslib.as_array((ctypes.c_uint8 * (len(memory) - start)).from_address(address))
    tensor = offline.openvino().Tensor(content, shared_memory=True)
    with repeated(lambda: give_back_mapped(memory)):
        return Compiled(core.import_model(tensor, "CPU", dict(properties)), memory)
