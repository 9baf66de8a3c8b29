"""The published checkpoint comes from Zenodo: here a server on loopback that answers like it."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from flowsep_export.download import CHECKPOINT, CONCEPT, RECORD, published_checkpoint
from flowsep_export.errors import DownloadError
from tests.local_server import listening

CONTENT = bytes(range(256)) * 20_000  # more than one block


@dataclass
class Zenodo:
    """Double of the server, with the Range headers of its requests."""

    url: str = ""
    content: bytes = CONTENT
    md5: str = hashlib.md5(CONTENT).hexdigest()
    listed: str = CHECKPOINT
    record_status: int = 200
    newest: str | None = None  # the record that the concept redirects to
    redirect_status: int = 302
    moved: bool = False  # whether contents lie elsewhere
    knows_ranges: bool = True
    breaks_off_after: int | None = None
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def zenodo() -> Iterator[Zenodo]:
    state = Zenodo()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = f"/records/{RECORD}/files/{CHECKPOINT}/content"
            if self.path == f"/api/records/{RECORD}":
                self.answer(state.record_status, record())
            elif self.path == f"/api/records/{CONCEPT}" and state.newest is not None:
                self.redirect(f"/api/records/{state.newest}")
            elif self.path == f"/api/records/{state.newest}":
                self.answer(200, record(CHECKPOINT))
            elif self.path == f"/api{content}" and state.moved:
                self.redirect(f"/storage{content}")
            elif self.path in (f"/api{content}", f"/storage{content}"):
                asked = self.headers.get("Range")
                state.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.knows_ranges else 0
                self.answer(206 if start else 200, state.content[start:], state.breaks_off_after)
            else:
                self.answer(404, b"")

        def redirect(self, place: str) -> None:
            self.send_response(state.redirect_status)
            self.send_header("Location", place)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, status: int, body: bytes, most: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:most])

        def log_message(self, format: str, *args: object) -> None:
            pass

    def record(listed: str | None = None) -> bytes:
        link = f"{state.url}/records/{RECORD}/files/{CHECKPOINT}/content"
        entry = {
            "key": listed or state.listed,
            "size": len(state.content),
            "checksum": f"md5:{state.md5}",
            "links": {"self": link},
        }
        return json.dumps({"files": [{"key": "vae.ckpt"}, entry]}).encode()

    with listening(Handler) as address:
        state.url = f"{address}/api"
        yield state


def fetch(zenodo: Zenodo, folder: Path) -> Path:
    return published_checkpoint(base_url=zenodo.url, folder=folder)


def test_the_file_arrives_whole_and_is_not_fetched_twice(zenodo: Zenodo, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = published_checkpoint(lambda done, size: seen.append((done, size)), zenodo.url, tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == [CHECKPOINT]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    zenodo.record_status = 500
    assert fetch(zenodo, tmp_path / "cache") == path
    assert zenodo.ranges == [None]


def test_a_broken_download_goes_on_where_it_stopped(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.breaks_off_after = 3_000_000
    with pytest.raises(DownloadError, match=r"3000000 of 5120000 bytes.*try again"):
        fetch(zenodo, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [CHECKPOINT + ".part"]
    zenodo.breaks_off_after = None
    assert fetch(zenodo, tmp_path).read_bytes() == CONTENT
    assert zenodo.ranges == [None, "bytes=3000000-"]


def test_a_server_without_ranges_sends_the_whole_again(zenodo: Zenodo, tmp_path: Path) -> None:
    (tmp_path / (CHECKPOINT + ".part")).write_bytes(CONTENT[:1000])
    zenodo.knows_ranges = False
    assert fetch(zenodo, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_already_whole_is_not_fetched(zenodo: Zenodo, tmp_path: Path) -> None:
    (tmp_path / (CHECKPOINT + ".part")).write_bytes(CONTENT)
    assert fetch(zenodo, tmp_path).read_bytes() == CONTENT
    assert zenodo.ranges == []


def test_a_part_longer_than_the_file_is_thrown_away(zenodo: Zenodo, tmp_path: Path) -> None:
    (tmp_path / (CHECKPOINT + ".part")).write_bytes(CONTENT + b"more")
    assert fetch(zenodo, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_keeps_nothing(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.md5 = "0" * 32
    with pytest.raises(DownloadError, match="checksum differs"):
        fetch(zenodo, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_says_where_to_put_the_file_by_hand(zenodo: Zenodo, tmp_path: Path, status: int) -> None:
    zenodo.record_status = status
    with pytest.raises(DownloadError) as caught:
        fetch(zenodo, tmp_path)
    assert str(status) in str(caught.value)
    assert str(tmp_path / CHECKPOINT) in str(caught.value)


def test_a_record_without_the_file_is_refused(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.listed, zenodo.newest = "v3.ckpt", RECORD
    with pytest.raises(DownloadError, match=f"does not list {CHECKPOINT}"):
        fetch(zenodo, tmp_path)


@pytest.mark.parametrize("status", [301, 302, 307])
@pytest.mark.parametrize("lost", [{"record_status": 404}, {"record_status": 410}, {"listed": "v3.ckpt"}])
def test_a_record_that_is_gone_is_looked_for_in_the_newest_version(
    zenodo: Zenodo, tmp_path: Path, status: int, lost: dict[str, Any]
) -> None:
    for name, value in (lost | {"newest": "99999999", "redirect_status": status}).items():
        setattr(zenodo, name, value)
    assert fetch(zenodo, tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_not_taken_for_a_record_that_is_gone(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.record_status, zenodo.newest = 503, "99999999"
    with pytest.raises(DownloadError, match="503"):
        fetch(zenodo, tmp_path)


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_file_that_lies_elsewhere_is_followed_and_resumed_there(
    zenodo: Zenodo, tmp_path: Path, status: int
) -> None:
    zenodo.moved, zenodo.redirect_status = True, status
    (tmp_path / (CHECKPOINT + ".part")).write_bytes(CONTENT[:1000])
    assert fetch(zenodo, tmp_path).read_bytes() == CONTENT
    assert zenodo.ranges == ["bytes=1000-"]


def test_without_a_network_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(DownloadError) as caught:
            published_checkpoint(base_url=f"http://127.0.0.1:{port}/api", folder=tmp_path)
    said = str(caught.value)
    assert "refused" in said
    assert f"https://zenodo.org/records/{RECORD}" in said and str(tmp_path / CHECKPOINT) in said
    assert "\n" not in said and caught.value.exit_code == 1
