"""Audio files and sample rates: reading with checks, writing in the input's manner, resampling to exact
lengths."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from .arrays import Floats
from .errors import AudioError, OutputError, shown

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz
SILENCE = 1e-7  # a signal whose peak around its mean stays below -140 dB of full scale

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


@dataclass(frozen=True)
class Recording:
    """An audio file: samples [samples, channels] in [-1, 1], rate in Hz, libsndfile's subtype (PCM_24,
    VORBIS, ...)."""

    samples: Floats
    sample_rate: int
    subtype: str


def read_audio(path: Path) -> Recording:
    """Reads a whole file.

    Raises:
        AudioError: If there is no such file, it is no audio, or it is empty.
    """
    if path.is_dir():
        raise AudioError(f"{shown(path)} is a folder: give an audio file.")
    try:
        # A descriptor, not a name: libsndfile must judge the content and not the extension.
        with path.open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            # In blocks: a header may promise far more than the file holds.
            blocks = [np.zeros((0, sound.channels), np.float32)]
            while len(block := sound.read(1 << 20, dtype="float32", always_2d=True)):
                blocks.append(block)
            samples = np.concatenate(blocks)
            rate, subtype = sound.samplerate, sound.subtype
    except FileNotFoundError:
        raise AudioError(f"There is no file {shown(path)}.") from None
    except OSError as error:
        raise AudioError(f"{shown(path)} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:  # a NUL in the name
        raise AudioError(f"{shown(path)} cannot be read: {error}.") from None
    except (soundfile.SoundFileError, TypeError, RuntimeError):
        raise AudioError(
            f"{shown(path)} is not audio that can be read: give a file such as WAV, FLAC, OGG or MP3."
        ) from None
    if not len(samples):
        raise AudioError(f"{shown(path)} is empty: it holds no audio samples.")
    return Recording(samples, rate, subtype)


@dataclass(frozen=True)
class Encoding:
    """How a file is written: libsndfile's container and subtype."""

    container: str
    subtype: str


def encoding_for(path: Path, recording: Recording) -> Encoding:
    """The encoding that a path's extension asks for, with the recording's subtype where that container knows
    it.

    Raises:
        AudioError: If the extension is none that can be written, or does not take this rate or channel count.
    """
    container = CONTAINERS.get(path.suffix.lower())
    if container is None or container not in soundfile.available_formats():
        raise AudioError(
            f"{shown(path)} has no extension that can be written: use one of {', '.join(CONTAINERS)}."
        )
    subtype = "OPUS" if path.suffix.lower() == ".opus" else recording.subtype
    if not soundfile.check_format(container, subtype):
        subtype = soundfile.default_subtype(container)
    encoding = Encoding(container, subtype)
    _sound_file(
        io.BytesIO(), recording.samples.shape[1], recording.sample_rate, encoding, shown(path)
    ).close()
    return encoding


def write_audio(
    file: Path, samples: Floats, sample_rate: int, encoding: Encoding, name: Path | None = None
) -> None:
    """Writes samples [samples, channels]; integer subtypes clip at full scale.

    Args:
        file: What to write.
        samples: Of any level, float32 [samples, channels].
        sample_rate: In Hz.
        encoding: Of `encoding_for`.
        name: The file's name in messages, if `file` is a temporary one.

    Raises:
        AudioError: If the container does not take this rate or channel count.
        OutputError: If the disk does not take the file.
    """
    shown_name = shown(name or file)
    try:
        with file.open("wb+") as handle:
            # Opened and written apart, to tell a format that refuses from a disk that does.
            with _sound_file(handle.fileno(), samples.shape[1], sample_rate, encoding, shown_name) as sound:
                # In blocks: libsndfile's Vorbis encoder overflows the stack on one long piece.
                for first in range(0, len(samples), 1 << 16):
                    sound.write(samples[first : first + (1 << 16)])
            if os.fstat(handle.fileno()).st_size == 0:
                raise OutputError(f"{shown_name} cannot be written: nothing reached the disk.")
    except OSError as error:
        raise OutputError(f"{shown_name} cannot be written: {error.strerror or error}.") from None
    except (soundfile.SoundFileError, AssertionError, RuntimeError):
        raise OutputError(f"{shown_name} cannot be written: is the disk full?") from None


def _sound_file(
    target: int | io.BytesIO, channels: int, sample_rate: int, encoding: Encoding, shown_name: str
) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(
            target, "w", sample_rate, channels, encoding.subtype, format=encoding.container, closefd=False
        )
    except (soundfile.SoundFileError, ValueError, TypeError):
        raise AudioError(
            f"{shown_name} cannot be written with {channels} channels at {sample_rate} Hz as "
            f"{encoding.container}: choose another extension, such as .wav."
        ) from None


def checked_samples(audio: object, sample_rate: float) -> Floats:
    """Audio as float32 [samples, channels].

    Args:
        audio: Floating-point [samples] or [samples, channels].
        sample_rate: In Hz.

    Raises:
        AudioError: If it is not floating point, has another shape, is empty, holds NaN or infinite samples,
            or the rate is out of range.
    """
    array = np.asarray(audio)
    if array.dtype.kind != "f":
        raise AudioError(
            f"The samples must be floating point and not {array.dtype}: divide integers by their full scale."
        )
    if array.ndim not in (1, 2):
        raise AudioError(
            f"The audio must be [samples] or [samples, channels] and not of shape {array.shape}."
        )
    if not array.size:
        raise AudioError("The audio is empty: it holds no samples.")
    if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        raise AudioError(
            f"The sample rate is {sample_rate} Hz: give audio between {LOWEST_RATE} and {HIGHEST_RATE} Hz."
        )
    with np.errstate(over="ignore"):
        samples = array.astype(np.float32)
    if not np.isfinite(samples).all():
        raise AudioError("The audio holds NaN or infinite samples: repair it first.")
    return samples[:, None] if samples.ndim == 1 else samples


def centred(samples: Floats) -> Floats:
    """Samples [samples, channels] minus each channel's mean; the sum is taken in double precision."""
    result: Floats = (samples - samples.mean(axis=0, dtype=np.float64)).astype(np.float32)
    return result


def resampled(samples: Floats, rate: float, new_rate: float, length: int) -> Floats:
    """Samples [samples, channels] at another rate (soxr, linear phase, no delay), cut or zero-padded to
    `length`."""
    if rate != new_rate:
        import soxr

        samples = soxr.resample(np.ascontiguousarray(samples), rate, new_rate)
    result = np.zeros((length, samples.shape[1]), np.float32)
    result[: len(samples)] = samples[:length]
    return result
