"""Reading audio files block by block, with checks.

libsndfile reads what it knows, in the pieces of `pieces.py`; what it does not know, PyAV may (`media.py`).

An hour of audio passes through here in the memory of one block. A file is read through once when it is
opened, so that whatever is wrong with it is said before the work starts and not an hour into it, and so that
its length is what it holds and not what its header promises.
"""

from __future__ import annotations

import io
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import soundfile

from flowsep_runtime.arrays import Floats
from flowsep_runtime.audio.checks import HIGHEST_RATE, LOWEST_RATE, MOST_CHANNELS
from flowsep_runtime.audio.content import Piece, View
from flowsep_runtime.audio.media import MediaFile, changing, is_installed, unreadable
from flowsep_runtime.audio.pieces import continued, pieces
from flowsep_runtime.checks import real_number
from flowsep_runtime.errors import AudioError, FlowSepWarning, OptionError, OutputError, shown

BLOCK = 1 << 16  # samples of each channel; of all together at most 16 times that
UNKNOWN_LENGTH = 1 << 62  # frames; libsndfile's answer for a stream that does not say


class Sequential(soundfile.SoundFile):  # type: ignore[misc]  # soundfile ships no types
    """Reads and writes front to back: soundfile would otherwise seek after every block, which a FLAC stream
    of unknown length does not take, and which costs time in MP3."""

    def seekable(self) -> bool:
        return False


Sound: TypeAlias = "Sequential | MediaFile"


@dataclass(frozen=True)
class Span:
    """A part of a recording, in seconds: its start, and its length or None for all of the rest.

    Raises:
        OptionError: If one is no finite number, or out of range.
    """

    start: float = 0.0
    duration: float | None = None

    def __post_init__(self) -> None:
        if real_number("start", self.start) < 0:
            raise OptionError(f"start must be at least 0 seconds and not {self.start}.")
        if self.duration is not None and real_number("duration", self.duration) <= 0:
            raise OptionError(f"duration must be above 0 seconds and not {self.duration}.")


WHOLE = Span()


