"""Addresses to listen on, and the names that they may be called by."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Tells whether an address is this machine's alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def hosts_for(host: str, keys: Sequence[bytes]) -> tuple[str, ...] | None:
    """The names that a server bound to an address may be called by; None is any."""
    return None if keys or not is_loopback(host) else (*LOOPBACK, host.lower())
