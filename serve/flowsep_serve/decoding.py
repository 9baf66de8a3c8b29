"""Uploads are decoded in a process of their own, with bounds on its memory and time.

Decoders are the part of this program that meets hostile bytes. One that crashes, hangs or fills the memory
costs the request that brought the bytes. The processes are forked from one that has the decoders loaded
already, which takes milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flowsep_runtime.arrays import Floats
from flowsep_runtime.errors import FlowSepError, FlowSepWarning
from flowsep_serve.errors import ServeError
from flowsep_serve.limits import MIB, Limits

UPLOAD, SAMPLES, ANSWER = "recording", "samples.f32", "decoded.json"  # files of a job's folder
BLOCK = 1 << 16  # samples of each channel

_METHOD = "spawn" if sys.platform == "win32" else "forkserver"
_CONTEXT: Any = multiprocessing.get_context(_METHOD)  # whose common base knows no processes


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

        ensure_running()


def decode(folder: Path, limits: Limits) -> Sound:
    """Decodes the upload of a job's folder and removes it.

    Raises:
        ServeError: If it is not a recording, or beyond a limit.
    """
    process = _CONTEXT.Process(target=_decode, args=(str(folder), limits), daemon=True)
    process.start()
    process.join(limits.decoder_time)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise ServeError(
            422, f"The recording takes more than {limits.decoder_time} s to decode: convert it to WAV first."
        )
    (folder / UPLOAD).unlink(missing_ok=True)
    try:
        answer = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ServeError(
            422,
            f"The recording cannot be decoded within {limits.decoder_memory} MiB of memory, or breaks its "
            "decoder: convert it to WAV first.",
        ) from None
    if "error" in answer:
        raise ServeError(answer["status"], answer["error"])
    return Sound(**answer | {"warnings": tuple(answer["warnings"])})


def _decode(folder: str, limits: Limits) -> None:
    """The work of the child; whatever goes wrong beyond a sentence ends it without an answer."""
    os.chdir(folder)
    # A native library's last words are no message of the server's.
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    _bound(limits)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", FlowSepWarning)
            answer = asdict(_write_samples(limits))
        answer["warnings"] = [str(warning.message) for warning in caught]
    except ServeError as error:
        answer = {"status": error.status, "error": str(error)}
    except FlowSepError as error:
        sentence = str(error)
        if sentence.startswith(UPLOAD):
            sentence = f"The {sentence}"
        answer = {"status": 422, "error": sentence}
    # Whole or not at all.
    temporary = Path(ANSWER + ".part")
    temporary.write_text(json.dumps(answer), encoding="utf-8")
    temporary.replace(ANSWER)


def _write_samples(limits: Limits) -> Sound:
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
        with open(SAMPLES, "wb") as file:
            for block in reader.blocks():
                file.write(block.tobytes())
        return Sound(
            reader.sample_rate, reader.channels, reader.frames, reader.container, reader.subtype, reader.tags
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
        (resource.RLIMIT_FSIZE, limits.max_disk * MIB),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))
