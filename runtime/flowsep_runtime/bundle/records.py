"""Checked reading of frozen dataclasses from parsed JSON, with errors that name the field."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from typing import Any, TypeVar

Record = TypeVar("Record")


class RecordError(ValueError):
    """A value that is missing or of the wrong kind."""


def from_json(record: type[Record], value: object, where: str = "") -> Record:
    """Builds a dataclass from a JSON object.

    Fields may be str, bool, int, float, Literal, unions of these with None, `tuple[X, ...]`,
    `dict[str, X]` and dataclasses. Keys that the dataclass does not know are ignored, so that a later
    version may add some without a new format.

    Raises:
        RecordError: With the path of the first field that does not fit.
    """
    result: Record = _read(record, value, where)
    return result


def _read(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordError(f"{where} is not a list")
        return tuple(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise RecordError(f"{where} is not an object")
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is typing.Literal:
        if value not in arguments:
            raise RecordError(f"{where} is none of {', '.join(map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _read(option, value, where)
            except RecordError:
                continue
        raise RecordError(f"{where} has the wrong type")
    return _read_scalar(kind, value, where)


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise RecordError(f"{where or 'the whole'} is not an object")
    hints = typing.get_type_hints(kind)
    content = {}
    for field in dataclasses.fields(kind):
        name = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            content[field.name] = _read(hints[field.name], value[field.name], name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecordError(f"{name} is missing")
    return kind(**content)


def _read_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is type(None) and value is None:
        return None
    if kind is str and isinstance(value, str):
        return value
    if (kind is bool) != isinstance(value, bool):  # JSON's true is an int to Python
        raise RecordError(f"{where} has the wrong type")
    if kind is bool:
        return value
    if kind is int and isinstance(value, int):
        return value
    if kind is float and isinstance(value, (int, float)) and abs(value) <= sys.float_info.max:
        return float(value)
    raise RecordError(f"{where} has the wrong type")
