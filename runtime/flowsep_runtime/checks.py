"""Checks of numbers from callers, before they reach C libraries that check nothing."""

from __future__ import annotations

import math
import numbers

from flowsep_runtime.errors import OptionError


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number in a range.

    Args:
        name: The argument's.
        value: Any object; numpy's integers count as numbers.
        least, most: The range, with both its ends; None is no end.

    Raises:
        OptionError: If it is another thing, or out of range.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if number < least:
            raise OptionError(f"{name} must be at least {least} and not {number}.")
        if most is not None and number > most:
            raise OptionError(f"{name} must be at most {most} and not {number}.")
        return number
    raise OptionError(f"{name} must be a whole number and not {value!r}.")


def real_number(name: str, value: object) -> float:
    """A finite number.

    Raises:
        OptionError: If it is none.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise OptionError(f"{name} must be a number and not {value!r}.")
