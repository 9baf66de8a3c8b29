"""Compiled OpenVINO graphs, read back from where OpenVINO kept them.

OpenVINO writes them well, but reads them badly: it hashes all weights of the graph that it is given, reads
the whole file into memory and copies the weights from there. Here the file is mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flowsep_runtime.backends import offline
from flowsep_runtime.backends.openvino.mapped_files import give_back_mapped, repeated

if TYPE_CHECKING:
    from openvino import CompiledModel, Core

#: OpenVINO's own files, each with a line of XML before what `Core.import_model` reads.
_WRITTEN = "*.blob"
#: Renamed once they are whole, with their size in the name: what is cut short is not read.
_WHOLE = "compiled-*.blob"


class Compiled(NamedTuple):
    """A compiled graph, and what has to be kept as long as it."""

    graph: CompiledModel
    memory: mmap.mmap | None = None


def keep(folder: Path) -> bool:
    """Marks the file that OpenVINO has just written into its cache folder as whole; says whether there is
    one."""
    kept = False
    with suppress(OSError):  # a file that is in use, say: then OpenVINO itself reads it the next time
        for path in folder.glob(_WRITTEN):
            if not path.match(_WHOLE):
                os.replace(path, path.with_name(f"compiled-{path.stat().st_size}.blob"))
                kept = True
    return kept


def read(core: Core, folder: Path, properties: Mapping[str, str]) -> Compiled | None:
    """The graph that `keep` has marked in this folder; None if there is none that can be read.

    What OpenVINO refuses is removed.
    """
    for path in folder.glob(_WHOLE):
        try:
            if path.name == f"compiled-{path.stat().st_size}.blob":
                return _imported(core, path, properties)
        except (OSError, MemoryError):  # not the file's fault
            return None
        except Exception:  # OpenVINO's exceptions share no base class
            pass
        with suppress(OSError):
            path.unlink()
    return None


def _imported(core: Core, path: Path, properties: Mapping[str, str]) -> Compiled:
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = memory.find(b"\n") + 1
    # OpenVINO takes no array that is read-only, though it does not write to it.
    address = np.frombuffer(memory, np.uint8).ctypes.data + start
    content = np.ctypeslib.as_array((ctypes.c_uint8 * (len(memory) - start)).from_address(address))
    tensor = offline.openvino().Tensor(content, shared_memory=True)
    with repeated(lambda: give_back_mapped(memory)):
        return Compiled(core.import_model(tensor, "CPU", dict(properties)), memory)
