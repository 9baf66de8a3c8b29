"""Uploads are decoded in a process of their own, with bounds on its memory and time.

Decoders are the part of this program that meets hostile bytes. One that crashes, hangs or fills the memory
costs the request that brought the bytes. The processes are forked from one that has the decoders loaded
already, which takes milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flowsep_runtime.arrays import Floats
from flowsep_runtime.errors import FlowSepError, FlowSepWarning
from flowsep_serve.errors import ServeError, full_disk, is_full_disk
from flowsep_serve.limits import MIB, Limits

UPLOAD, SAMPLES = "recording", "samples.f32"  # files of a job's folder
LONGEST_ANSWER = 1 << 20  # bytes of what a decoder says
LONGEST_TAG = 2000  # characters; of a dozen tags that there may be
BLOCK = 1 << 16  # samples of each channel

_METHOD = "spawn" if sys.platform == "win32" else "forkserver"
_CONTEXT: Any = multiprocessing.get_context(_METHOD)  # whose common base knows no processes
_RUNNING: set[Any] = set()  # processes


@dataclass(frozen=True)
class Sound:
    """A decoded recording, whose samples lie in a file as float32 [frames, channels].

    Attributes:
        sample_rate: In Hz.
        frames: Samples of each channel, one or more.
        container, subtype: Of the upload, in the words of `AudioReader`.
        tags: Title, artist, and the like.
        warnings: Sentences for the user.
    """

    sample_rate: int
    channels: int
    frames: int
    container: str
    subtype: str
    tags: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate

    @property
    def bytes(self) -> int:
        return 4 * self.frames * self.channels


def read_samples(folder: Path, sound: Sound) -> Iterator[Floats]:
    """Blocks float32 [n, channels] of a decoded recording."""
    import numpy as np

    with (folder / SAMPLES).open("rb") as file:
        while content := file.read(4 * sound.channels * BLOCK):
            yield np.frombuffer(content, np.float32).reshape(-1, sound.channels)


def prepare() -> None:
    """Starts the process that the decoders are forked from, with the libraries loaded."""
    if _METHOD == "forkserver":
        _CONTEXT.set_forkserver_preload(["flowsep_serve.decoding", "flowsep_runtime.audio.reading"])
        from multiprocessing.forkserver import ensure_running

        # A terminal's Ctrl-C goes to all processes: this one decides what ends, the decoders never see it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def decode(folder: Path, limits: Limits, reserve: Callable[[int], None]) -> Sound:
    """Decodes the upload of a job's folder and removes it.

    Args:
        folder: Gets the samples.
        limits: Of memory, time, and the recording.
        reserve: Called before anything is written, with the number of samples of all channels; it raises
            `ServeError` if there is no room for them.

    Raises:
        ServeError: If it is not a recording, or beyond a limit.
    """
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_decode, args=(str(folder), limits, theirs), daemon=True)
    timer: threading.Timer | None = None
    try:
        process.start()
        theirs.close()  # so that the end of the child is the end of the pipe
        _RUNNING.add(process)
        by = time.monotonic() + limits.decoder_time
        # A decoder that was taken over may begin an answer and never end it.
        timer = threading.Timer(limits.decoder_time + 1, process.kill)
        timer.daemon = True
        timer.start()
        answer = _said(ours, by, limits)
        if "samples" in answer:
            reserve(answer["samples"])
            ours.send_bytes(b"go on")
            answer = _said(ours, by, limits)
    finally:
        if timer is not None:
            timer.cancel()
        _RUNNING.discard(process)
        ours.close()
        theirs.close()
        if process.pid is not None:
            process.kill()
            process.join()
            process.close()
    (folder / UPLOAD).unlink(missing_ok=True)
    if "error" in answer:
        raise ServeError(answer["status"], answer["error"])
    return Sound(**answer | {"warnings": tuple(answer["warnings"])})


def stop() -> None:
    """Ends all decoders; who waits for one is told that it broke."""
    for process in list(_RUNNING):
        with suppress(ValueError):  # it has just ended
            process.kill()


def _said(connection: Any, by: float, limits: Limits) -> dict[str, Any]:
    """The next thing that the child says; JSON, for it has met hostile bytes, and a pickle could do anything.

    Raises:
        ServeError: If it has died, or takes too long.
    """
    try:
        if not connection.poll(max(0.0, by - time.monotonic())):
            raise ServeError(
                422,
                f"The recording takes more than {limits.decoder_time} s to decode: convert it to WAV first.",
            )
        answer: dict[str, Any] = json.loads(connection.recv_bytes(LONGEST_ANSWER))
    except (EOFError, OSError, ValueError):
        raise ServeError(
            422,
            f"The recording cannot be decoded within {limits.decoder_memory} MiB of memory, or breaks its "
            "decoder: convert it to WAV first.",
        ) from None
    return answer


def _decode(folder: str, limits: Limits, connection: Any) -> None:
    """The work of the child; whatever goes wrong beyond a sentence ends it without an answer."""
    os.chdir(folder)
    # A native library's last words are no message of the server's.
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    _bound(limits)

    def say(answer: dict[str, Any]) -> None:
        connection.send_bytes(json.dumps(answer).encode())

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", FlowSepWarning)
            answer = asdict(_write_samples(limits, say, connection))
        answer["warnings"] = [str(warning.message) for warning in caught]
    except ServeError as error:
        answer = {"status": error.status, "error": str(error)}
    except FlowSepError as error:
        answer = {"status": 422, "error": sentence_for_client(error)}
    except OSError as error:
        if not is_full_disk(error):
            raise
        answer = {"status": full_disk().status, "error": str(full_disk())}
    say(answer)


def sentence_for_client(error: FlowSepError) -> str:
    """The sentence of an error that was raised over an upload."""
    # What to install is for the one who runs the server.
    sentence = re.sub(r"; [^;]*pip install '[^']*'", "", str(error))
    return f"The {sentence}" if sentence.startswith(UPLOAD) else sentence


def _write_samples(limits: Limits, say: Callable[[dict[str, Any]], None], connection: Any) -> Sound:
    from flowsep_runtime.audio.reading import AudioReader, Span

    # The name is the server's own and relative: messages show it.
    with AudioReader(Path(UPLOAD), Span(0, limits.max_length + 1)) as reader:
        if reader.frames > limits.max_length * reader.sample_rate:
            raise ServeError(
                413, f"The recording is longer than {limits.max_length} s: cut it, or ask for a higher limit."
            )
        if reader.channels > limits.max_channels:
            raise ServeError(
                413, f"The recording has {reader.channels} channels: give at most {limits.max_channels}."
            )
        samples = reader.frames * reader.channels
        say({"samples": samples})
        connection.recv_bytes()  # the room for them is reserved
        _bound_files(4 * samples, 4 * samples)
        with open(SAMPLES, "wb") as file:
            for block in reader.blocks():
                file.write(block.tobytes())
        tags = {name: text[:LONGEST_TAG] for name, text in reader.tags.items()}
        return Sound(
            reader.sample_rate, reader.channels, reader.frames, reader.container, reader.subtype, tags
        )


def _bound(limits: Limits) -> None:
    """Bounds this process."""
    try:
        import resource
    except ImportError:  # Windows: time is bounded from outside, memory is not
        return
    taken = 0  # the libraries are mapped already
    with suppress(OSError, ValueError, IndexError):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for limit, most in (
        (resource.RLIMIT_AS, taken + limits.decoder_memory * MIB),
        (resource.RLIMIT_CPU, limits.decoder_time),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))
    _bound_files(0, limits.max_disk * MIB)


def _bound_files(now: int, ever: int) -> None:
    """Bounds the bytes of a file that this process writes."""
    try:
        import resource
    except ImportError:
        return
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (now, ever))
