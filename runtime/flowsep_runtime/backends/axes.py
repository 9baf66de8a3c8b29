"""The sizes of the dynamic axes of a bundle's graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flowsep_runtime.bundle.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class Range:
    """Smallest, preferred and largest size of an axis."""

    least: int
    best: int
    most: int

    def __contains__(self, size: int) -> bool:
        return self.least <= size <= self.most

    def __str__(self) -> str:
        return str(self.best) if self.least == self.most else f"{self.least}:{self.best}:{self.most}"

    def scaled(self, numerator: int, denominator: int = 1) -> Range:
        """The range of an axis that is `numerator / denominator` times as long."""
        return Range(*(size * numerator // denominator for size in (self.least, self.best, self.most)))


def axis_ranges(manifest: Manifest, batch: Range, frames: Range) -> Mapping[str, Range]:
    """The range of every dynamic axis of the contract (and of `device_graphs`), by its name."""
    model = manifest.model
    return {
        "batch": batch,
        "frames": frames,
        "t": frames.scaled(1, model.latent_stride),
        "samples": frames.scaled(model.hop_length),
        "steps": Range(1, model.default_steps, max(1024, model.default_steps)),
    }
