"""Files that libsndfile does not read (M4A, WMA, WebM, sound of videos), through PyAV and its FFmpeg.

FFmpeg also knows formats that are lists of other files and addresses. Only those that hold their own sound
are let in, so a file from a stranger opens nothing but itself.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from flowsep_runtime.arrays import Floats
from flowsep_runtime.errors import AudioError

if TYPE_CHECKING:
    import av

#: FFmpeg's names of containers. Not FLV, which ends the process in PyAV before 17.1.
CONTAINERS = (
    *("mov", "matroska", "webm", "asf", "avi", "mpegts", "mpeg", "ogg", "wav", "w64", "caf", "aiff"),
    *("aac", "loas", "ac3", "eac3", "dts", "truehd", "amr", "amrnb", "amrwb", "tta", "tak", "wv", "ape"),
    *("mpc", "mpc8", "dsf", "iff", "mp3", "flac", "au", "rm", "ogg", "oma", "shn", "mxf", "nut"),
)

#: Extensions that they mostly have, and libsndfile's containers do not.
EXTENSIONS = (
    *(".3g2", ".3gp", ".aac", ".ac3", ".amr", ".ape", ".asf", ".avi", ".dsf", ".dts", ".eac3"),
    *(".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".mpc", ".mpeg", ".mpg", ".mts", ".tak"),
    *(".ts", ".tta", ".webm", ".wma", ".wmv", ".wv"),
)

#: FFmpeg's names of tags -> libsndfile's.
_TAGS = {"track": "tracknumber"} | {
    name: name for name in ("title", "copyright", "artist", "comment", "date", "album", "license", "genre")
}

#: Containers whose header says how long they are.
_PROMISING = ("mov", "matroska", "asf", "avi", "tta", "wv")
#: Formats whose sound is the last thing in a file, but for tags.
_BARE = ("tta", "tak", "ape", "mpc", "mpc8", "dsf", "shn", "oma")
_HOLE = 0.1  # seconds between two frames that are more than their time stamps' inaccuracy
_LOSSLESS = ("alac", "tta", "flac", "wavpack", "ape", "tak", "truehd", "mlp", "shorten")
_DEEPER = 16  # bits; a lossless codec of more keeps 24


class MediaFile:
    """The first sound track of a media file, block by block; a context manager.

    Attributes:
        samplerate: In Hz.
        channels: From one.
        frames: Samples of each channel that the container promises; 0 if it does not say.
        remark: Remark on what was read so far, which follows the file's name: holes that damage left.
        end: The place in the file where the sound that was read so far ends; None where more than tags may
            come behind the sound.
        format, subtype: The container and the codec in FFmpeg's words, or "PCM_24" for a lossless codec of
            more than 16 bits.
    """

    def __init__(self, file: io.RawIOBase, name: str) -> None:
        """Opens a file that can seek, which is this one's from here on.

        Raises:
            AudioError: If it is nothing that FFmpeg reads, or has no sound.
        """
        import av

        self._name = name
        self.remark, self._end = "", 0
        self._failures = av.FFmpegError
        try:
            self._container = av.open(
                file,
                "r",
                metadata_errors="replace",
                options={"format_whitelist": ",".join(CONTAINERS)},
            )
        except (av.FFmpegError, ValueError):
            raise unreadable(name) from None
        try:
            stream = self._container.streams.best("audio")
            if not isinstance(stream, av.AudioStream):
                raise AudioError(f"{name} has no sound: give a file with an audio track.")
            self._stream = stream
            self._frames = self._decoded()
            self._waiting: Floats | None = None
            first = next(self._frames, None)
            if first is None:
                raise AudioError(f"{name} is empty: it holds no audio samples.")
            self._first: tuple[int, Floats] | None = first
            self.samplerate, self.channels = first[0], first[1].shape[1]
            self.format = self._container.format.name
            self.subtype = _subtype(stream.codec_context)
            self.frames = int(self._promised() * self.samplerate)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def _promised(self) -> float:
        """Seconds of sound by the container's header; 0 if it has none, and FFmpeg guesses."""
        if not self.format.startswith(_PROMISING):
            return 0.0
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        # Matroska says how long the whole is: pictures may go on for longer than the sound.
        is_all = len(self._container.streams) == 1 and self._container.duration
        return (self._container.duration or 0) / 1e6 if is_all else 0.0

    @property
    def end(self) -> int | None:
        return self._end if self.format in _BARE else None

    def copy_metadata(self) -> dict[str, str]:
        """Tags by libsndfile's names; a video's own are the container's."""
        found = {**self._container.metadata, **self._stream.metadata}
        lower = {name.lower(): text for name, text in found.items()}
        return {ours: lower[theirs] for theirs, ours in _TAGS.items() if lower.get(theirs)}

    def read(self, frames: int) -> Floats:
        """The next samples float32 [n, channels]; fewer than `frames` at the end only.

        Raises:
            AudioError: If the file is damaged, or its rate or channel count changes.
        """
        parts = [] if self._waiting is None else [self._waiting]
        count = sum(map(len, parts))
        while count < frames and (block := self._next()) is not None:
            parts.append(block)
            count += len(block)
        if not parts:
            return np.zeros((0, self.channels), np.float32)
        joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self._waiting = joined[frames:] if len(joined) > frames else None
        return joined[:frames]

    def _next(self) -> Floats | None:
        found, self._first = self._first or next(self._frames, None), None
        if found is None:
            return None
        rate, block = found
        if (rate, block.shape[1]) != (self.samplerate, self.channels):
            raise changing(self._name, self.samplerate, self.channels, rate, block.shape[1])
        return block

    def _decoded(self) -> Iterator[tuple[int, Floats]]:
        """Rate and samples [n, channels] of every frame."""
        import av

        resampler, shape, done, rate = None, None, 0, 1
        expected: float | None = None  # seconds; where the next frame begins
        try:
            for packet in self._container.demux(self._stream):
                self._end = max(self._end, (packet.pos or 0) + packet.size)
                for frame in packet.decode():
                    assert isinstance(frame, av.AudioFrame)
                    rate = frame.sample_rate
                    hole = 0.0 if expected is None or frame.time is None else frame.time - expected
                    if frame.time is not None:
                        expected = frame.time + frame.samples / rate
                    self._look(done / rate, hole, packet.is_corrupt or frame.is_corrupt)
                    if resampler is None or shape != (frame.format.name, frame.layout.name, rate):
                        shape = (frame.format.name, frame.layout.name, rate)
                        # Packed: with a plane a channel, PyAV reads behind the eighth and ends the process.
                        resampler = av.AudioResampler("flt")
                    for part in resampler.resample(frame):
                        samples = np.asarray(part.to_ndarray(), np.float32)
                        block = samples.reshape(-1, part.layout.nb_channels)
                        done += len(block)
                        yield rate, block
        except (self._failures, ValueError):
            if not done:
                raise unreadable(self._name) from None
            raise AudioError(
                f"{self._name} is damaged after {done / rate:.2f} s: repair it, or cut it there."
            ) from None

    def _look(self, seconds: float, hole: float, is_damaged: bool) -> None:
        """Keeps the first remark that there is."""
        if self.remark:
            return
        if hole > _HOLE:
            self.remark = (
                f"has no sound for {hole:.2f} s after {seconds:.2f} s: it is damaged or was paused, and is "
                "read without the gap."
            )
        elif is_damaged:
            self.remark = f"is damaged or cut off near {seconds:.2f} s: what can be read is read."


def is_installed() -> bool:
    """True if PyAV is installed."""
    return find_spec("av") is not None


def unreadable(name: str) -> AudioError:
    """The error for what nothing here reads."""
    return AudioError(f"{name} is not audio that can be read: give a file such as WAV, FLAC, MP3 or M4A.")


def changing(name: str, rate: int, channels: int, new_rate: int, new_channels: int) -> AudioError:
    """The error for a recording that is not of one rate and channel count."""
    return AudioError(
        f"{name} changes from {channels} channels at {rate} Hz to {new_channels} at {new_rate} Hz: "
        "cut it there, and give the parts one by one."
    )


def _subtype(codec: av.AudioCodecContext) -> str:
    name = codec.codec.name
    is_deep = codec.format.bits > _DEEPER and (name in _LOSSLESS or name.startswith("pcm_"))
    return "PCM_24" if is_deep else name.upper()
