"""Recordings that are several in one file, or whose header says less than there is.

libsndfile reads as far as the first header promises: of two MP3s or Oggs in one file (every dump of a radio
stream) the first, and of a WAV whose recorder crashed nothing. Here the containers are walked through, from
header to header, and a file becomes the pieces that libsndfile reads whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO, Literal

from flowsep_runtime.audio.content import Content, Piece
from flowsep_runtime.audio.mpeg import mpeg_pieces

STRAY = 1 << 14  # bytes behind a WAV that are not worth a word: padding, or a tag that somebody appended


def pieces(file: BinaryIO) -> list[Piece]:
    """The pieces of a file, one or more; a container that is not walked through here is one.

    Raises:
        OSError: If it cannot be read.
    """
    content = Content(file)
    found = list(_walker(content)(content))
    return found or [Piece(0, content.length)]


def _walker(content: Content) -> Callable[[Content], Iterator[Piece]]:
    start = content.at(0, 12)
    match start[:4]:
        case b"OggS":
            return _ogg
        case b"fLaC":
            return _flac
        case b"RIFF" if start[8:12] == b"WAVE":
            return _wav
        case b".snd":
            return _au
        case _:
            return mpeg_pieces if start[:3] == b"ID3" or start[:1] == b"\xff" else _one


def _one(content: Content) -> Iterator[Piece]:
    yield Piece(0, content.length, remark=_cut_short(content))


#: Chunks of a container: place of the first, bytes of a name and of a size, the order of these bytes, what a
#: size counts of its own chunk's head, and the multiple at which the next chunk begins.
_CHUNKS: dict[bytes, tuple[int, int, int, Literal["little", "big"], int, int]] = {
    b"RIFF": (12, 4, 4, "little", 0, 2),
    b"RF64": (12, 4, 4, "little", 0, 2),
    b"FORM": (12, 4, 4, "big", 0, 2),
    b"caff": (8, 4, 8, "big", 0, 1),
    b"riff": (40, 16, 8, "little", 24, 8),
}
_SOUND = (b"data", b"SSND", b"BODY")


def _cut_short(content: Content, start: int = 0) -> str:
    """The remark on a file that ends within its sound, as a copy does that was interrupted; else nothing."""
    layout = _CHUNKS.get(content.at(start, 4))
    if layout is None:
        return ""
    first, name, width, order, head, multiple = layout
    place, long_size = start + first, 0
    while len(header := content.at(place, name + width)) == name + width:
        size = int.from_bytes(header[name:], order) - head
        if header[:4] == b"ds64":  # RF64's own sizes, in 64 bits
            long_size = int.from_bytes(content.at(place + 16, 8), "little")
        if header[:4] in _SOUND:
            known = long_size if long_size and size == 0xFFFFFFFF else size
            return _missing(
                place + name + width + known - content.length, known, width if known == size else 8
            )
        if size < 0:
            break
        place += name + width + size
        place += -place % multiple
    return ""


def _goes_on(count: int) -> str:
    return f"goes on for {count} bytes after the end that its header names: they are not read."


def _missing(count: int, size: int, width: int) -> str:
    # What programs write that do not know the end: numbers near the largest.
    if count <= 0 or size >= (0x7FFF0000 if width == 4 else 1 << 40):
        return ""
    return f"is cut short: {count} bytes of the sound that its header promises are not there."


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
            remark = _missing(place + offset + size - content.length, size, 4)
            break
        place += offset + size
    else:
        if content.length - place > STRAY:
            remark = _goes_on(content.length - place)
    *whole, last = _split(content, starts)
    yield from whole
    yield replace(last, remark=remark)


def _wav(content: Content) -> Iterator[Piece]:
    start = 0
    while content.at(start, 4) == b"RIFF" and content.at(start + 8, 4) == b"WAVE":
        data = _chunk(content, start, b"data")
        if data is None:
            break
        size = int.from_bytes(content.at(data + 4, 4), "little")
        end, is_known = _end(content, data + 8 + size + size % 2)
        if size == 0 and not is_known:
            yield _crashed(content, start, data)
            return
        if size == 0xFFFFFFFF or end >= content.length:
            yield Piece(start, content.length, remark=_cut_short(content, start))
            return
        if content.at(end, 4) == b"RIFF" and content.at(end + 8, 4) == b"WAVE":
            yield Piece(start, end)
            start = end
            continue
        left = content.length - end
        if not is_known and left > STRAY:
            yield Piece(start, content.length, remark=_goes_on(left))
            return
        break
    yield Piece(start, content.length)


def _chunk(content: Content, start: int, name: bytes) -> int | None:
    """Start of a chunk of a RIFF file."""
    place = start + 12
    while len(header := content.at(place, 8)) == 8:
        if header[:4] == name:
            return place
        size = int.from_bytes(header[4:], "little")
        place += 8 + size + size % 2
    return None


_CHUNK_NAME = re.compile(rb"[A-Za-z0-9_ ]{4}")


def _end(content: Content, place: int) -> tuple[int, bool]:
    """End of the chunks from here on, and whether only the file's end, or another RIFF, follows."""
    while place < content.length:
        header = content.at(place, 8)
        if header[:4] == b"RIFF":
            return place, True
        if len(header) < 8 or not _CHUNK_NAME.fullmatch(header[:4]):
            return place, False
        size = int.from_bytes(header[4:], "little")
        if place + 8 + size > content.length:
            return place, False
        place += 8 + size + size % 2
    return place, True


def _crashed(content: Content, start: int, data: int) -> Piece:
    """A recorder writes the sizes when it stops; one that crashed has left them at zero."""
    most = 0xFFFFFFFF  # what libsndfile takes for "to the end of the file"
    sizes = {
        start + 4: min(most, content.length - start - 8),
        data + 4: min(most, content.length - data - 8),
    }
    patches = {place: size.to_bytes(4, "little") for place, size in sizes.items()}
    remark = "was not finished by its recorder: its header says that it is empty, and what follows is read."
    return Piece(start, content.length, patches=patches, remark=remark)
