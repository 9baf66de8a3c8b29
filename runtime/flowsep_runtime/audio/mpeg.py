"""MP3 files, frame by frame: how much sound is there, whatever the header says.

An MP3 is a row of frames of 1152 or 576 samples. Its length stands, if at all, in a first frame without sound
(Xing's or VBRI's, ISO/IEC 11172-3 knows of neither), and libsndfile reads no further than that says; where it
is missing, no further than the first frame's bit rate lets it expect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from flowsep_runtime.audio.content import Content, Piece

_SYNC = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]")  # a version and a layer, and neither free nor bad a rate
_KILOBITS = {  # by MPEG 1 or not, and layer
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)
_DECODER_DELAY = 529  # samples, which a decoder takes off with the encoder's
_SLACK = 2  # frames that may be lost at a cut


class _Frame(NamedTuple):
    """Content of a frame's header of four bytes."""

    first: bool  # MPEG 1
    layer: int
    rate: int  # Hz
    channels: int
    kilobits: int
    length: int  # bytes

    @property
    def samples(self) -> int:
        if self.layer == 1:
            return 384
        return 1152 if self.layer == 2 or self.first else 576

    @property
    def side(self) -> int:
        """Bytes of side information, behind which Xing's header begins."""
        return (32, 17)[self.channels == 1] if self.first else (17, 9)[self.channels == 1]

    def goes_on(self, other: _Frame) -> bool:
        """True if both may be in one stream."""
        return self[:4] == other[:4]


def _frame(header: bytes) -> _Frame | None:
    if len(header) < 4 or not _SYNC.match(header):
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate_index = header[2] >> 2 & 3
    if version == 1 or layer == 4 or rate_index == 3:
        return None
    first = version == 3
    rate = _RATES[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    kilobits = _KILOBITS[first, layer][header[2] >> 4]
    padding = header[2] >> 1 & 1
    if layer == 1:
        length = (12_000 * kilobits // rate + padding) * 4
    else:
        length = (144_000 if layer == 2 or first else 72_000) * kilobits // rate + padding
    return _Frame(first, layer, rate, 1 if header[3] >> 6 == 3 else 2, kilobits, length)


@dataclass
class _Stream:
    """Frames written by one encoder."""

    start: int
    frames: int = 0
    rates: int = 0  # a bit for every bit rate
    count_at: int | None = None  # where the number of frames stands
    promised: int = 0
    trimmed: int = 0  # samples that a decoder takes off at both ends
    place: int = 0  # of the first frame with sound
    header: bytes = b""  # of that


def mpeg_pieces(content: Content) -> Iterator[Piece]:
    """The streams of a file, one or more."""
    streams = list(_streams(content))
    if not streams:
        yield Piece(0, content.length)
        return
    streams[0].start = 0
    ends = [*(stream.start for stream in streams[1:]), content.length]
    for stream, end in zip(streams, ends, strict=True):
        frame = _frame(stream.header)
        if frame is None:
            continue
        count = stream.frames
        prefix, patches = b"", {}
        if stream.count_at is not None and stream.promised < count:
            patches = {stream.count_at: count.to_bytes(4, "big")}
        elif stream.count_at is None and stream.rates & (stream.rates - 1):
            prefix = _header(stream.header, count)
        start = stream.place if prefix else stream.start
        least = max(0, (count - _SLACK) * frame.samples - stream.trimmed)
        yield Piece(start, end, prefix, patches, least, is_guessed=stream.count_at is None)


def _streams(content: Content) -> Iterator[_Stream]:
    place = after_tags(content, 0)
    found = _stream_frame(content, place)
    stream: _Stream | None = None
    last: _Frame | None = None
    while found is not None:
        place, frame = found
        info = _info(content, place, frame)
        if stream is None or last is None or info is not None or not frame.goes_on(last):
            if stream is not None and stream.frames:
                yield stream
            stream = _Stream(place) if info is None else info
        if info is None:
            if not stream.frames:
                stream.place, stream.header = place, content.at(place, 4)
            stream.frames += 1
            stream.rates |= 1 << frame.kilobits
        last = frame
        place += frame.length
        behind = after_tags(content, place)
        following = _frame(content.at(behind, 4))
        if following is not None and (following.goes_on(frame) or _is_confirmed(content, behind, following)):
            found = behind, following
        else:
            found = _stream_frame(content, behind)
    if stream is not None and stream.frames:
        yield stream


def _stream_frame(content: Content, place: int) -> tuple[int, _Frame] | None:
    """The next frame that another one follows: two bytes of any data may look like one."""
    while (start := content.find(_SYNC, place)) is not None:
        frame = _frame(content.at(start, 4))
        if frame is not None and _is_confirmed(content, start, frame):
            return start, frame
        place = start + 1
    return None


def _is_confirmed(content: Content, place: int, frame: _Frame) -> bool:
    following = _frame(content.at(place + frame.length, 4))
    return following is not None and following.goes_on(frame)


def after_tags(content: Content, place: int) -> int:
    """End of the tags that begin here: ID3 version 2 and 1, and APE."""
    while True:
        header = content.at(place, 32)
        if header[:3] == b"ID3" and len(header) >= 10:
            size = 0
            for byte in header[6:10]:
                size = size << 7 | byte & 0x7F
            place += 10 + size + (10 if header[5] & 0x10 else 0)
        elif header[:3] == b"TAG":
            place += 128
        elif header[:8] == b"APETAGEX":
            place += 32 + int.from_bytes(header[12:16], "little")
        else:
            return place


def _info(content: Content, place: int, frame: _Frame) -> _Stream | None:
    """A stream that begins with a header of Xing's or VBRI's; None if this frame is sound."""
    if frame.layer != 3:
        return None
    body = content.at(place, min(frame.length, 200))
    xing = 4 + frame.side
    if body[xing : xing + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(body[xing + 4 : xing + 8], "big")
        if not flags & 1:
            return _Stream(place)
        promised = int.from_bytes(body[xing + 8 : xing + 12], "big")
        stream = _Stream(place, count_at=place + xing + 8, promised=promised)
        lame = xing + 8 + 4 * (flags & 1) + (flags & 2) * 2 + (100 if flags & 4 else 0) + (flags & 8) // 2
        delays = body[lame + 21 : lame + 24]
        if body[lame : lame + 4] in (b"LAME", b"Lavf", b"Lavc") and len(delays) == 3:
            both = int.from_bytes(delays, "big")
            stream.trimmed = (both >> 12) + (both & 0xFFF) + _DECODER_DELAY
        return stream
    if body[36:40] == b"VBRI" and len(body) >= 54:
        return _Stream(place, count_at=place + 50, promised=int.from_bytes(body[50:54], "big"))
    return None


def _header(header: bytes, frames: int) -> bytes:
    """A frame without sound that says how many frames follow, for a stream of this header."""
    # without a check sum, and at a bit rate that makes room
    first, second = header[1] | 1, header[2] & 0x0C | 0x90
    frame = _frame(bytes((0xFF, first, second, header[3])))
    if frame is None or frame.layer != 3:
        return b""
    body = b"Xing" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    start = bytes((0xFF, first, second, header[3])) + bytes(frame.side)
    return (start + body).ljust(frame.length, b"\0")
