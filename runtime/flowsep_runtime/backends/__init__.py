"""Backends that run the graphs of a bundle.

A backend is one small object that runs a graph by its name; a new one is a module with `why_not`,
`arithmetic` and `open`, and a row of `BACKENDS`. The pipeline needs nothing else. A backend may also run the
whole solver loop itself, such as in one CUDA graph, by being a `SolverLoop` as well.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from flowsep_runtime.arrays import Array, Floats
from flowsep_runtime.backends.axes import Range
from flowsep_runtime.bundle.manifest import Manifest
from flowsep_runtime.checks import whole_number
from flowsep_runtime.errors import OptionError
from flowsep_runtime.processors import default_threads, most_threads

#: "exact": float32 arithmetic. "fast": the quickest arithmetic of the backend on this machine whose error is
#: known to be small; float32 if it has none.
Arithmetic: TypeAlias = Literal["exact", "fast"]

#: Values for callers: "auto" is "fast" if that is another arithmetic than "exact".
Precision: TypeAlias = Literal["exact", "fast", "auto"]


class Backend(Protocol):
    """Runs graphs. Calls from several threads at once must be safe."""

    @property
    def name(self) -> str:
        """The backend's name in `BACKENDS`."""

    @property
    def description(self) -> str:
        """Backend, arithmetic and threads, in words: "openvino, bf16, 2 threads"."""

    def load(self, graph: str) -> None:
        """Load a graph; without effect if it is loaded.

        Raises:
            BackendError: If the backend refuses it.
        """

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs a graph on C-contiguous arrays of the contract's names, dtypes and shapes (see `manifest.py`).

        Returns:
            Its outputs by name.

        Raises:
            BackendError: If the backend fails.
        """

    def free(self, graph: str) -> None:
        """Free the memory of a graph, loaded or not; its next use loads it again."""


@dataclass(frozen=True)
class Schedule:
    """One run of a solver, with the constants of its loop.

    All arrays have the batch of `x`, except `time_features`, which has one row for each time of the solver.
    """

    solver: str
    steps: int
    x: Floats  # [B, 8, t, 16], the noise it starts from
    time_features: Floats  # [evaluations, E]
    mixture_features: Floats  # [B, C, t, 16]
    keys_values: Floats  # [B, 50, K]
    mask_bias: Floats  # [B, 1, 1, 50]


@runtime_checkable
class SolverLoop(Protocol):
    """Extension of a backend that runs the whole loop without returning to the host."""

    def solve(self, schedule: Schedule, progress: Callable[[int, int], None] | None) -> Floats:
        """The solution [B, 8, t, 16]."""


class ArrayOnDevice(Protocol):
    """An array in a backend's own memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, as in numpy."""

    def numpy(self) -> Array:
        """A copy on the host."""


@runtime_checkable
class DeviceBackend(Protocol):
    """Extension of a backend that keeps arrays in its own memory between stages (`device_pipeline.py`)."""

    @property
    def batches(self) -> Range:
        """The batches that it can run."""

    @property
    def loop_batches(self) -> Range:
        """The batches of the loop and of all graphs that run for a row of it: text, decoder, vocoder."""

    @property
    def guides(self) -> bool:
        """True if `keep_solution` takes guidance."""

    def session(self) -> AbstractContextManager[None]:
        """Context with exclusive use of the device; arrays on the device are valid only inside it."""

    def keep(self, graph: str, inputs: Mapping[str, Any]) -> Mapping[str, ArrayOnDevice]:
        """Run a graph, also one of `device_graphs.py`, on arrays of host and device; what has batch 1 goes
        to every row. The outputs are valid until the graph runs again."""

    def keep_solution(
        self,
        solver: str,
        steps: int,
        noise: Floats,
        invariants: Mapping[str, Any],
        mixtures: Sequence[int] | None = None,
        guidance: Floats | None = None,
    ) -> ArrayOnDevice:
        """Solve on the device, like `SolverLoop.solve`.

        Args:
            solver: A name of `solvers.SOLVERS`.
            steps: At least 1.
            noise: [B, 8, t, 16].
            invariants: The velocity's inputs that no step changes, of batch B.
            mixtures: For every row, the one of `mixture_features` that it hears; those may then be of
                another batch. None: each its own.
            guidance: Scales [B / 2] of `solvers.guided`. Rows of the second half answer the negative queries
                of the first half's rows, from the same noise. None: every row for itself.

        Returns:
            [B, 8, t, 16]; with guidance the first half of it.
        """

    def synchronize(self) -> None:
        """Waits until all work is done."""


class _Module(Protocol):
    def why_not(self) -> str | None: ...

    def arithmetic(self, precision: Arithmetic) -> str: ...

    def open(
        self, folder: Path, manifest: Manifest, precision: Arithmetic, threads: int | None, cache: bool
    ) -> Backend: ...


#: Name -> module of this package, in the order in which "auto" tries them.
BACKENDS: Mapping[str, str] = {
    "tensorrt": "tensorrt.backend",
    "cuda": "onnxruntime.cuda",
    "openvino": "openvino.backend",
    "cpu": "onnxruntime.cpu",
}

