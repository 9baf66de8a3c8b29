"""Random changes of a recording: voice (pitch, tempo), timbre (equalisation) and room.

All arithmetic is on mono float32 `[S]` at 16 kHz. The changes of a track hold for the whole track: one voice,
one microphone, one room.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

Audio = NDArray[np.float32]

SAMPLE_RATE = 16000
FRAME = 1024
HOP = FRAME // 4
#: 60 dB as a natural logarithm of amplitude.
RANGE_60_DB = 3 * np.log(10)


@dataclass(frozen=True)
class Augmentation:
    """Probability and range of each change.

    Attributes:
        speed: probability of a playback at another speed, which changes pitch and tempo alike.
        pitch: probability of another pitch at the same tempo.
        stretch: probability of another tempo at the same pitch.
        equalise: probability of a smooth gain over frequency.
        low_pass: probability of a low-pass. Many recordings of some classes are narrow-band; without it
            their bandwidth would give the class away.
        reverberate: probability of a room.
        speed_range: largest change of speed, either way, as a natural logarithm.
        pitch_range: largest change of pitch, either way, in semitones.
        stretch_range: largest change of tempo, either way, as a natural logarithm.
        gain: least and greatest gain of one recording against the others of its track, in amplitude.
        rt60: shortest and longest time in which a room's sound falls by 60 dB, in seconds.
        direct: least and greatest energy of the direct sound against the reverberant, in dB.
    """

    speed: float = 0.8
    pitch: float = 0.3
    stretch: float = 0.25
    equalise: float = 0.8
    low_pass: float = 0.25
    reverberate: float = 0.35
    speed_range: float = 0.25
    pitch_range: float = 4.0
    stretch_range: float = 0.3
    gain: tuple[float, float] = (0.6, 1.0)
    rt60: tuple[float, float] = (0.15, 1.2)
    direct: tuple[float, float] = (-3.0, 15.0)

    @classmethod
    def none(cls) -> Augmentation:
        """No changes."""
        return cls(speed=0, pitch=0, stretch=0, equalise=0, low_pass=0, reverberate=0, gain=(1.0, 1.0))

    def draw(self, rng: np.random.Generator) -> Effects:
        """Effects of one track."""
        speed = np.exp(rng.uniform(-self.speed_range, self.speed_range)) if rng.random() < self.speed else 1.0
        pitch = tempo = float(speed)
        if rng.random() < self.pitch:
            pitch *= float(2 ** (rng.uniform(-self.pitch_range, self.pitch_range) / 12))
        if rng.random() < self.stretch:
            tempo *= float(np.exp(rng.uniform(-self.stretch_range, self.stretch_range)))
        tint = Equaliser(rng, self.equalise, self.low_pass)
        room = None
        if rng.random() < self.reverberate:
            room = draw_room(rng, rng.uniform(*self.rt60), rng.uniform(*self.direct))
        return Effects(pitch, tempo, tint, room)


@dataclass(frozen=True)
class Effects:
    """One voice in one place: the changes of a track.

    A track of several recordings gives each of them its `voice` and the whole of them `place`, which is
    cheaper and lets the room ring on between them. A recording by itself is simply called with.
    """

    pitch: float
    tempo: float
    tint: Equaliser
    room: Audio | None

    def voice(self, x: Audio) -> Audio:
        """Pitch and tempo: `[S]` to `[S / tempo]`."""
        return revoice(x, self.pitch, self.tempo)

    def place(self, x: Audio) -> Audio:
        """Timbre and room; keeps the length."""
        x = self.tint(x)
        return x if self.room is None else reverberate(x, self.room)

    def __call__(self, x: Audio) -> Audio:
        return self.place(self.voice(x))


class Equaliser:
    """A random smooth gain over frequency, a low-pass, both, or nothing.

    Args:
        rng: decides.
        equalise: probability of the gain.
        low_pass: probability of the low-pass.
    """

    def __init__(self, rng: np.random.Generator, equalise: float = 0.6, low_pass: float = 0.25) -> None:
        grid = np.linspace(0, 8000, 513)
        self.db = np.zeros(len(grid))
        if rng.random() < equalise:
            knots = [0, 150, 400, 1000, 2500, 5000, 8000]
            self.db = np.interp(grid, knots, rng.normal(0.0, 6.0, size=len(knots)))
        if rng.random() < low_pass:
            cutoff = rng.uniform(3500, 6000)
            self.db = self.db - np.clip((grid - cutoff) / 400, 0, 1) * 60

    def __call__(self, x: Audio) -> Audio:
        """Keeps the length."""
        if not self.db.any():
            return x
        n = fast_length(len(x))
        gain = (10 ** (self.db / 20)).astype(np.float32)
        curve = np.interp(np.linspace(0, 1, n // 2 + 1), np.linspace(0, 1, len(gain)), gain)
        y = np.fft.irfft(np.fft.rfft(x, n) * curve.astype(np.float32), n)
        return y[: len(x)].astype(np.float32, copy=False)


def revoice(x: Audio, pitch: float = 1.0, tempo: float = 1.0) -> Audio:
    """Multiply all frequencies by `pitch` and the tempo by `tempo`: `[S]` to `[S / tempo]`, rounded.

    If both are equal, it is a playback at another speed. Otherwise a phase vocoder first compensates the
    change of length by the resampling.
    """
    n = max(round(len(x) / tempo), min(len(x), 1))
    if pitch != tempo:
        x = stretch(x, tempo / pitch)
    if pitch != 1:
        x = soxr.resample(x, SAMPLE_RATE * pitch, SAMPLE_RATE, quality="LQ")
    return np.pad(x[:n], (0, max(0, n - len(x)))).astype(np.float32, copy=False)


def stretch(x: Audio, tempo: float) -> Audio:
    """Another tempo at the same pitch: `[S]` to `[S / tempo]`, rounded.

    A phase vocoder (Flanagan and Golden, 1966). As frames are read and written at the same hop, the
    phase advances between two frames that are written by what it does between the two that are read.
    """
    n = round(len(x) / tempo)
    window = np.hanning(FRAME + 1)[:-1].astype(np.float32)
    padded = np.pad(x, (FRAME // 2, FRAME + HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]
    spectra = np.fft.rfft(frames * window)
    at = np.arange(0, len(spectra) - 1, tempo)
    before = np.minimum(at.astype(int), len(spectra) - 2)
    after = (at - before).astype(np.float32)[:, None]
    magnitude = np.abs(spectra)
    advance = np.angle(spectra[1:] * spectra[:-1].conj())
    # in double precision: a clip has a thousand frames' phases to add up
    phase = np.cumsum(advance[before], axis=0, dtype=np.float64) - advance[before] + np.angle(spectra[:1])
    phase = np.remainder(phase, 2 * np.pi).astype(np.float32)
    written = ((1 - after) * magnitude[before] + after * magnitude[before + 1]) * np.exp(1j * phase)
    pieces = (np.fft.irfft(written, FRAME) * window).reshape(len(at), 4, HOP)
    out = np.zeros((len(at) + 3, HOP), np.float32)
    for quarter in range(4):
        out[quarter : quarter + len(at)] += pieces[:, quarter]
    # four squared Hann windows at a quarter's hop add up to 1.5
    return out.reshape(-1)[FRAME // 2 :][:n] / np.float32(1.5)


def draw_room(rng: np.random.Generator, rt60: float, direct: float) -> Audio:
    """An impulse response: the direct sound, and noise that decays by 60 dB in `rt60` seconds after it.

    Args:
        rng: draws the noise.
        rt60: in seconds.
        direct: energy of the direct sound against the reverberant, in dB.
    """
    tail = rng.standard_normal(max(1, round(rt60 * SAMPLE_RATE)), dtype=np.float32)
    tail *= np.exp(np.linspace(0, -RANGE_60_DB, len(tail), dtype=np.float32))
    # nothing comes back from the nearest wall at once
    silence = np.zeros(int(rng.integers(16, 160)), np.float32)
    tail *= 10 ** (-direct / 20) / np.linalg.norm(tail)
    return np.concatenate([np.ones(1, np.float32), silence, tail]).astype(np.float32, copy=False)


def reverberate(x: Audio, room: Audio) -> Audio:
    """Convolve by a room's impulse response; keeps the length and the energy."""
    n = fast_length(len(x) + len(room) - 1)
    wet = np.fft.irfft(np.fft.rfft(x, n) * np.fft.rfft(room, n), n)[: len(x)]
    wet *= np.linalg.norm(x) / max(float(np.linalg.norm(wet)), 1e-12)
    return wet.astype(np.float32, copy=False)


def fast_length(n: int) -> int:
    """The least length of at least `n` that has the form 2^a, 3 * 2^a or 5 * 2^a, a fast one to transform."""
    return min(odd << max(1, (-(-n // odd) - 1).bit_length()) for odd in (1, 3, 5))
