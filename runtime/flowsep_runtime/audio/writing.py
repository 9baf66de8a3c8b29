"""Writing audio files block by block, in the input's manner."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import soundfile

from flowsep_runtime.arrays import Floats
from flowsep_runtime.audio.clipping import ClipMode, FullScale
from flowsep_runtime.audio.reading import BLOCK, Sequential
from flowsep_runtime.errors import AudioError, OutputError, shown

LARGEST_WAV = (1 << 32) - (
    1 << 20
)  # bytes that its 32-bit sizes can speak of, less what headers and tags take

#: Extension -> libsndfile's container.
CONTAINERS = {
    ".aif": "AIFF",
    ".aiff": "AIFF",
    ".au": "AU",
    ".caf": "CAF",
    ".flac": "FLAC",
    ".mp3": "MP3",
    ".oga": "OGG",
    ".ogg": "OGG",
    ".opus": "OGG",
    ".rf64": "RF64",
    ".w64": "W64",
    ".wav": "WAV",
}

#: Spellings of WAV that a file keeps.
WAV_DIALECTS = ("WAV", "WAVEX", "RF64")

SAMPLE_BYTES = {"PCM_U8": 1, "PCM_S8": 1, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}

#: Subtypes that a result may have. The others fill up whole blocks, which changes the length (ADPCM, GSM), or
#: libsndfile 1.2 writes them wrongly (ALAC beyond 16 bits).
WRITTEN = (
    *("PCM_16", "PCM_24", "PCM_32", "PCM_S8", "PCM_U8", "FLOAT", "DOUBLE"),
    *("ULAW", "ALAW", "ALAC_16", "VORBIS", "OPUS", "MPEG_LAYER_III"),
)

#: Subtypes that hold more than 16 bits: where a container does not know them, 24 bits come nearest.
WIDE = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_20", "ALAC_24", "ALAC_32", "DWVW_24")


@dataclass(frozen=True)
class Encoding:
    """Encoding of a file: libsndfile's container and subtype."""

    container: str
    subtype: str


