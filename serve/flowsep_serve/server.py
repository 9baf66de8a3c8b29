"""The web server's life: it ends when what runs has come to its end."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowsep_serve import decoding
from flowsep_serve.service import AT_ONCE

if TYPE_CHECKING:
    from flowsep_serve.guard import Guard
    from flowsep_serve.service import Service


SEND_BUFFER = 1 << 17  # bytes


class Connection(H11Protocol):
    """A connection that is cut when its client neither asks nor reads for a while.

    Such a client would keep a descriptor, and the disk of its answer, for ever.
    """

    def __init__(self, patience: float, **parts: Any) -> None:
        super().__init__(**parts)
        self._patience = patience
        self._asking: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # what waits here is what the client has not read
        # A third of the kernel's buffer must be read before it takes more: of megabytes, a slow client
        # would not read that in time.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._asking = self._timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._asking = _stop(self._asking)
        elif self._asking is None:
            self._asking = self._timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self._timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading = _stop(self._reading)

    def connection_lost(self, exc: Exception | None) -> None:
        self._asking, self._reading = _stop(self._asking), _stop(self._reading)
        super().connection_lost(exc)

    def _timer(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self._patience, self.transport.abort)


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None


class Server(uvicorn.Server):
    """Uvicorn, whose first signal refuses new work, and whose second one ends everything."""

    def __init__(self, app: Guard, service: Service) -> None:
        connection: Any = partial(Connection, service.limits.stall_time)
        config = uvicorn.Config(
            app,
            http=connection,
            ws="none",
            loop="asyncio",  # the same whatever is installed: Ray Serve brings another one
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=service.limits.grace,
            timeout_keep_alive=15,
        )
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        service.on_drained = self._end
        decoding.prepare()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.server_state.tasks and not self.force_exit:
            self._service.tell(
                f"Answers that are on their way have {self._service.limits.grace} s to arrive. {AT_ONCE}"
            )
        await super().shutdown(sockets)

    def _end(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.asked_to_end:
            self.should_exit = self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cut)
        self._service.asked_to_end = True

    def _cut(self) -> None:
        """Ends all connections, for which Uvicorn would wait."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
