"""The sizes of a bundle's model, and its defaults."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

from flowsep_runtime.bundle.records import RecordError
from flowsep_runtime.solvers import SOLVERS

LARGEST_ARRAY = 1 << 28  # numbers; a stranger's sizes must not fill it either

#: The largest size that makes sense, so that no product of them overflows; see `LARGEST_ARRAY` too.
LARGEST_SIZES: Mapping[str, int] = {
    "text_width": 1 << 16,
    "sample_rate": 768_000,
    "hop_length": 1 << 16,
    "clip_samples": 1 << 26,  # more than an hour
    "mel_bins": 1 << 12,
    "latent_channels": 1 << 12,
    "latent_frequencies": 1 << 12,
    "latent_stride": 1 << 10,
    "frame_multiple": 1 << 16,
    "text_length": 1 << 14,
    "default_steps": 10_000,
    "fast_steps": 10_000,
    "masked_steps": 10_000,
    "vocoder_tail": 1 << 20,
}


MOST_EXPONENT = 4.0


def words_of(text: str) -> list[str]:
    """The words of a sentence in lower case; hyphens and apostrophes belong to them."""
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """The sizes that the runtime needs; published values are the defaults."""

    text_width: int
    sample_rate: int = 16000  # Hz
    hop_length: int = 160  # samples per mel frame
    clip_samples: int = 163840  # the length that the model was trained on
    mel_bins: int = 64
    latent_channels: int = 8
    latent_frequencies: int = 16
    latent_stride: int = 4  # mel frames per latent frame
    frame_multiple: int = 32  # mel frames come in multiples of this
    text_length: int = 50  # tokens
    default_steps: int = 20  # of Euler's method, in exact arithmetic
    vocoder_tail: int = 32  # samples that the vocoder gives beyond hop_length * frames
    fast_steps: int | None = None  # of `fast_solver`, in fast arithmetic; None: as in exact arithmetic
    fast_solver: str = "euler"
    default_kind: Literal["generated", "masked"] = "generated"  # the result that is given by default
    #: A query for everything but a sound, with "{query}" in the sound's place; None: the model knows none.
    complement: str | None = None
    masked_steps: int | None = None  # for a masked result, of `masked_solver`; None: as for a generated one
    masked_solver: str = "euler"
    #: Power of the magnitudes from which a sound and its complement get their shares; below 1 where a model
    #: is too sure of them.
    mask_exponent: float = 1.0
    quick_text: bool = False  # the export found that the text encoder bears bf16 (`--precision fast`)
    words: str | None = None  # of the training's captions, with blanks between them; None: not known

    @property
    def clip_frames(self) -> int:
        """Mel frames of a whole clip."""
        return self.clip_samples // self.hop_length

    def complement_of(self, query: str) -> str | None:
        """The query for everything but a query's sound; None if the model knows none."""
        return None if self.complement is None else self.complement.replace("{query}", query)

    def unknown_words(self, query: str) -> list[str]:
        """The words of a query that no caption of the training had; none if those are not known."""
        if self.words is None:
            return []
        known = set(self.words.split())
        return [word for word in dict.fromkeys(words_of(query)) if word not in known]

    def schedule(
        self,
        precision: Literal["exact", "fast"],
        steps: int | None,
        solver: str | None,
        kind: Literal["generated", "masked"] = "generated",
    ) -> tuple[int, str]:
        """Steps and solver of a run: for None, the bundle's defaults for the arithmetic and the kind.

        A solver that takes one number of steps only is not a choice where others are asked for.
        """
        own = self.default_steps, "euler"
        if precision == "fast" and self.fast_steps is not None:
            own = self.fast_steps, self.fast_solver
        takes_others = SOLVERS[self.masked_solver].only_steps is None or steps in (None, self.masked_steps)
        asked_for = kind == "masked" and solver in (None, self.masked_solver) and takes_others
        if asked_for and self.masked_steps is not None:
            own = self.masked_steps, self.masked_solver
        chosen = solver or own[1]
        only = SOLVERS[chosen].only_steps if chosen in SOLVERS else None
        return steps or only or own[0], chosen

    def check(self) -> None:
        """Checks sizes and defaults against the format.

        Raises:
            RecordError: If they break it.
        """
        for field in dataclasses.fields(self):
            least = 0 if field.name == "vocoder_tail" else 1
            value, most = getattr(self, field.name), LARGEST_SIZES.get(field.name)
            if not isinstance(value, int) or most is None:
                continue
            if value < least:
                raise RecordError(f"model.{field.name} must be at least {least}")
            if value > most:
                raise RecordError(f"model.{field.name} must be at most {most}")
        for name in ("fast_solver", "masked_solver"):
            solver = getattr(self, name)
            if solver not in SOLVERS:
                raise RecordError(f"model.{name} is {solver!r}, which this version does not have")
        only = SOLVERS[self.masked_solver].only_steps
        if only is not None and self.masked_steps != only:
            raise RecordError(f"model.masked_steps must be {only} with the solver {self.masked_solver}")
        if not 0 < self.mask_exponent <= MOST_EXPONENT:
            raise RecordError(f"model.mask_exponent must be above 0 and at most {MOST_EXPONENT:g}")
        if self.complement is not None and self.complement.count("{query}") != 1:
            raise RecordError("model.complement must name {query} once")
        if self.clip_samples % (self.hop_length * self.frame_multiple):
            raise RecordError("model.clip_samples must be a multiple of hop_length x frame_multiple")
        if self.frame_multiple % self.latent_stride:
            raise RecordError("model.frame_multiple must be a multiple of latent_stride")
        latent = self.latent_channels * self.latent_frequencies * self.clip_frames
        if max(latent, self.mel_bins * self.clip_frames, self.text_width * self.text_length) > LARGEST_ARRAY:
            raise RecordError("the sizes of model together are too large")
