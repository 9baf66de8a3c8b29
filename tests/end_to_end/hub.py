"""A stand-in of the Hugging Face hub on the loopback, which serves the files of folders as repositories."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.local_server import listening


@contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders by the names of repositories: the address, and the list of requests so far."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.answer(with_content=False)

        def do_GET(self) -> None:
            self.answer(with_content=True)

        def answer(self, with_content: bool) -> None:
            seen.append(f"{self.command} {self.path}")
            name, _, rest = self.path.lstrip("/").partition("/resolve/")
            folder, file = repositories.get(name), rest.partition("/")[2]
            if folder is None or not (folder / file).is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound" if folder is None else "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = (folder / file).read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_content:
                self.wfile.write(content)

    with listening(Handler) as address:
        yield address, seen
