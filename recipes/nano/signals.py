"""Conversion of a sound file's bytes to a clean clip: mono, 16 kHz, no rumble, no silent ends, full scale."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from recipes.nano import RecipeError

Samples = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
LONGEST = 30.0  # seconds: one long field recording must not be most of its class
SILENCE = 1e-3  # of the peak (-60 dB): ends below this carry nothing
PEAK = 0.95

# Hz. Field recordings whose wind and handling noise lies below everything that the class itself does.
HIGH_PASS = {"birds chirping": 800.0, "crickets chirping": 800.0, "siren": 200.0, "bell ringing": 200.0}
RUMBLE = 20.0  # Hz: inaudible for every other class


def decode(content: bytes, name: str) -> tuple[Samples, int]:
    """Decode a sound file to mono samples and its sample rate in Hz.

    Raises:
        RecipeError: libsndfile cannot read the file `name`.
    """
    try:
        audio, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise RecipeError(f"cannot decode {name} ({error}); fetch its package again.") from error
    return audio.mean(axis=1, dtype=np.float32), int(rate)


def clean(audio: Samples, rate: int, label: str, longest: float = LONGEST) -> Samples:
    """Bring mono `audio` to 16 kHz, high-passed for its class, trimmed, capped and peak-normalised.

    Args:
        audio: `[samples]`.
        rate: its sample rate in Hz.
        label: the class, which chooses the high-pass corner.
        longest: seconds after which it is cut, with a short fade.

    Returns:
        `[samples]` with a peak of `PEAK`; empty for silence.
    """
    if rate != SAMPLE_RATE:
        audio = soxr.resample(audio, rate, SAMPLE_RATE)
    return finish(high_pass(audio, HIGH_PASS.get(label, RUMBLE), SAMPLE_RATE), longest)


def finish(audio: Samples, longest: float = LONGEST) -> Samples:
    """Trim the silent ends, cap at `longest` seconds and set the peak."""
    level = np.abs(audio)
    peak = float(level.max(initial=0.0))
    if peak < 1e-5:
        return audio[:0]
    loud = np.flatnonzero(level > SILENCE * peak)
    audio = audio[loud[0] : loud[-1] + 1].copy()
    limit = round(longest * SAMPLE_RATE)
    if len(audio) > limit:
        audio = audio[:limit]
        fade = SAMPLE_RATE // 100
        audio[-fade:] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    audio *= PEAK / float(np.abs(audio).max())
    return audio


def high_pass(audio: Samples, corner: float, rate: int) -> Samples:
    """Fourth-order Butterworth magnitude response without phase shift; the mean goes first."""
    return _filter(audio - audio.mean() if len(audio) else audio, corner, None, rate, order=4)


def band_pass(audio: Samples, low: float, high: float, rate: int) -> Samples:
    """Second-order Butterworth slopes below `low` and above `high` Hz, without phase shift."""
    return _filter(audio, low, high, rate, order=2)


def _filter(audio: Samples, low: float, high: float | None, rate: int, order: int) -> Samples:
    if not len(audio):
        return audio
    # Room for the response to die out, for the Fourier transform would wrap it round to the other end.
    size = len(audio) + round(4 * order * rate / low / 2)
    frequency = np.fft.rfftfreq(size, 1 / rate)
    with np.errstate(divide="ignore"):
        gain = 1 / np.sqrt(1 + (low / frequency) ** (2 * order))
    if high is not None:
        gain /= np.sqrt(1 + (frequency / high) ** (2 * order))
    spectrum = np.fft.rfft(audio, size) * gain
    return np.fft.irfft(spectrum, size)[: len(audio)].astype(np.float32)
