"""The files that an ONNX graph reads beside itself, found without the onnx package and before a backend
opens it.

A tensor of a graph may lie in another file, at a path that the graph names: a foreign graph could name any
file of this machine. An `.onnx` file is a protocol buffer, that is fields of (number, kind, content), some of
which hold messages of the same form; the few that lead to a tensor are followed, and the rest is skipped
without being read. The numbers are those of `onnx.proto`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Largest depth of nested messages; protocol buffers themselves allow a hundred.
DEEPEST = 100

LONGEST_ENTRY = 4096  # bytes of a key and its value: no file name is longer

#: Message -> number of a field -> the message that it holds, where that may lead to a tensor or an operator.
FIELDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {4: "operator", 5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}

#: Operators that make a backend open files by themselves.
REFUSED_OPERATORS = (b"EPContext",)


class GraphError(ValueError):
    """A file that is no ONNX graph, or one that must not be opened."""


@dataclass(frozen=True)
class Reference:
    """A tensor's content in another file: from byte `offset`, `length` bytes (None: to its end)."""

    location: str
    offset: int = 0
    length: int | None = None


def references(path: Path) -> list[Reference]:
    """Data that a graph reads from other files.

    Raises:
        GraphError: If it names other files and is damaged, or has an operator that opens files.
        OSError: If it cannot be read.
    """
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as file:
        # Not closed by hand: an error on the way still holds pieces of it.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # The words stand in the file as they are; nearly every graph is done here, at the speed of a search.
    if all(content.find(word) < 0 for word in (b"location", *REFUSED_OPERATORS)):
        return []
    return list(_walk(memoryview(content), "model", 0))


def _walk(message: memoryview, kind: str, depth: int) -> Iterator[Reference]:
    if depth > DEEPEST:
        raise GraphError("its parts lie too deep in each other")
    entries: list[tuple[str, str]] = []
    for number, content in _fields(message):
        part = FIELDS[kind].get(number)
        if part is None or content is None:
            continue
        if part == "operator":
            if len(content) < LONGEST_ENTRY and bytes(content) in REFUSED_OPERATORS:
                raise GraphError(f"it has the operator {bytes(content).decode()}, which opens files")
        elif part == "entry":
            entries.append(_entry(content))
        else:
            yield from _walk(content, part, depth + 1)
    if entries:
        yield _reference(entries)


def _entry(message: memoryview) -> tuple[str, str]:
    """Key and value; of a field that comes twice the last counts, as in every reader of protocol buffers."""
    if len(message) > LONGEST_ENTRY:
        raise GraphError("it is damaged")
    texts = {1: b"", 2: b""}
    for number, content in _fields(message):
        if number in texts and content is not None:
            texts[number] = bytes(content)
    try:
        return texts[1].decode(), texts[2].decode()
    except UnicodeDecodeError:
        raise GraphError("it is damaged") from None


def _reference(entries: list[tuple[str, str]]) -> Reference:
    values = dict(entries)
    # Readers differ in which of two they take.
    if len(values) < len(entries):
        raise GraphError("a tensor of it names its file twice")
    try:
        numbers = {key: int(values[key]) for key in ("offset", "length") if key in values}
    except ValueError:
        raise GraphError("it is damaged") from None
    if any(number < 0 for number in numbers.values()):
        raise GraphError("it is damaged")
    return Reference(values.get("location", ""), numbers.get("offset", 0), numbers.get("length"))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Number and content of every field; None for a number, which has no content that leads on."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, form = tag >> 3, tag & 7
        if form == 0:
            _, place = _varint(message, place)
            yield number, None
            continue
        if form == 2:
            length, place = _varint(message, place)
        elif form in (1, 5):
            length = 8 if form == 1 else 4
        else:
            raise GraphError("it is damaged")
        if length > len(message) - place:
            raise GraphError("it is damaged")
        yield number, message[place : place + length] if form == 2 else None
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    value = 0
    for index in range(10):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place
    raise GraphError("it is damaged")