class Described(Protocol):
    """A recording as far as the choice of an encoding looks at it; an `AudioReader` is one."""

    @property
    def sample_rate(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def container(self) -> str: ...
    @property
    def subtype(self) -> str: ...


def encoding_for(path: Path, reader: Described, clip_mode: ClipMode = "clamp") -> Encoding:
    """The encoding that a path's extension asks for, with the recording's subtype where that container knows
    it, and 24 bits where it does not and the recording has more than 16; with the clip mode "float" floating
    point, where the container knows that.

    A WAV that would outgrow its 32-bit sizes is an RF64, which players of WAV read.

    Raises:
        AudioError: If the extension is none that can be written, or does not take this rate or channel count.
    """
    extension = path.suffix.lower()
    container = CONTAINERS.get(extension)
    if container is None or container not in soundfile.available_formats():
        raise AudioError(
            f"{shown(path)} has no extension that can be written: use one of {', '.join(CONTAINERS)}."
        )
    if container == "WAV" and reader.container in WAV_DIALECTS:
        container = reader.container
    wishes = ["FLOAT"] if clip_mode == "float" and reader.subtype != "DOUBLE" else []
    if extension == ".opus":
        wishes = ["OPUS"]
    elif reader.subtype in WRITTEN:
        wishes.append(reader.subtype)
    if reader.subtype in WIDE:
        wishes.append("PCM_24")
    wishes.append(soundfile.default_subtype(container))
    # Tried, not asked: libsndfile's list has types in it that its encoder then refuses (MP3 in a WAV).
    subtype = next((wish for wish in wishes if _takes(Encoding(container, wish), reader)), wishes[-1])
    if (
        container in WAV_DIALECTS
        and reader.frames * reader.channels * SAMPLE_BYTES.get(subtype, 2) > LARGEST_WAV
    ):
        container = "RF64"
    encoding = Encoding(container, subtype)
    _encoder(io.BytesIO(), reader.channels, reader.sample_rate, encoding, shown(path)).close()
    return encoding


def _takes(encoding: Encoding, reader: Described) -> bool:
    try:
        _encoder(io.BytesIO(), reader.channels, reader.sample_rate, encoding, "").close()
    except AudioError:
        return False
    return True


class AudioWriter:
    """Writes a file block by block; a context manager.

    Every block goes to the file at once. When the context ends well the file is looked at again: what a full
    disk did not take must not pass for a result.
    """

    def __init__(
        self,
        file: Path,
        sample_rate: int,
        channels: int,
        encoding: Encoding,
        tags: Mapping[str, str] | None = None,
        name: Path | None = None,
        clip_mode: ClipMode = "clamp",
    ) -> None:
        """Begins a file.

        Args:
            file: What to write.
            sample_rate: In Hz.
            channels: Of every block.
            encoding: Of `encoding_for`.
            tags: Of an `AudioReader`; those that the container does not take are left out.
            name: The file's name in messages, if `file` is a temporary one.
            clip_mode: What becomes of samples beyond full scale, where the subtype has one.

        Raises:
            AudioError: If the container does not take this rate or channel count.
            OutputError: If the disk does not take the file.
        """
        self._name = shown(name or file)
        self._frames = 0
        self._scale = FullScale(self._name, encoding.subtype, clip_mode)
        try:
            self._file = file.open("wb+", buffering=0)
        except OSError as error:
            raise OutputError(f"{self._name} cannot be written: {error.strerror or error}.") from None
        try:
            self._sound = _encoder(self._file.fileno(), channels, sample_rate, encoding, self._name)
            for tag, text in (tags or {}).items():
                with suppress(soundfile.SoundFileError, UnicodeEncodeError):
                    setattr(self._sound, tag, text)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for block in self._scale.rest():
                    self._put(block)
                self._finish()
                self._scale.warn()
        finally:
            self._scale.close()
            # What could not be written may be refused once more while it is closed.
            with suppress(soundfile.SoundFileError, OSError, RuntimeError):
                self._sound.close()
            with suppress(OSError):
                self._file.close()

    def write(self, block: Floats) -> None:
        """Appends samples float32 [n, channels].

        Raises:
            OutputError: If the disk is full.
        """
        self._put(self._scale.through(block))

    def _put(self, block: Floats) -> None:
        try:
            # In blocks: libsndfile's Vorbis encoder overflows the stack on one long piece.
            for first in range(0, len(block), BLOCK):
                self._sound.write(block[first : first + BLOCK])
        except (soundfile.SoundFileError, AssertionError, RuntimeError):
            raise self._full_disk() from None
        self._frames += len(block)

    def _finish(self) -> None:
        try:
            self._sound.close()
            # Some file systems say only now that there is no room.
            os.fsync(self._file.fileno())
            self._file.seek(0)
            with Sequential(self._file.fileno(), closefd=False) as written:
                whole = written.frames >= self._frames
        except OSError as error:
            raise OutputError(f"{self._name} cannot be written: {error.strerror or error}.") from None
        except (soundfile.SoundFileError, TypeError, RuntimeError):
            whole = False
        if not whole:
            raise self._full_disk()

    def _full_disk(self) -> OutputError:
        return OutputError(f"{self._name} cannot be written: is the disk full?")


def write_audio(
    file: Path, samples: Floats, sample_rate: int, encoding: Encoding, name: Path | None = None
) -> None:
    """Writes samples [samples, channels] in one go; arguments and errors as those of `AudioWriter`."""
    with AudioWriter(file, sample_rate, samples.shape[1], encoding, name=name) as writer:
        writer.write(samples)


class WavStream:
    """WAV to standard output, or another receiver that cannot seek: the header, with the true sizes, comes
    first. A context manager."""

    def __init__(
        self,
        sample_rate: int,
        channels: int,
        frames: int,
        subtype: str,
        clip_mode: ClipMode = "clamp",
        send: Callable[[bytes | memoryview], object] | None = None,
    ) -> None:
        """Writes the header.

        Args:
            sample_rate: In Hz.
            channels: Of every block.
            frames: Samples of each channel that will come.
            subtype: Kept if it is an integer or floating-point type, else 16 bits.
            clip_mode: What becomes of samples beyond full scale.
            send: Takes the bytes in the place of standard output.

        Raises:
            OutputError: If nobody reads.
        """
        self._send = send or _to_standard_output
        if (
            sys.platform == "win32" and send is None
        ):  # where standard output is text until it is told otherwise
            import msvcrt

            msvcrt.setmode(1, os.O_BINARY)
        if clip_mode == "float" and subtype != "DOUBLE":
            subtype = "FLOAT"
        self._subtype = subtype if subtype in SAMPLE_BYTES and subtype != "PCM_S8" else "PCM_16"
        self._scale = FullScale("Standard output", self._subtype, clip_mode)
        self._rate = sample_rate
        width = SAMPLE_BYTES.get(self._subtype, 2)
        form = 3 if self._subtype in ("FLOAT", "DOUBLE") else 1
        data = frames * channels * width
        # What 32 bits cannot say: "until the stream ends".
        sizes = [min(size, 0xFFFFFFFF) for size in (data + 36, data)]
        self._send(
            b"RIFF"
            + sizes[0].to_bytes(4, "little")
            + b"WAVEfmt "
            + (16).to_bytes(4, "little")
            + form.to_bytes(2, "little")
            + channels.to_bytes(2, "little")
            + sample_rate.to_bytes(4, "little")
            + min(sample_rate * channels * width, 0xFFFFFFFF).to_bytes(4, "little")
            + min(channels * width, 0xFFFF).to_bytes(2, "little")
            + (8 * width).to_bytes(2, "little")
            + b"data"
            + sizes[1].to_bytes(4, "little")
        )

    def write(self, block: Floats) -> None:
        """Appends samples float32 [n, channels].

        Raises:
            OutputError: If nobody reads.
        """
        self._put(self._scale.through(block))

    def __enter__(self) -> WavStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for block in self._scale.rest():
                    self._put(block)
                self._scale.warn()
        finally:
            self._scale.close()

    def _put(self, block: Floats) -> None:
        encoded = io.BytesIO()
        soundfile.write(encoded, block, self._rate, self._subtype, endian="LITTLE", format="RAW")
        self._send(encoded.getbuffer())


def _to_standard_output(content: bytes | memoryview) -> None:
    view = memoryview(content)
    try:
        while view:
            view = view[os.write(1, view) :]
    except OSError as error:
        raise OutputError(f"Standard output cannot be written: {error.strerror}.") from None


def _encoder(
    target: int | io.BytesIO, channels: int, sample_rate: int, encoding: Encoding, shown_name: str
) -> Sequential:
    try:
        return Sequential(
            target, "w", sample_rate, channels, encoding.subtype, format=encoding.container, closefd=False
        )
    except (soundfile.SoundFileError, ValueError, TypeError):
        raise AudioError(
            f"{shown_name} cannot be written with {channels} channels at {sample_rate} Hz as "
            f"{encoding.container}: choose another extension, such as .wav."
        ) from None
