"""Containers of chunks: a name, a size, that many bytes, and the next.

libsndfile and FFmpeg end with the first recording in a file, and read a chunk that is cut short as far as
it goes. Here a file is walked through from chunk to chunk, without its content: what follows is read as well,
and what is missing is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from flowsep_runtime.audio.content import Content, Piece

MOST_RECORDINGS = 10_000  # in one file
STRAY = 1 << 14  # bytes behind the sound that are not worth a word: padding, or a tag that somebody appended


class Chunk(NamedTuple):
    """A chunk's name, and where it begins, its content begins, and its content ends."""

    name: bytes
    start: int
    body: int
    end: int


class Kind(NamedTuple):
    """A kind of container: how it begins, where its first chunk is, how to read one, which have sound, and
    the multiple, from its beginning on, at which chunks begin."""

    beginning: re.Pattern[bytes]
    first: int
    chunk: Callable[[Content, int], Chunk | None]
    sound: tuple[bytes, ...]
    multiple: int = 1


def _chunks(
    width: int, size_width: int, order: Literal["little", "big"], head: int = 0
) -> Callable[[Content, int], Chunk | None]:
    """Reads a chunk of a name and a size, which counts `head` bytes of these themselves."""

    def chunk(content: Content, start: int) -> Chunk | None:
        header = content.at(start, width + size_width)
        size = int.from_bytes(header[width:], order) - head
        if len(header) < width + size_width or size < 0 or (width == 4 and not _NAME.fullmatch(header[:4])):
            return None
        body = start + len(header)
        return Chunk(header[:width], start, body, body + size)

    return chunk


_NAME = re.compile(rb"[ -~]{4}")


def _box(content: Content, start: int) -> Chunk | None:
    """A box of ISO/IEC 14496-12: size 0 is up to the end of the file, size 1 stands behind the name."""
    header = content.at(start, 16)
    size, head = int.from_bytes(header[:4], "big"), 8
    if size == 1:
        size, head = int.from_bytes(header[8:], "big"), 16
    size = size or content.length - start
    if len(header) < head or size < head or not _NAME.fullmatch(header[4:8]):
        return None
    return Chunk(header[4:8], start, start + head, start + size)


def _element(content: Content, start: int) -> Chunk | None:
    """An element of EBML, RFC 8794: the length of each number stands in its first byte."""
    header = content.at(start, 12)
    width = 9 - header[0].bit_length() if header else 9
    if width > 4 or len(header) <= width:
        return None
    size_width = 9 - header[width].bit_length()
    field = header[width : width + size_width]
    if size_width > 8 or len(field) < size_width:
        return None
    body = start + width + size_width
    size = int.from_bytes(field, "big") & ((1 << 7 * size_width) - 1)
    is_unknown = size == (1 << 7 * size_width) - 1
    end = content.length if is_unknown else body + size
    return Chunk(header[:width], start, body, end)


def _block(content: Content, start: int) -> Chunk | None:
    """A block of Creative's VOC; the one that ends a file is one byte."""
    header = content.at(start, 4)
    if not header or header[0] > 9:
        return None
    if header[0] == 0:
        return Chunk(header[:1], start, start + 1, start + 1)
    end = start + 4 + int.from_bytes(header[1:], "little")
    return Chunk(header[:1], start, start + 4, end) if len(header) == 4 else None


