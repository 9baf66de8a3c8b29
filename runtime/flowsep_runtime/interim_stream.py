"""STAND-IN for `Separator.stream`, with its signature, until that is merged: then this file goes, and
`file_runs.py` calls `separator.stream(...)` (one line there, marked)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Floats
from .errors import OptionError
from .separator import Separator


@dataclass(frozen=True)
class Part:
    """Consecutive pieces of the result, each array [n, channels]; together as long as the input."""

    start: int
    mixture: Floats
    targets: tuple[Floats, ...]
    masked: tuple[Floats, ...]


class Parts(Iterator[Part]):
    """The parts, and the seconds by stage so far."""

    def __init__(self, generator: Iterator[Part], timings: dict[str, float]) -> None:
        self._generator = generator
        self.timings = timings

    def __next__(self) -> Part:
        return next(self._generator)


def stream(
    separator: Separator,
    blocks: Iterable[ArrayLike],
    sample_rate: float,
    query: str | Sequence[str],
    *,
    steps: int | None = None,
    solver: str | None = None,
    seed: int = 0,
    mono: bool = False,
    guidance: float = 1.0,
    negative: str | None = None,
    candidates: int = 1,
    samples: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Parts:
    """The whole recording as one part."""
    if guidance != 1 or negative is not None or candidates != 1:
        raise OptionError("guidance, negative and candidates need Separator.stream: leave them out.")
    timings: dict[str, float] = {}

    def generate() -> Iterator[Part]:
        mixture = np.concatenate([np.asarray(block, np.float32) for block in blocks])
        heard = mixture.mean(axis=1, keepdims=True) if mono else mixture
        queries = [query] if isinstance(query, str) else list(query)
        results = []
        for place, text in enumerate(queries):

            def report(done: int, total: int, place: int = place) -> None:
                if progress is not None:
                    share = (place + done / total) / len(queries)
                    progress(round(share * len(mixture)), len(mixture))

            result = separator.separate(heard, sample_rate, text, steps, solver, seed, report)
            for stage, seconds in result.timings.items():
                timings[stage] = timings.get(stage, 0.0) + seconds
            results.append(result)
        spread = np.ones((1, mixture.shape[1]), np.float32)
        yield Part(
            0,
            mixture,
            tuple(result.target * spread for result in results),
            tuple(result.masked * spread for result in results),
        )

    return Parts(generate(), timings)
