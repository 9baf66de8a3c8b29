"""Recordings that are several in one file, or whose header says less than there is.

libsndfile reads as far as the first header promises: of two MP3s or Oggs in one file (every dump of a radio
stream) the first, and of a WAV whose recorder crashed nothing. Here the containers are walked through, from
header to header, and a file becomes the pieces that libsndfile reads whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import BinaryIO

from flowsep_runtime.audio.chunks import STRAY, chunk_pieces, goes_on, kind_of, missing
from flowsep_runtime.audio.content import Content, Piece
from flowsep_runtime.audio.mpeg import after_tags, mpeg_pieces


def pieces(file: BinaryIO) -> list[Piece]:
    """The pieces of a file, one or more; a container that is not walked through here is one.

    Raises:
        OSError: If it cannot be read.
    """
    content = Content(file)
    found = list(_walker(content)(content))
    return found or [Piece(0, content.length)]


def continued(file: BinaryIO, piece: Piece, end: int) -> list[Piece]:
    """A piece whose sound ends at a place in it, and what comes behind: a piece of its own if it begins as
    the first does, else a remark unless it is little.

    Raises:
        OSError: If it cannot be read.
    """
    content = Content(file)
    place = after_tags(content, piece.start + end)
    left = piece.end - place
    if left > 0 and content.at(place, 4) == content.at(piece.start, 4):
        return [replace(piece, end=place), replace(piece, start=place)]
    return [replace(piece, remark=goes_on(left)) if left > STRAY else piece]


def _walker(content: Content) -> Callable[[Content], Iterator[Piece]]:
    start = content.at(0, 12)
    match start[:4]:
        case b"OggS":
            return _ogg
        case b"fLaC":
            return _flac
        case b".snd":
            return _au
    if kind := kind_of(content):
        return partial(chunk_pieces, kind=kind)
    if start[:1] == b"G" == content.at(_PACKET, 1) == content.at(2 * _PACKET, 1):
        return _transport
    return mpeg_pieces if start[:3] == b"ID3" or start[:1] == b"\xff" else _one


def _one(content: Content) -> Iterator[Piece]:
    yield Piece(0, content.length)


def _split(content: Content, starts: list[int]) -> Iterator[Piece]:
    if not starts:
        return
    for start, end in zip(starts, [*starts[1:], content.length], strict=True):
        yield Piece(start, end)


_PAGE = re.compile(rb"OggS\0")


def _ogg(content: Content) -> Iterator[Piece]:
    """A chain has a link wherever streams begin after others have gone on: RFC 3533, section 4."""
    starts, place, is_beginning = [], 0, False
    while place < content.length:
        header = content.at(place, 27 + 255)
        if not _PAGE.match(header) or len(header) < 27:
            found = content.find(_PAGE, place + 1)
            if found is None:
                break
            place = found
            continue
        begins = bool(header[5] & 2)
        if begins and not is_beginning:
            starts.append(place)
        is_beginning = begins
        segments = header[26]
        place += 27 + segments + sum(header[27 : 27 + segments])
    if starts:
        starts[0] = 0
    yield from _split(content, starts)


# The marker and a block of 34 bytes that says what the stream is: RFC 9639, section 8.
_STREAM = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")


def _flac(content: Content) -> Iterator[Piece]:
    starts, found = [0], content.find(_STREAM, 4)
    while found is not None:
        starts.append(found)
        found = content.find(_STREAM, found + 4)
    yield from _split(content, starts)


def _au(content: Content) -> Iterator[Piece]:
    starts, place, remark = [], 0, ""
    while content.at(place, 4) == b".snd":
        starts.append(place)
        offset, size = (int.from_bytes(content.at(place + first, 4), "big") for first in (4, 8))
        if size == 0xFFFFFFFF or place + offset + size >= content.length or offset < 24:
            remark = missing(content.length, place + offset, place + offset + size, 4)
            break
        place += offset + size
    else:
        if content.length - place > STRAY:
            remark = goes_on(content.length - place)
    *whole, last = _split(content, starts)
    yield from whole
    yield replace(last, remark=remark)


_PACKET = 188  # bytes of a packet of MPEG-TS, ISO/IEC 13818-1, which begins with a G


def _transport(content: Content) -> Iterator[Piece]:
    over = content.length % _PACKET
    remark = ""
    if over and content.at(content.length - over, 1) == b"G":
        remark = "is cut short: it ends within a packet, and how much is missing is not known."
    yield Piece(0, content.length, remark=remark)
