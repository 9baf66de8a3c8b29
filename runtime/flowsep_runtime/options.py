"""The options of a separation, declared once.

`Separator.separate`, `separate_all` and `stream`, the command lines and the evaluation take all of these and
list none of them again. `Options` holds and checks them; `OptionFields` are the same names as keyword
arguments, so that type checkers know them (`**options: Unpack[OptionFields]`). A test holds the two and the
command lines together.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, cast, get_args

from flowsep_runtime.checks import real_number, whole_number
from flowsep_runtime.errors import OptionError, QueryError

if TYPE_CHECKING:
    from flowsep_runtime.bundle.manifest import ModelEntry

MOST_STEPS = 10_000
MOST_GUIDANCE = 100.0  # far beyond what separates; much more leaves the range of float32

#: How the windows of a long recording are put together; docs/long-recordings.md compares them.
Joining: TypeAlias = Literal["joint", "cross-fade", "none"]
JOININGS: tuple[Joining, ...] = get_args(Joining)

#: The model's own waveform, or the mixture's samples through a mask.
Kind: TypeAlias = Literal["generated", "masked"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class OptionFields(TypedDict, total=False):
    """The fields of `Options`, as keyword arguments."""

    steps: int | None
    solver: str | None
    seed: int
    mono: bool
    guidance: float
    negative: str | None
    windows: Joining
    window: float | None
    kind: Kind | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a separation besides its queries; None is the bundle's default.

    Attributes:
        steps: Solver steps, at least 1.
        solver: A name of `solvers.SOLVERS`.
        seed: Seed of all noise, 0 or more.
        mono: Separate only the mean of all channels: the target is the same in all channels, and one mask
            filters them all.
        guidance: Extrapolation from the velocity for the negative query to that for the query: 1 is the query
            alone, more exaggerates the difference, up to 100. Values other than 1 double the solver's work.
        negative: A description of sounds to keep out; None is the empty query. Needs a guidance other than 1.
        windows: Way in which the windows of a long recording are put together.
        window: Length of the windows in seconds, rounded up to what the model takes. A short window saves the
            time that silence behind a short recording would take; docs/long-recordings.md has its cost in
            quality.
        kind: The target: the model's own waveform ("generated"), or the mixture's samples through a mask
            ("masked").

    Raises:
        OptionError: If a value is out of range.
    """

    steps: int | None = None
    solver: str | None = None
    seed: int = 0
    mono: bool = False
    guidance: float = 1.0
    negative: str | None = None
    windows: Joining = "joint"
    window: float | None = None
    kind: Kind | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("steps", 1, MOST_STEPS), ("seed", 0, None)):
            value = getattr(self, name)
            if value is not None:
                whole_number(name, value, least, most)
        if self.solver is not None:
            from flowsep_runtime.solvers import solver_named  # not above: --help needs no numpy

            solver_named(self.solver)
        if abs(real_number("guidance", self.guidance)) > MOST_GUIDANCE:
            raise OptionError(
                f"guidance must be from -{MOST_GUIDANCE:g} to {MOST_GUIDANCE:g} and not {self.guidance:g}."
            )
        if self.window is not None:
            real_number("window", self.window)
        if not isinstance(self.negative, str | None):
            raise QueryError("A query must be text: give a sentence, or several in a list.")
        if self.negative is not None and self.guidance == 1:
            raise OptionError(
                "A negative query has no effect at guidance 1: give another guidance, such as 1.5."
            )
        if self.windows not in JOININGS:
            raise OptionError(f"There are no windows {self.windows!r}: choose from {', '.join(JOININGS)}.")
        if self.kind is not None and self.kind not in KINDS:
            raise OptionError(f"There is no kind {self.kind!r}: choose from {', '.join(KINDS)}.")

    def fields(self) -> OptionFields:
        """The options as keyword arguments."""
        return cast(OptionFields, asdict(self))

    def resolved(self, model: ModelEntry, precision: Literal["exact", "fast"]) -> ResolvedOptions:
        """Fill in the defaults of a bundle.

        Args:
            model: The bundle's sizes and defaults.
            precision: The arithmetic that runs.

        Raises:
            OptionError: If the window is not above 0 and at most the model's clip, or the solver does not
                take the steps.
        """
        self.windowed(model)
        kind = self.kind or model.default_kind
        steps, solver = model.schedule(precision, self.steps, self.solver, kind)
        from flowsep_runtime.solvers import solver_taking

        solver_taking(solver, steps)
        return ResolvedOptions(**asdict(self) | {"steps": steps, "solver": solver, "kind": kind})

    def windowed(self, model: ModelEntry) -> ModelEntry:
        """The model's sizes, with a clip as long as the windows that are asked for."""
        if self.window is None:
            return model
        longest = model.clip_samples / model.sample_rate
        if not 0 < self.window <= longest:
            raise OptionError(
                f"window must be above 0 and at most {longest:g} seconds, the model's clip, "
                f"and not {self.window}."
            )
        multiple = model.hop_length * model.frame_multiple
        samples = max(1, round(self.window * model.sample_rate))  # windows of nothing would never end
        return replace(model, clip_samples=math.ceil(samples / multiple) * multiple)


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions(Options):
    """Options with the defaults of a bundle filled in."""

    steps: int
    solver: str
    kind: Kind
