"""Answers that are sent while they grow."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from flowsep_serve.errors import ServeError
from flowsep_serve.jobs import Job, Stem

LOG = logging.getLogger("flowsep_serve")
PAUSE = 0.05  # seconds between two looks at a job
SILENCE = 15.0  # seconds after which a stream of events says that it is alive
CHUNK = 1 << 18

MEDIA_TYPES = {
    "aif": "audio/aiff",
    "aiff": "audio/aiff",
    "au": "audio/basic",
    "caf": "audio/x-caf",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "oga": "audio/ogg",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "rf64": "audio/wav",
    "w64": "audio/x-w64",
    "wav": "audio/wav",
}


class Streamed(StreamingResponse):
    """A stream with an end that is called whatever happens, also if the client has gone.

    One that fails or takes too long breaks off: the client sees a connection that closes too early.
    """

    def __init__(
        self, content: Any, on_end: Callable[[], None], is_late: Callable[[], bool], **options: Any
    ) -> None:
        super().__init__(content, **options)
        self._on_end, self._is_late = on_end, is_late

    async def stream_response(self, send: Send) -> None:
        async def timely(message: Message) -> None:
            if self._is_late():
                raise ServeError(503, "The client took too long to read its answer, or its job is gone.")
            await send(message)

        try:
            await super().stream_response(timely)
        except (ServeError, FileNotFoundError) as error:  # the next file of a job that is gone
            LOG.warning("An answer broke off: %s", error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def growing(job: Job, request: Request) -> AsyncIterator[bytes]:
    """The bytes of the stem that streams, as the worker writes them.

    Raises:
        ServeError: If the job fails on the way; the client then sees a connection that breaks.
    """
    async with await anyio.open_file(job.stems[0].path, "rb") as file:
        sent = 0
        while True:
            is_over = job.is_over  # before the look: what comes after it is seen in the next round
            while sent < job.written:
                content = await file.read(min(CHUNK, job.written - sent))
                sent += len(content)
                yield content
            # Some versions of the web server do not say when they send to nobody.
            if is_over or await request.is_disconnected():
                break
            await anyio.sleep(PAUSE)
    if job.state != "done":
        raise job.error or ServeError(503, "The job was cancelled.")


async def events(job: Job, described: Callable[[], dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events: `progress` whenever the job has changed, and `end`."""
    last, silent = "", 0.0
    while True:
        is_over = job.is_over
        text = json.dumps(described())
        if text != last or is_over:
            yield f"event: {'end' if is_over else 'progress'}\ndata: {text}\n\n"
            last, silent = text, 0.0
        elif silent >= SILENCE:
            yield ": still here\n\n"
            silent = 0.0
        if is_over:
            return
        await anyio.sleep(2 * PAUSE)
        silent += 2 * PAUSE


class _Pipe(io.RawIOBase):
    """Collects what is written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._parts.append(bytes(content))
        return len(content)

    def take(self) -> bytes:
        content = b"".join(self._parts)
        self._parts.clear()
        return content


def zipped(stems: Sequence[Stem]) -> Iterator[bytes]:
    """A zip of stems, piece by piece; the same stems give the same bytes."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for stem in stems:
            with (
                archive.open(zipfile.ZipInfo(stem.name), "w", force_zip64=True) as entry,
                stem.path.open("rb") as file,
            ):
                while content := file.read(CHUNK):
                    entry.write(content)
                    yield pipe.take()
    yield pipe.take()
