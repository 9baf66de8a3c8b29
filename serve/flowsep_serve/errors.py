"""Errors that a client is told of: one sentence and a status."""

from __future__ import annotations

import errno

from flowsep_runtime.errors import FlowSepError


class ServeError(FlowSepError):
    """An answer other than the one that was asked for.

    Attributes:
        status: The HTTP status.
        retry_after: Seconds after which it is worth another try; None if it is not.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after


class CancelledError(Exception):
    """Nobody wants the result any more."""


def is_full_disk(error: BaseException) -> bool:
    """Tells whether the disk, or the user's share of it, was full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))


def full_disk() -> ServeError:
    """The answer when the disk is full."""
    return ServeError(507, "The server's disk is full: try again later.", 60)
