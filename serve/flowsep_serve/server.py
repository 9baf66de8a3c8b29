"""The web server's life: it ends when what runs has come to its end."""

from __future__ import annotations

from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from flowsep_serve import decoding

if TYPE_CHECKING:
    from flowsep_serve.api import Service
    from flowsep_serve.guard import Guard


class Server(uvicorn.Server):
    """Uvicorn, whose first signal refuses new work, and whose second one ends everything."""

    def __init__(self, app: Guard, service: Service) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=service.limits.grace,
            timeout_keep_alive=15,
        )
        super().__init__(config)
        self._service = service
        service.on_drained = self._end
        decoding.prepare()

    def _end(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.asked_to_end:
            self.should_exit = self.force_exit = True
        self._service.asked_to_end = True
