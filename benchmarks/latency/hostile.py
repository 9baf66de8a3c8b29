"""A server under hostile requests for a while: whether it fails, leaks, or leaves anything behind.

    python -m benchmarks.latency.hostile --seconds 3600 --seed 1

A server of its own is started on loopback, and several clients send it requests that are wrong in all ways
that come to mind, each drawn from the seed: noise, forms that are cut or lie about their length, huge
headers, paths that lead elsewhere, files that decode to a thousand times their size, options out of range,
clients that go away or do not read. Now and then a good request must be answered. At the end no answer was a
fault of the server's, its folder is empty, it has the descriptors and the children of the start, its memory
has not grown, and it still separates.
"""

from __future__ import annotations

import io
import json
import os
import random
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httpx
import numpy as np
import soundfile

from benchmarks.common.progress import say
from benchmarks.latency.serving import resident, serving
from flowsep_runtime import BackendError
from flowsep_runtime.app.console import SETTINGS, backend_option, bundle_option, run

PROGRAM = "benchmarks.latency.hostile"
RATE = 16000
PATIENCE = 120.0  # seconds that a client waits for an answer
REST = 60.0  # seconds within which the server must be as it was
#: Share of the time before the memory is first looked at: the model keeps that of its largest input.
WARM = 0.5
GROWTH = 64 << 20  # bytes that the memory may grow by: caches of the allocator, and the largest sound
LIMITS = {
    "max-upload": 4,
    "max-length": 30,
    "max-steps": 40,
    "max-disk": 256,
    "max-wait": 20,
    "upload-time": 5,
    "stall-time": 5,
    "keep": 5,
    "queue": 32,
    "decoder-memory": 256,
    "decoder-time": 5,
}
BAD_FIELDS = [
    ("steps", "-1"), ("steps", "9" * 5000), ("steps", "1e400"), ("seed", "-5"), ("guidance", "nan"),
    ("guidance", "1e308"), ("window", "0"), ("window", "inf"), ("kind", "null"), ("solver", "../../etc"),
    ("model", "../../../etc"), ("model", "\0"), ("format", "exe"), ("format", ""), ("clip_mode", "x" * 9000),
    ("negative", "\ud7ff\0"), ("colour", "red"), ("windows", "[]"),
    ("remove", "maybe"), ("window", "1e-9"),
]  # fmt: skip
BAD_PATHS = [
    "/", "//", "/../../etc/passwd", "/page/..%2f..%2fapi.py", "/page/%2e%2e/%2e%2e/etc/passwd", "/page/%00",
    "/v1/jobs/..%2f..%2f", "/v1/jobs/%2e%2e/stems/%2e%2e%2fpasswd", "/v1/jobs/.lock", "/page/main.js",
    "/v1/jobs/%ff%fe/events", "/v1/jobs/.lock/stems.zip", "/v1/jobs/" + "a" * 5000, "/openapi.json", "*",
    "/v1/jobs/x/stems/..%5c..%5c", "/metrics?" + "a=1&" * 2000, "/v1/models;x=y", "/readyz",
    "http://else.example/",
]  # fmt: skip


@dataclass
class Attack:
    """State that the clients share."""

    address: str
    sounds: dict[str, bytes]
    ends: float
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def connect(self) -> socket.socket:
        host, port = urlsplit(self.address).hostname, urlsplit(self.address).port
        assert host is not None and port is not None
        return socket.create_connection((host, port), timeout=PATIENCE)

    def took(self, kind: str, status: int, text: str = "") -> None:
        """Counts an answer, which is a fault if it is the server's own failure."""
        self.statuses[f"{kind} {status}"] += 1
        if status == 500 or status >= 600:
            self.faults.append(f"{kind}: {status} {text[:200]}")


