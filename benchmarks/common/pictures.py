"""The pictures of all benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flowsep_runtime.app.outputs import replacing
from flowsep_runtime.errors import OutputError, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#6d597a", "#81b29a", "#f2cc8f", "#b8b8b8", "#2a6f97", "#e07a5f", "#3d405b", "#a44a3f")
MARKERS = "osD^vP*X"


@contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of a size in inches; it is written when the block ends without an error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    try:
        with replacing([path]) as (temporary,):
            # Without the version in it, the same numbers give the same file.
            figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
    except OSError as error:
        raise OutputError(f"{shown(path)} cannot be written: {error.strerror or error}.") from None
