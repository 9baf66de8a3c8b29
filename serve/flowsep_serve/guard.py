"""The door: keys, origins, sizes, and the headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowsep_runtime.errors import OptionError, shown
from flowsep_serve.addresses import LOOPBACK
from flowsep_serve.errors import ServeError
from flowsep_serve.limits import MIB, Limits
from flowsep_serve.metrics import Metrics

#: Paths that are answered without a key: they tell nothing of anybody's recordings.
OPEN = ("/healthz", "/readyz", "/openapi.json", "/", "/page/")

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "media-src 'self' blob:; worker-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Rules:
    """Rules of who may ask.

    Attributes:
        keys: Digests of the keys; without any, everybody may.
        hosts: Names by which the server may be called; None is any. On loopback without a key they keep out
            pages whose address was bent to this machine.
    """

    keys: tuple[bytes, ...] = ()
    hosts: tuple[str, ...] | None = LOOPBACK


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Digests of the keys in a file, one a line.

    Raises:
        OptionError: If it cannot be read, or a key is missing or short.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise OptionError(f"{shown(path)} cannot be read: {reason}.") from None
    keys = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not keys or any(len(key) < 16 for key in keys):
        raise OptionError(f"{shown(path)} holds no key, or one below 16 characters: write one a line.")
    return tuple(_digest(key.encode()) for key in keys)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Guard:
    """Refuses what is not allowed before anything reads it, and counts the answers."""

    def __init__(self, app: ASGIApp, rules: Rules, limits: Limits, metrics: Metrics) -> None:
        self._app, self._rules, self._limits, self._metrics = app, rules, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    sent.setdefault(name, value)
                route = getattr(scope.get("route"), "path", "other")
                method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"
                self._metrics.requests.labels(method, route, str(message["status"])).inc()
            await send(message)

        count = 0

        async def take() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._limits.max_upload * MIB:
                raise self._too_large()
            return message

        try:
            self._check(scope["path"], headers)
        except ServeError as error:
            await answered(error)(scope, receive, answer)
            return
        await self._app(scope, take, answer)

    def _check(self, path: str, headers: Headers) -> None:
        """
        Raises:
            ServeError: If the request is not allowed.
        """
        host = headers.get("host", "")
        if self._rules.hosts is not None and _name(host) not in self._rules.hosts:
            raise ServeError(421, "The server has another name: use the address that it said at its start.")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ServeError(403, "Pages of other sites may not use this server.")
        is_open = path == "/" or any(path.startswith(each) for each in OPEN if each != "/")
        if self._rules.keys and not is_open and not self._knows(headers.get("authorization", "")):
            raise ServeError(401, "Give a key of this server as 'Authorization: Bearer KEY'.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._limits.max_upload * MIB:
            raise self._too_large()

    def _knows(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip().encode())
        # All of them, in constant time: how long it takes tells nothing.
        known = [hmac.compare_digest(digest, each) for each in self._rules.keys]
        return scheme.lower() == "bearer" and any(known)

    def _too_large(self) -> ServeError:
        return ServeError(413, f"The upload is larger than {self._limits.max_upload} MiB.")


def _name(host: str) -> str:
    """The name in a Host header."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def answered(error: ServeError) -> JSONResponse:
    """An error as the client sees it."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": str(error)}, error.status, headers)