def made_sounds() -> dict[str, bytes]:
    """Uploads: good ones, and ones that are small until they are decoded."""
    noise = np.random.default_rng(1).uniform(-0.4, 0.4, (RATE, 1)).astype(np.float32)
    zeros = np.zeros((RATE * 25, 8), np.float32)  # within the limit of length, and a hundred times the upload
    wide = np.random.default_rng(2).uniform(-0.4, 0.4, (RATE, 8)).astype(np.float32)
    wanted = [
        ("wide.wav", wide, RATE, "WAV", "PCM_16"),
        ("good.wav", noise, RATE, "WAV", "PCM_16"),
        ("good.ogg", noise, RATE, "OGG", "VORBIS"),
    ]
    wanted += [
        ("good.flac", noise, RATE, "FLAC", "PCM_16"),
        ("good.mp3", noise, RATE, "MP3", "MPEG_LAYER_III"),
    ]
    wanted += [("bomb.flac", zeros, 192_000, "FLAC", "PCM_16"), ("bomb.ogg", zeros, 48_000, "OGG", "VORBIS")]
    wanted += [("long.flac", np.zeros((60 * 48_000, 1), np.float32), 48_000, "FLAC", "PCM_16")]
    sounds = {}
    for name, samples, rate, container, subtype in wanted:
        file = io.BytesIO()
        with soundfile.SoundFile(file, "w", rate, samples.shape[1], subtype, format=container) as sound:
            for first in range(0, len(samples), RATE):  # Vorbis overflows the stack on one long piece
                sound.write(samples[first : first + RATE])
        sounds[name] = file.getvalue()
    return sounds


def request_bytes(path: str, files: dict[str, Any], data: dict[str, Any], address: str) -> bytes:
    """A form as it goes over the wire."""
    request = httpx.Request("POST", address + path, files=files, data=data)
    head = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items()), "", ""]
    return "\r\n".join(head).encode() + request.read()


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    """The status of an answer, 0 if there is none, and what could be read of it."""
    connection.settimeout(PATIENCE)
    content = b""
    with suppress(OSError):
        while len(content) < 1 << 16 and (piece := connection.recv(1 << 14)):
            content += piece
            if b"\r\n\r\n" in content:
                break
    return (int(content[9:12]) if content[:5] == b"HTTP/" and content[9:12].isdigit() else 0), content


def damaged(sounds: dict[str, bytes], draw: random.Random) -> bytes:
    """A sound with wrong bytes, or an end that is missing."""
    content = bytearray(sounds[draw.choice([name for name in sounds if name.startswith("good")])])
    for _ in range(draw.randint(0, 20)):
        content[draw.randrange(min(len(content), draw.choice([60, 400, len(content)])))] = draw.randrange(256)
    return bytes(content[: draw.randint(0, len(content))])


def separate(attack: Attack, draw: random.Random, kind: str, content: bytes, data: dict[str, Any]) -> None:
    """A form with a sound; the answer is read."""
    path = draw.choice(["/v1/separate", "/v1/jobs"])
    name = draw.choice(["a.wav", "../../../escape.wav", "/etc/passwd", "a\0b", "x" * 3000, "CON", ""])
    files = {"recording": (name or "x", content)}
    answer = httpx.post(attack.address + path, files=files, data={"query": "rain"} | data, timeout=PATIENCE)
    attack.took(kind, answer.status_code, answer.text if answer.status_code >= 400 else "")
    if path == "/v1/jobs" and answer.status_code == 202 and draw.random() < 0.7:
        place = attack.address + answer.headers["location"]
        ask = draw.choice(["", "/events", "/stems.zip", "/stems/rain.wav", "/stems/..%2f..%2fx"])
        attack.took("job", httpx.get(place + ask, timeout=PATIENCE).status_code)
        if draw.random() < 0.5:
            attack.took("delete", httpx.delete(place, timeout=PATIENCE).status_code)


def good(attack: Attack, draw: random.Random) -> None:
    separate(attack, draw, "good", attack.sounds["good.wav"], {"steps": "1"})


def bad_sound(attack: Attack, draw: random.Random) -> None:
    content = damaged(attack.sounds, draw) if draw.random() < 0.8 else draw.randbytes(draw.randint(0, 50_000))
    separate(attack, draw, "sound", content, {"steps": "1"})


def bomb(attack: Attack, draw: random.Random) -> None:
    content = attack.sounds[draw.choice(["bomb.flac", "bomb.ogg", "long.flac"])]
    separate(attack, draw, "bomb", content, {"steps": "1"})


def bad_options(attack: Attack, draw: random.Random) -> None:
    queries = draw.choice(
        [["rain"], [""], [" "], ["a"] * 9, ["a"] * 1000, ["\0" * 400], ["é" * 600], ["😀"] * 3]
    )
    fields = dict(draw.sample(BAD_FIELDS, draw.randint(0, 3)))
    separate(attack, draw, "options", attack.sounds["good.wav"], {"query": queries} | fields)