class AudioReader:
    """An audio file that was read through and found whole; a context manager.

    Attributes:
        name: The file in messages.
        sample_rate: In Hz.
        channels: From one.
        frames: Samples of each channel that are really there in the wanted part, one or more.
        container, subtype: libsndfile's names (WAV, FLAC, ...; PCM_24, VORBIS, ...), or PyAV's.
        tags: Title, artist, and what else libsndfile reads, by its name.
    """

    def __init__(self, path: Path | None, span: Span = WHOLE) -> None:
        """Opens and checks a file, up to the end of the part that is wanted.

        Args:
            path: An audio file or a named pipe; None is standard input. A pipe is first copied to an unnamed
                file in the system's temporary folder (`TMPDIR`), because most formats cannot be read
                without seeking.
            span: The part that is wanted; one that goes on behind the end of the file ends there.

        Raises:
            AudioError: If there is no such file, it is not audio, damaged, empty, or holds NaN or infinite
                samples, or its rate is out of range, or the wanted part lies behind its end.
            OutputError: If a pipe does not fit on the disk.

        Warns:
            FlowSepWarning: If the file ends before its header says it would.
        """
        self.name = "standard input" if path is None else shown(path)
        self.sample_rate = self.channels = self.frames = 0
        self.container = self.subtype = ""
        self.tags: dict[str, str] = {}
        self._span = span
        self._first, self._end = 0, UNKNOWN_LENGTH  # samples of the whole file
        self._slack = 0  # samples that may be missing from what a header promises
        self._is_media = False
        self._file = _open(path, self.name)
        try:
            try:
                if not self._file.seek(0, io.SEEK_END):
                    raise AudioError(f"{self.name} is empty: it holds no bytes.")
                self._pieces = pieces(self._file)
            except OSError as error:
                raise AudioError(f"{self.name} cannot be read: {error.strerror or error}.") from None
            self._look()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self, frames: int = BLOCK) -> Iterator[Floats]:
        """The samples from the first on, float32 [n, channels], n at most `frames`; one iteration at a time.

        Raises:
            AudioError: If the file was changed since it was opened.
        """
        seen = place = 0
        for piece in self._pieces:
            with self._sound(piece) as sound:
                for block in self._read(sound, frames, self._end - place):
                    wanted = block[max(0, self._first - place) :]
                    place += len(block)
                    if len(wanted):
                        seen += len(wanted)
                        yield wanted
        if seen != self.frames:
            raise AudioError(f"{self.name} was changed while it was read: start again.")

    def _look(self) -> None:
        promised = there = 0
        for number, piece in enumerate(self._pieces):
            with self._sound(piece) as sound:
                if number == 0:
                    self._begin(sound)
                elif (sound.samplerate, sound.channels) != (self.sample_rate, self.channels):
                    raise changing(
                        self.name, self.sample_rate, self.channels, sound.samplerate, sound.channels
                    )
                found = self._check(sound, there)
                there += found
                if there >= self._end:
                    break  # of what follows nothing is wanted
                if found < piece.least:
                    raise AudioError(
                        f"{self.name} holds {piece.least / self.sample_rate:.2f} s of sound, of which only "
                        f"{found / self.sample_rate:.2f} s can be read: convert it to WAV first."
                    )
                is_known = sound.frames < UNKNOWN_LENGTH and not piece.is_guessed
                promised += sound.frames if is_known else found
                remarks = [piece.remark]
                if isinstance(sound, MediaFile):
                    if sound.end is not None:
                        self._pieces[number:] = continued(self._file, piece, sound.end)
                    remarks = [self._pieces[number].remark, sound.remark]
            for remark in filter(None, remarks):
                self._warn(remark)
        if not there:
            raise AudioError(f"{self.name} is empty: it holds no audio samples.")
        if there < promised - self._slack and there < self._end:
            self._warn(
                f"ends early: its header promises {promised / self.sample_rate:.2f} s and "
                f"{there / self.sample_rate:.2f} s are there."
            )
        self.frames = there - self._first
        if self.frames <= 0:
            raise AudioError(
                f"{self.name} is {there / self.sample_rate:.2f} s long: give a --start before its end."
            )

    def _begin(self, sound: Sound) -> None:
        """Takes what holds for the whole file from its first piece."""
        self.sample_rate, self.channels = sound.samplerate, sound.channels
        self.container, self.subtype = sound.format, sound.subtype
        self.tags = {name: text for name, text in sound.copy_metadata().items() if text}
        # Media files promise a length in time, and roughly.
        self._slack = self.sample_rate // 2 if isinstance(sound, MediaFile) else 0
        if not LOWEST_RATE <= self.sample_rate <= HIGHEST_RATE:
            raise AudioError(
                f"{self.name}: The sample rate is {self.sample_rate} Hz: give audio between "
                f"{LOWEST_RATE} and {HIGHEST_RATE} Hz."
            )
        if self.channels > MOST_CHANNELS:
            raise AudioError(
                f"{self.name} has {self.channels} channels: give audio of at most {MOST_CHANNELS}."
            )
        self._first = round(self._span.start * self.sample_rate)
        if self._span.duration is not None:
            self._end = self._first + max(1, round(self._span.duration * self.sample_rate))

    def _check(self, sound: Sound, before: int) -> int:
        """Reads a piece to its end, or that of the wanted part; the number of its samples."""
        place = before
        # Small blocks, so that a damaged place can be named.
        for block in self._read(sound, 4096, self._end - before):
            skipped = min(len(block), max(0, self._first - place))
            finite = np.isfinite(block[skipped:]).all(axis=1)
            if not finite.all():
                seconds = (place + skipped + int(np.argmin(finite))) / self.sample_rate
                raise AudioError(
                    f"{self.name}: The audio holds NaN or infinite samples, the first at "
                    f"{seconds:.3f} s: repair it first."
                )
            place += len(block)
        return place - before

    def _warn(self, remark: str) -> None:
        warnings.warn(f"{self.name} {remark}", FlowSepWarning, stacklevel=4)

    def _sound(self, piece: Piece) -> Sound:
        try:
            is_all = piece.covers(self._file.seek(0, io.SEEK_END))
            if self._is_media:
                return MediaFile(View(self._file, piece), self.name)
            try:
                # Never a name: libsndfile must judge the content and not the extension.
                if not is_all:
                    return Sequential(View(self._file, piece))
                self._file.seek(0)
                return Sequential(self._file.fileno(), closefd=False)
            except (soundfile.SoundFileError, TypeError, ValueError, RuntimeError):
                # Of these libsndfile knows all kinds: what it refuses is damaged.
                self._file.seek(0)
                if self._file.read(4) in (b"FORM", b"fLaC", b".snd") or not is_installed():
                    raise self._unreadable() from None
                self._is_media = True
                return self._sound(piece)
        except OSError as error:
            raise AudioError(f"{self.name} cannot be read: {error.strerror or error}.") from None

    def _unreadable(self) -> AudioError:
        if is_installed():
            return unreadable(self.name)
        return AudioError(
            f"{self.name} is not audio that can be read: give a file such as WAV, FLAC, OGG or MP3; M4A, WMA "
            "and videos need pip install 'flowsep-engine[media]'."
        )

    def _read(self, sound: Sound, frames: int, most: int) -> Iterator[Floats]:
        """Blocks of a piece, with `most` samples in all."""
        # A header may name a thousand channels: the bound is on all of them together.
        size = max(1, min(frames, 16 * BLOCK // sound.channels))
        done = 0
        while done < most:
            count = min(size, most - done)
            try:
                block: Floats = (
                    sound.read(count)
                    if isinstance(sound, MediaFile)
                    else sound.read(count, dtype="float32", always_2d=True)
                )
            except (soundfile.SoundFileError, RuntimeError):
                raise AudioError(
                    f"{self.name} is damaged after {done / sound.samplerate:.2f} s: repair it, or cut it "
                    "there."
                ) from None
            if not len(block):
                return
            done += len(block)
            yield block


def _open(path: Path | None, name: str) -> BinaryIO:
    """A file that can seek, without a buffer of its own: libsndfile reads from the descriptor."""
    if path is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise AudioError("Standard input is not audio: pipe some into it, or name a file.")
        return _spooled(sys.stdin.buffer, name)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioError(f"{name} is a folder: give an audio file.")
        if stat.S_ISFIFO(mode):
            with path.open("rb") as pipe:
                return _spooled(pipe, name)
        # A device may be without end.
        if not stat.S_ISREG(mode):
            raise AudioError(f"{name} is not a regular file: give an audio file.")
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise AudioError(f"There is no file {name}.") from None
    except OSError as error:
        raise AudioError(f"{name} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:  # a NUL in the name
        raise AudioError(f"{name} cannot be read: {error}.") from None


def _spooled(pipe: BinaryIO, name: str) -> BinaryIO:
    try:
        # Without a name from the start: nothing is left even if this process is killed.
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # the caller closes it
    except OSError as error:
        raise OutputError(f"{name} cannot be kept in {_temporary_folder()}: {error.strerror}.") from None
    try:
        while block := pipe.read(1 << 20):
            try:
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]
            except OSError as error:
                raise OutputError(
                    f"{name} does not fit into {_temporary_folder()} ({error.strerror}): set TMPDIR to a "
                    "folder with room."
                ) from None
    except BaseException:
        file.close()
        raise
    return file


def _temporary_folder() -> str:
    try:
        return shown(tempfile.gettempdir())
    except OSError:  # there is none that can be written
        return "a temporary folder"


@dataclass(frozen=True)
class Recording:
    """A whole audio file: samples [samples, channels] in [-1, 1], rate in Hz, libsndfile's subtype."""

    samples: Floats
    sample_rate: int
    subtype: str


def read_audio(path: Path) -> Recording:
    """Reads a whole file into memory.

    Raises:
        AudioError: As `AudioReader`.
    """
    with AudioReader(path) as reader:
        return Recording(np.concatenate(list(reader.blocks())), reader.sample_rate, reader.subtype)
