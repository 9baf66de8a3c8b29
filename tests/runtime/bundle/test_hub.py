"""Bundles by name: here the Hugging Face hub is a server on loopback that answers like it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from flowsep_runtime.bundle.hub import located
from tests.local_server import listening
from tests.runtime.command import in_process, refused

NAME, COMMIT = "somebody/toy", "0123456789abcdef0123456789abcdef01234567"

Command = Callable[..., tuple[int, str, str]]


@dataclass
class Hub:
    """Double of the hub with one model, and the requests that it got: method, file and range."""

    folder: Path
    status: int = 200
    breaks_off_after: int | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def fetched(self) -> list[str]:
        return sorted({file for method, file, _ in self.requests if method == "GET"})


@pytest.fixture
def hub(own_bundle: Path) -> Iterator[Hub]:
    state = Hub(own_bundle)
    (own_bundle / "README.md").write_text("not named by the manifest")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            prefix, _, name = self.path.rpartition("/")
            asked = self.headers.get("Range")
            state.requests.append((self.command, name, asked))
            path = state.folder / name
            status = state.status
            if prefix not in (f"/{NAME}/resolve/main", f"/{NAME}/resolve/{COMMIT}"):
                status = 404
                self.send_response(status)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.finish_with(b"")
                return
            if status != 200 or not path.is_file():
                self.send_response(404 if status == 200 else status)
                if status == 200:
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("X-Repo-Commit", COMMIT)
                elif status == 403:
                    self.send_header("X-Error-Code", "GatedRepo")
                self.finish_with(b"")
                return
            content = path.read_bytes()
            start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            self.finish_with(content[start:])

        def finish_with(self, body: bytes) -> None:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                most = state.breaks_off_after
                self.wfile.write(body[:most])
                if most is not None and len(body) > most:
                    self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listening(Handler) as address:
        state.url = address
        yield state


@pytest.fixture
def call(hub: Hub, tmp_path: Path) -> Command:
    """The command in a process of its own, whose hub is the double."""
    pytest.importorskip("huggingface_hub")
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",  # the tests' own is 1
        "HF_HOME": str(tmp_path / "hf"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }

    def run(*arguments: object, **more: str) -> tuple[int, str, str]:
        return in_process(*arguments, env=environment | more, cwd=tmp_path)

    return run


pytestmark = pytest.mark.slow


def test_a_bundle_is_fetched_once_with_the_files_of_its_manifest(
    hub: Hub, call: Command, mixture: Path
) -> None:
    options = ["rain", "--bundle", NAME, "--steps", 1]
    code, out, err = call(mixture, *options)
    assert (code, err) == (0, "") and out.startswith(f"{mixture.with_name('mix.rain.wav')}")
    named = sorted(path.name for path in hub.folder.iterdir() if path.name != "README.md")
    assert hub.fetched() == named
    hub.requests.clear()
    assert call(mixture, *options, "--force")[0] == 0
    assert hub.requests == []


def test_a_list_of_bundles_needs_no_connection(hub: Hub, call: Command, mixture: Path) -> None:
    code, out, err = call("--list-bundles")
    assert (code, err) == (0, "") and hub.requests == []
    assert (
        out.startswith("the model that ships with the package: nano, masked, float") and out.count("\n") == 1
    )
    assert call("none.wav", "rain", "--bundle", NAME)[0] == 2  # the bundle is opened last
    assert hub.requests == []
    assert call(mixture, "rain", "--bundle", NAME, "--steps", 1)[0] == 0
    hub.requests.clear()
    code, out, _ = call("--list-bundles", "--json")
    _, toy = json.loads(out)
    assert (code, toy["name"], toy["precision"], toy["why_not"]) == (0, NAME, "float32", None)
    shutil.rmtree(Path(toy["folder"]).parents[1] / "blobs")
    assert call("--list-bundles")[1].count("\n") == 1
    assert hub.requests == []


def test_a_download_that_breaks_off_keeps_the_files_that_have_arrived(
    hub: Hub, call: Command, mixture: Path
) -> None:
    sizes = {path.name: path.stat().st_size for path in hub.folder.iterdir()}
    hub.breaks_off_after = max(sizes.values()) - 1
    refused(call(mixture, "rain", "--bundle", NAME), NAME, "cannot be fetched", "keeps the files")
    arrived = {name for name in hub.fetched() if sizes[name] <= hub.breaks_off_after}
    hub.breaks_off_after = None
    hub.requests.clear()
    assert call(mixture, "rain", "--bundle", NAME, "--steps", 1)[0] == 0
    assert len(arrived) > 2 and arrived & set(hub.fetched()) <= {"manifest.json"}


def test_the_manifests_checksums_decide_and_what_is_wrong_is_fetched_again(
    hub: Hub, call: Command, mixture: Path
) -> None:
    right = (hub.folder / "vocode.onnx").read_bytes()
    (hub.folder / "vocode.onnx").write_bytes(right[:-1] + b"x")
    for _ in range(2):
        refused(call(mixture, "rain", "--bundle", NAME), "vocode.onnx of somebody/toy arrived with another")
    (hub.folder / "vocode.onnx").write_bytes(right)
    assert call(mixture, "rain", "--bundle", NAME, "--steps", 1)[0] == 0


def test_what_the_hub_does_not_have_or_does_not_give_is_one_sentence(
    hub: Hub, call: Command, mixture: Path
) -> None:
    refused(call(mixture, "rain", "--bundle", "somebody/else"), "There is no bundle somebody/else", "hub")
    hub.status = 403
    refused(call(mixture, "rain", "--bundle", NAME), "asks for an agreement", "hf auth login")
    hub.status = 200
    (hub.folder / "velocity.onnx").unlink()
    refused(call(mixture, "rain", "--bundle", NAME), "is not a whole bundle")
    (hub.folder / "manifest.json").unlink()
    refused(call(mixture, "rain", "--bundle", NAME, HF_HOME=str(hub.folder)), "is not a whole bundle")


def test_without_a_network_or_with_the_library_offline_a_name_is_refused(
    hub: Hub, call: Command, mixture: Path
) -> None:
    nobody = "http://127.0.0.1:9"
    refused(call(mixture, "rain", "--bundle", NAME, HF_ENDPOINT=nobody), NAME, "cannot be fetched")
    refused(call(mixture, "rain", "--bundle", NAME, HF_HUB_OFFLINE="1"), NAME, "cannot be fetched")
    assert hub.requests == []


def test_a_path_is_no_name_also_when_nothing_is_there(
    hub: Hub, call: Command, mixture: Path, tmp_path: Path
) -> None:
    (tmp_path / "bundles").mkdir()
    for path in ("bundles/toy", "./somebody/toy", tmp_path / "somebody/toy"):
        refused(call(mixture, "rain", "--bundle", path), "There is no bundle at")
    assert hub.requests == []


def test_without_the_library_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Exception, match="run: pip install huggingface_hub"):
        located(NAME)
    assert located(Path(NAME)) == Path(NAME)