def bad_path(attack: Attack, draw: random.Random) -> None:
    method = draw.choice(
        ["GET", "GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "TRACE", "NONSENSE", "get"]
    )
    with attack.connect() as connection:
        line = f"{method} {draw.choice(BAD_PATHS)} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        connection.sendall(line.encode())
        attack.took("path", answer_of(connection)[0])


def noise(attack: Attack, draw: random.Random) -> None:
    with attack.connect() as connection:
        with suppress(OSError):
            connection.sendall(draw.randbytes(draw.choice([1, 100, 100_000])) + b"\r\n\r\n")
        attack.took("noise", answer_of(connection)[0])


def bad_head(attack: Attack, draw: random.Random) -> None:
    lines = [
        "X-Large: " + "a" * 200_000, "Content-Length: -1", "Content-Length: 99999999999999999999999",
        "Content-Length: 10\r\nContent-Length: 20", "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Host: evil.example", "Origin: http://evil.example", "Origin: \x01", "Expect: 100-continue",
        "Upgrade: websocket\r\nConnection: Upgrade", "Content-Type: multipart/form-data", "Range: bytes=9-1",
        "Content-Type: multipart/form-data; boundary=" + "b" * 5000, "Authorization: Bearer " + "k" * 9000,
        "\r\n".join(f"X-{number}: {number}" for number in range(3000)),
    ]  # fmt: skip
    host = "" if draw.random() < 0.2 else "Host: 127.0.0.1\r\n"
    path = draw.choice(["/v1/separate", "/v1/jobs", "/"])
    head = f"POST {path} HTTP/1.1\r\n{host}Connection: close\r\n{draw.choice(lines)}\r\n\r\n"
    with attack.connect() as connection:
        with suppress(OSError):
            connection.sendall(head.encode("latin-1"))
            connection.shutdown(socket.SHUT_WR)
        attack.took("head", answer_of(connection)[0])


def cut_form(attack: Attack, draw: random.Random) -> None:
    """A form that ends early, with and without the client's going away."""
    data = {"query": "rain", "steps": draw.choice(["1", "20"])}
    path = draw.choice(["/v1/separate", "/v1/jobs"])
    content = request_bytes(path, {"recording": attack.sounds["good.wav"]}, data, attack.address)
    with attack.connect() as connection:
        connection.sendall(content[: draw.randint(1, len(content))])
        if draw.random() < 0.3:
            attack.took("cut", answer_of(connection)[0])


def gone(attack: Attack, draw: random.Random) -> None:
    """A client that goes away after its request, before in the middle of its answer, or does not read it."""
    data = {"query": "rain", "steps": draw.choice(["1", "20"]), "format": draw.choice(["wav", "flac"])}
    path = draw.choice(["/v1/separate", "/v1/jobs"])
    content = request_bytes(path, {"recording": attack.sounds["good.wav"]}, data, attack.address)
    with attack.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(content)
        time.sleep(draw.choice([0, 0.01, 0.1, 1]))
        if draw.random() < 0.3:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        attack.statuses["gone"] += 1


def slow(attack: Attack, draw: random.Random) -> None:
    """A byte now and then, until the server has enough of it."""
    content = request_bytes("/v1/jobs", {"recording": b"RIFF"}, {"query": "a"}, attack.address)
    until = time.monotonic() + draw.choice([1, 8])
    with attack.connect() as connection, suppress(OSError):
        start = draw.randint(1, len(content) - 30)
        connection.sendall(content[:start])
        for place in range(start, start + 29):
            if time.monotonic() > until:
                break
            time.sleep(0.3)
            connection.sendall(content[place : place + 1])
    attack.statuses["slow"] += 1


KINDS: list[tuple[Callable[[Attack, random.Random], None], int]] = [
    (good, 1), (bad_sound, 6), (bomb, 1), (bad_options, 5), (bad_path, 5), (noise, 3), (bad_head, 5),
    (cut_form, 5), (gone, 3), (slow, 1),
]  # fmt: skip


def client(attack: Attack, seed: int) -> None:
    """Requests of one client, until the time is over."""
    draw = random.Random(seed)
    kinds, weights = zip(*KINDS, strict=True)
    while time.monotonic() < attack.ends:
        (kind,) = draw.choices(kinds, weights)
        try:
            kind(attack, draw)
        except (OSError, httpx.TransportError) as error:  # a refusal may come before all was sent
            attack.statuses[f"{kind.__name__} {type(error).__name__}"] += 1
        except Exception as error:
            attack.faults.append(f"{kind.__name__}: {error!r}")
            return
        time.sleep(0.005)


def descriptors(process: int) -> int:
    """Files and sockets that a process has open."""
    return len(os.listdir(f"/proc/{process}/fd"))


def children(process: int) -> list[int]:
    """Processes that a process has started and that are still there."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


def still(attack: Attack, folder: Path, process: subprocess.Popen[str], before: dict[str, int]) -> list[str]:
    """Waits until the server has come to rest, and says what is not as it was."""
    by = time.monotonic() + REST
    while True:
        left = [path.name for path in folder.glob("flowsep-serve-*/*") if path.name != ".lock"]
        now = state_of(process)
        wrong = [f"{name}: {before[name]}, later {now[name]}" for name in before if now[name] > before[name]]
        wrong += [f"left behind: {left}"] if left else []
        if not wrong or time.monotonic() > by:
            return wrong
        time.sleep(1)


def state_of(process: subprocess.Popen[str]) -> dict[str, int]:
    """Descriptors and children, of the server and of the process that its decoders are forked from."""
    started = children(process.pid)
    return {
        "descriptors": descriptors(process.pid),
        "children": len(started),
        "decoders": sum(len(children(each)) for each in started),
    }


@click.command(name=PROGRAM, context_settings=SETTINGS)
@click.option("--seconds", type=click.IntRange(1), default=120, help="Time of the attack.")
@click.option("--clients", type=click.IntRange(1), default=6, help="Clients at a time.")
@click.option("--seed", type=int, default=1, help="Seed of everything that is drawn.")
@bundle_option
@backend_option
def command(seconds: int, clients: int, seed: int, bundle: str | None, backend: str) -> None:
    """Attack a flowsep-serve of its own on loopback, and see what is left of it."""
    options = ["--backend", backend, *([] if bundle is None else ["--bundle", str(bundle)])]
    options += [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    sounds = made_sounds()
    with tempfile.TemporaryDirectory() as folder, serving(options, {"TMPDIR": folder}) as (address, process):
        attack = Attack(address, sounds, time.monotonic() + seconds)
        # What the first requests and the largest ones make is no leak.
        for name, data in (("good.wav", {}), ("wide.wav", {}), ("wide.wav", {"window": "1e-9"})):
            files = {"recording": sounds[name]}
            form = {"query": ["a", "b", "c"]} | data
            httpx.post(f"{address}/v1/separate", files=files, data=form, timeout=PATIENCE).raise_for_status()
        before = state_of(process)
        threads = [threading.Thread(target=client, args=(attack, 1000 * seed + n)) for n in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(seconds * WARM)
        memory = resident(process.pid)
        for thread in threads:
            thread.join()
        say("Waiting until the server is at rest")
        wrong = [*attack.faults, *still(attack, Path(folder), process, before)]
        later = resident(process.pid)
        if later - memory > GROWTH:
            wrong.append(f"memory: {memory >> 20} MiB, later {later >> 20} MiB")
        files = {"recording": sounds["good.wav"]}
        answer = httpx.post(f"{address}/v1/separate", files=files, data={"query": "rain"}, timeout=PATIENCE)
        if answer.status_code != 200 or len(answer.content) < RATE:
            wrong.append(f"It does not separate any more: {answer.status_code}.")
    click.echo(json.dumps(dict(sorted(attack.statuses.items())), indent=1))
    click.echo(
        f"Memory {memory >> 20} MiB, later {later >> 20} MiB; {sum(attack.statuses.values())} requests."
    )
    if wrong:
        raise BackendError("The server did not stand it:\n" + "\n".join(wrong[:20]))


def main() -> None:
    """Entry point of the program."""
    run(command, PROGRAM, "There is not enough memory for this measurement.")


if __name__ == "__main__":
    main()