_ARITHMETIC: tuple[Arithmetic, ...] = ("exact", "fast")


@dataclass(frozen=True)
class BackendReport:
    """Abilities of a backend on this machine: `why_not` is None if it can run, and then `precisions` says
    which arithmetic "exact" and "fast" are."""

    name: str
    why_not: str | None
    precisions: Mapping[Arithmetic, str]


def report(name: str) -> BackendReport:
    """The abilities of the backend of that name on this machine.

    Raises:
        OptionError: If there is no such backend.
    """
    module = _module(name)
    reason = module.why_not()
    known: dict[Arithmetic, str] = {}
    if reason is None:
        known = {precision: module.arithmetic(precision) for precision in _ARITHMETIC}
    return BackendReport(name, reason, known)


def refuse_half(name: str, manifest: Manifest, precision: Arithmetic) -> None:
    """Check for a backend that computes a half-precision graph in half precision.

    Raises:
        OptionError: If the bundle is half precision and the precision "exact".
    """
    if precision == "exact" and manifest.precision == "float16":
        raise OptionError(f"The {name} backend computes this bundle in half precision: add --precision fast.")


def why_not(name: str) -> str | None:
    """The reason why this machine cannot run a backend; None if it can."""
    return _module(name).why_not()


def open_backend(
    name: str,
    folder: Path,
    manifest: Manifest,
    precision: Precision = "exact",
    threads: int | None = None,
    cache: bool = True,
) -> Backend:
    """Opens a bundle on a backend.

    Args:
        name: A name of `BACKENDS`, or "auto" (see `open_chosen`).
        folder: The bundle.
        manifest: What `Manifest.read(folder)` gave.
        precision: "exact", "fast" or "auto".
        threads: Threads of the backend on the CPU; None leaves it to the backend.
        cache: Whether compiled graphs and the results of checks may be kept in the cache folder.

    Raises:
        OptionError: If there is no such backend or precision, or this machine cannot run it.
    """
    return open_chosen(name, folder, manifest, precision, threads, cache)[0]


def open_chosen(
    name: str,
    folder: Path,
    manifest: Manifest,
    precision: Precision = "exact",
    threads: int | None = None,
    cache: bool = True,
) -> tuple[Backend, Arithmetic]:
    """Open a backend like `open_backend`, and return the precision that "auto" stands for.

    As a name it is the first backend that can run this bundle on this machine; unless float32 is asked for,
    those that have a quicker arithmetic go before all that have none. As a precision it is "fast" where the
    backend has a quicker arithmetic.
    """
    if threads is None:
        threads = default_threads()
    else:
        threads = whole_number("threads", threads, 1, most_threads())
    if precision not in ("exact", "fast", "auto"):
        raise OptionError(f"There is no precision {precision!r}: choose exact, fast or auto.")
    reasons: dict[str, str] = {}
    for candidate in _in_turn(tuple(BACKENDS) if name == "auto" else (name,), precision, reasons):
        is_fast = precision == "fast" or (precision == "auto" and _is_quicker(candidate))
        arithmetic: Arithmetic = "fast" if is_fast else "exact"
        try:
            return _module(candidate).open(folder, manifest, arithmetic, threads, cache), arithmetic
        except OptionError as error:  # it runs here, but not this bundle
            if name != "auto":
                raise
            reasons[candidate] = str(error).rstrip(".")
    if name != "auto":
        raise OptionError(f"Backend {name} cannot run here: {reasons[name]}.")
    said = "; ".join(f"backend {candidate}: {reason}" for candidate, reason in reasons.items())
    raise OptionError(f"No backend can run here ({said}).")


def threads_in_words(threads: int | None) -> str:
    """Number of threads in words, for a backend's description; None is the default on a CPU."""
    if threads is None:
        return "one thread per core"
    return f"{threads} thread{'s' if threads > 1 else ''}"


def give_memory_back() -> None:
    """Return freed memory to the system: glibc keeps freed blocks of up to 32 MB, and the weights of a graph
    are thousands of them."""
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _in_turn(names: tuple[str, ...], precision: Precision, reasons: dict[str, str]) -> Iterator[str]:
    """Those that can run here, in the order to try them; of the others, `reasons` says why not.

    A backend is asked when its turn comes: to ask one may load hundreds of megabytes of libraries.
    """
    slower = []
    for name in names:
        reason = why_not(name)
        if reason is not None:
            reasons[name] = reason
        elif precision != "exact" and not _is_quicker(name):
            slower.append(name)
        else:
            yield name
    yield from slower


def _is_quicker(name: str) -> bool:
    arithmetic = _module(name).arithmetic
    return arithmetic("fast") != arithmetic("exact")


def _module(name: str) -> _Module:
    if name not in BACKENDS:
        raise OptionError(f"There is no backend {name!r}: choose from auto, {', '.join(BACKENDS)}.")
    module: _Module = import_module(f"{__name__}.{BACKENDS[name]}")
    return module
