"""Limits of the server, declared once: the command line makes a switch of each."""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 1 << 20


def _limit(default: int, unit: str, text: str) -> int:
    value: int = field(default=default, metadata={"unit": unit, "help": text})
    return value


@dataclass(frozen=True)
class Limits:
    """Bounds of what strangers may ask for. The unit and the meaning of each stand in its metadata."""

    queue: int = _limit(16, "REQUESTS", "Requests that may wait; more are told to come back.")
    max_wait: int = _limit(300, "SECONDS", "Time that a request may wait for its turn.")
    max_upload: int = _limit(256, "MIB", "Size of an upload.")
    upload_time: int = _limit(120, "SECONDS", "Time that an upload may take.")
    max_length: int = _limit(1800, "SECONDS", "Length of a recording.")
    max_channels: int = _limit(8, "CHANNELS", "Channels of a recording.")
    max_queries: int = _limit(8, "QUERIES", "Queries of a request.")
    max_steps: int = _limit(200, "STEPS", "Solver steps of a request.")
    max_disk: int = _limit(8192, "MIB", "Disk for uploads and results, all together.")
    stall_time: int = _limit(
        60, "SECONDS", "Time that a client may take to send the head of a request, or to read on."
    )
    keep: int = _limit(3600, "SECONDS", "Time that the results of a job are kept, or may be sent.")
    decoder_memory: int = _limit(1024, "MIB", "Memory of the process that decodes an upload.")
    decoder_time: int = _limit(60, "SECONDS", "Time that the decoding of an upload may take.")
    grace: int = _limit(30, "SECONDS", "Time to fetch the last results when the server ends.")
