"""TensorRT engines of a bundle: where they lie, what they were built from, whether they fit this machine.

A set of engines belongs to one GPU model and one TensorRT version and lies in
`<bundle>/engines/<gpu>-sm<compute capability>-trt<version>/`: a plan a graph, TensorRT's timing cache, and
`engines.json`, which is written last and atomically. The exporter writes it, the `tensorrt` backend reads it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from flowsep_runtime.backends.axes import Range
from flowsep_runtime.backends.loop_parts import engines_of
from flowsep_runtime.bundle.checksums import remembered_sha256
from flowsep_runtime.bundle.files import LARGEST_MANIFEST, inspected
from flowsep_runtime.bundle.manifest import FileEntry, GraphEntry, Manifest, StageEntry
from flowsep_runtime.bundle.records import RecordError, from_json
from flowsep_runtime.caches import write_whole
from flowsep_runtime.errors import BackendError, OptionError, shown

FORMAT = 2  # since 2 the engine of a step gives the next state
SIDECAR = "engines.json"
BACKEND = "tensorrt"  # the name of the backend, and of its variants in a manifest
GUIDE = "guide"
#: Graphs of no bundle that have an engine (`device_graphs.py`).
BETWEEN_STAGES = ("posterior", GUIDE)


@dataclasses.dataclass(frozen=True)
class Machine:
    """GPU and versions that a plan is tied to."""

    gpu: str  # as the driver names it
    compute_capability: str  # "9.0"
    tensorrt: str  # version
    driver: int  # the CUDA version that the driver supports, as cudaDriverGetVersion gives it

    @property
    def folder_name(self) -> str:
        """`nvidia-h100-80gb-hbm3-sm90-trt11.4.0.106`."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"{gpu}-sm{self.compute_capability.replace('.', '')}-trt{self.tensorrt}"


@dataclasses.dataclass(frozen=True)
class EngineEntry:
    """One plan; `key` is the digest of all that it was built from, so that an equal key needs no rebuild."""

    plan: FileEntry
    key: str
    sources: tuple[str, ...]  # SHA-256 of the graph's files
    activation_bytes: int  # of device memory while it runs


@dataclasses.dataclass(frozen=True)
class EngineSet:
    """`engines.json`.

    Attributes:
        loop_batch: Of the loop and of all that runs for a row of it; None: as `batch`.
        stages: Errors measured on this GPU; empty if they were not.
    """

    machine: Machine
    precision: str  # of the bundle
    batch: Range
    frames: Range
    settings: dict[str, str]  # of the builder, for people; every engine's key depends on them
    engines: dict[str, EngineEntry]
    stages: dict[str, StageEntry] = dataclasses.field(default_factory=dict)
    loop_batch: Range | None = None
    format: int = FORMAT

    @property
    def activation_bytes(self) -> int:
        """Size of the one buffer that serves all engines, which never run at once."""
        return max(entry.activation_bytes for entry in self.engines.values())

    @classmethod
    def read(cls, folder: Path) -> EngineSet:
        """Reads a set and checks that its plans are there and unchanged.

        Raises:
            BackendError: If it is damaged.
            OptionError: If it is of another format.
        """
        path = folder / SIDECAR
        try:
            if inspected(folder, SIDECAR).st_size > LARGEST_MANIFEST:
                raise RecordError("it is too large")
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and content.get("format") != FORMAT:
                raise OptionError(
                    f"{shown(folder)} is of another version of FlowSep: run flowsep-export --tensorrt again."
                )
            entry = from_json(cls, content)
            for engine in entry.engines.values():
                inspected(folder, engine.plan.name)
                if remembered_sha256(folder / engine.plan.name) != engine.plan.sha256:
                    raise RecordError(f"{engine.plan.name} was changed")
        except OptionError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise BackendError(
                f"{shown(path)} is damaged ({error}): remove its folder and run flowsep-export --tensorrt."
            ) from None
        return entry

    def write(self, folder: Path) -> None:
        """Writes `engines.json`, atomically; call it when every plan is there."""
        text = json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"
        write_whole(folder / SIDECAR, text.encode())


def engines_folder(bundle: Path, machine: Machine) -> Path:
    """Folder of a bundle's engines for a machine; it need not exist."""
    return bundle / "engines" / machine.folder_name


def find_engines(bundle: Path, manifest: Manifest, machine: Machine) -> tuple[Path, EngineSet]:
    """The folder and the set that this machine can run.

    Raises:
        OptionError: If the bundle has none, or they were built from other graphs.
        BackendError: If they are damaged.
    """
    folder = engines_folder(bundle, machine)
    command = f"run flowsep-export --tensorrt --bundle {shown(bundle)}"
    if not (folder / SIDECAR).is_file():
        raise OptionError(
            f"{shown(bundle)} has no engines for {machine.gpu} and TensorRT {machine.tensorrt}: {command}."
        )
    engines = EngineSet.read(folder)
    for name in manifest.graphs:
        entries = [engines.engines.get(part) for part in engines_of(name)]
        wanted = sources(manifest.graph(name, BACKEND))
        if any(entry is None or entry.sources != wanted for entry in entries):
            raise OptionError(f"{shown(folder)} was built from another {name} than the bundle's: {command}.")
    return folder, engines


def sources(graph: GraphEntry) -> tuple[str, ...]:
    """The digests that say which graph an engine was built from."""
    return tuple(file.sha256 for file in graph.files)