_SOUND = (b"data", b"SSND", b"BODY")
_WAV = Kind(re.compile(rb"(RIFF|RF64)....WAVE", re.DOTALL), 12, _chunks(4, 4, "little"), _SOUND, 2)
_KINDS = (
    _WAV,
    # An AVI beyond 1 GB goes on in further RIFFs.
    Kind(re.compile(rb"RIFF....AVI ", re.DOTALL), 12, _chunks(4, 4, "little"), (b"LIST", b"RIFF"), 2),
    Kind(re.compile(rb"FORM....(AIF[FC]|8SVX|16SV)", re.DOTALL), 12, _chunks(4, 4, "big"), _SOUND, 2),
    Kind(re.compile(rb"caff\0\x01"), 8, _chunks(4, 8, "big"), _SOUND),
    Kind(
        re.compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb"),
        40,
        _chunks(16, 8, "little", head=24),
        (b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a",),
        8,
    ),
    Kind(
        re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9"),
        0,
        _chunks(16, 8, "little", head=24),
        (b"\x36\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",),
    ),
    Kind(re.compile(rb"....ftyp", re.DOTALL), 0, _box, (b"mdat",)),
    Kind(re.compile(rb"\x1a\x45\xdf\xa3"), 0, _element, (b"\x18\x53\x80\x67",)),
    Kind(re.compile(rb"Creative Voice File\x1a\x1a\0"), 26, _block, (b"\x01", b"\x02", b"\x09")),
)
_UNFINISHED = 0xFFFFFFFF  # a size of 4 bytes that stands elsewhere, or nowhere


def kind_of(content: Content, start: int = 0) -> Kind | None:
    """The kind of container that begins here; None if it is none of chunks."""
    beginning = content.at(start, 32)
    return next((kind for kind in _KINDS if kind.beginning.match(beginning)), None)


def chunk_pieces(content: Content, kind: Kind) -> Iterator[Piece]:
    """The recordings of a file that begins as this kind does, one or more."""
    start = count = 0
    while start < content.length and count < MOST_RECORDINGS:
        hidden: dict[int, bytes] = {}
        piece = _recording(content, start, kind, hidden)
        yield replace(piece, patches={**piece.patches, **hidden})
        start, count = piece.end, count + 1
    if start < content.length:
        yield Piece(start, content.length, remark=goes_on(content.length - start))


def _is_endless(content: Content, texts: Chunk) -> bool:
    """True for a list whose texts are longer than the list: libsndfile reads it for ever."""
    place = texts.body + 4
    while place + 8 <= texts.end:
        size = int.from_bytes(content.at(place + 4, 4), "little")
        place += 8 + size + size % 2
    return place > texts.end + 1


def _recording(content: Content, start: int, kind: Kind, hidden: dict[int, bytes]) -> Piece:
    """The recording that begins here: up to the next one, or to the end of the file. Chunks that libsndfile
    must not see get another name in `hidden`."""
    place, long_size = start + kind.first, 0
    sound: Chunk | None = None
    while place < content.length:
        if place > start and kind.beginning.match(content.at(place, 32)):
            return Piece(start, place)
        chunk = kind.chunk(content, place)
        if chunk is not None and chunk.name == b"ds64":  # RF64's own sizes, in 64 bits
            long_size = int.from_bytes(content.at(chunk.body + 8, 8), "little")
        is_sound = chunk is not None and chunk.name in kind.sound
        if chunk is not None and is_sound and long_size and chunk.end - chunk.body == _UNFINISHED:
            chunk = chunk._replace(end=chunk.body + long_size)
        if chunk is None or (sound and not is_sound and chunk.end > content.length):
            return _stray(content, start, place, sound)
        if chunk.end > content.length:
            width = 4 if chunk.body - chunk.start == 8 and not long_size else 8
            return Piece(start, content.length, remark=missing(content.length, chunk.body, chunk.end, width))
        if is_sound:
            sound = chunk
        elif chunk.name == b"LIST" and kind is _WAV and _is_endless(content, chunk):
            hidden[chunk.start] = b"JUNK"
        place = chunk.end
        if not kind.beginning.match(content.at(place, 32)):  # not all programs fill up at the end
            place += -(place - start) % kind.multiple
    return Piece(start, content.length)


def _stray(content: Content, start: int, place: int, sound: Chunk | None) -> Piece:
    """A recording behind whose chunks come bytes that are none."""
    if sound is not None and sound.name == b"data" and sound.end == sound.body:
        return _crashed(content, start, sound.start)
    left = content.length - place
    return Piece(start, content.length, remark=goes_on(left) if sound and left > STRAY else "")


def _crashed(content: Content, start: int, data: int) -> Piece:
    """A recorder writes the sizes when it stops; one that crashed has left them at zero."""
    # The largest is what libsndfile takes for "to the end of the file".
    sizes = {
        start + 4: min(_UNFINISHED, content.length - start - 8),
        data + 4: min(_UNFINISHED, content.length - data - 8),
    }
    patches = {place: size.to_bytes(4, "little") for place, size in sizes.items()}
    remark = "was not finished by its recorder: its header says that it is empty, and what follows is read."
    return Piece(start, content.length, patches=patches, remark=remark)


def goes_on(count: int) -> str:
    """The remark on a file of which the end is not read."""
    return f"goes on for {count} bytes after the end that its header names: they are not read."


def missing(length: int, start: int, end: int, width: int) -> str:
    """The remark on a file that ends within what a header of `width` bytes a size promises; else nothing."""
    # What programs write that do not know the end: numbers near the largest.
    if end <= length or end - start >= (0x7FFF0000 if width == 4 else 1 << 40):
        return ""
    return f"is cut short: {end - length} bytes of the sound that its header promises are not there."
