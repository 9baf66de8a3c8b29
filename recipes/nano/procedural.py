"""Rain, wind, sirens and telephones from noise and sines: endless material for classes with few recordings.

Every generator takes a number of samples and a random generator and gives mono samples at 16 kHz, `[samples]`
float32, of no particular level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from recipes.nano.signals import SAMPLE_RATE, Samples, band_pass, finish

SoundKind = Literal["rain", "wind", "siren", "telephone"]


def make(kind: SoundKind, seconds: float, rng: np.random.Generator) -> Samples:
    """Generate `seconds` of a sound, peak-normalised.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in get_args(SoundKind):
        raise ValueError(f"no procedural sound {kind!r}; there are {', '.join(get_args(SoundKind))}")
    generators: dict[SoundKind, Callable[[int, np.random.Generator], Samples]] = {
        "rain": rain,
        "wind": wind,
        "siren": siren,
        "telephone": telephone,
    }
    return finish(generators[kind](round(seconds * SAMPLE_RATE), rng), longest=seconds)


def rain(samples: int, rng: np.random.Generator) -> Samples:
    """The hiss of distant drops, and near drops as short decaying tones at random moments."""
    hiss = _noise(samples, rng.uniform(300, 900), rng.uniform(5000, 7800), rng)
    drops = np.zeros(samples, np.float32)
    rate = rng.uniform(30, 200)  # drops a second
    sizes = 12  # enough pitches that no single tone stands out
    h = np.arange(round(0.006 * SAMPLE_RATE)) / SAMPLE_RATE
    for _ in range(sizes):
        count = rng.poisson(samples / SAMPLE_RATE * rate / sizes)
        strikes = np.zeros(samples)
        strikes[rng.integers(0, samples, count)] = rng.exponential(1, count)
        drop = np.exp(-h / rng.uniform(0.0004, 0.0012)) * np.sin(2 * np.pi * rng.uniform(900, 6500) * h)
        drops += np.convolve(strikes, drop)[:samples].astype(np.float32)
    return hiss + drops * rng.uniform(1, 5)


def wind(samples: int, rng: np.random.Generator) -> Samples:
    """Three bands of noise under a wandering gust; the higher the band, the more it follows the gust."""
    step = SAMPLE_RATE // 2
    knots = np.arange(0, samples + step, step)
    walk = np.exp(0.5 * np.cumsum(rng.normal(0, 0.35, len(knots))))
    gust = np.interp(np.arange(samples), knots, walk).astype(np.float32)
    gust /= gust.max()
    whistle = rng.uniform(400, 900)
    low = _noise(samples, 40, 250, rng)
    middle = _noise(samples, 250, rng.uniform(500, 1200), rng)
    high = _noise(samples, whistle, 1.12 * whistle, rng)
    sound: Samples = low * gust + 0.6 * middle * gust**2 + rng.uniform(0, 0.5) * high * gust**3
    return sound


def siren(samples: int, rng: np.random.Generator) -> Samples:
    """A harmonic tone that jumps (hi-lo) or sweeps slowly (wail) or fast (yelp), softly clipped."""
    t = np.arange(samples) / SAMPLE_RATE
    low, high = rng.uniform(450, 700), rng.uniform(1100, 1600)
    manner = rng.choice(["hi-lo", "wail", "yelp"])
    if manner == "hi-lo":
        frequency = np.where((t * rng.uniform(0.7, 1.2)) % 1 < 0.5, 0.95 * low, 1.33 * low)
    else:
        sweeps = rng.uniform(0.15, 0.4) if manner == "wail" else rng.uniform(2.5, 4.5)  # a second
        frequency = low + (high - low) * (1 - np.cos(2 * np.pi * sweeps * t)) / 2
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
    slope = rng.uniform(0.7, 1.3)
    tone = sum((np.sin(k * phase) / k**slope for k in range(2, 8)), start=np.sin(phase))
    # The seventh harmonic of 1600 Hz would fold back.
    return band_pass(np.tanh(tone * rng.uniform(0.5, 2)).astype(np.float32), 200, 7000, SAMPLE_RATE)


def telephone(samples: int, rng: np.random.Generator) -> Samples:
    """A struck bell or an electronic warble, ringing for one or two seconds at a time."""
    t = np.arange(samples) / SAMPLE_RATE
    sound = _struck_bell(samples, rng) if rng.integers(2) else _warble(samples, rng)
    on, off = rng.uniform(1, 2), rng.uniform(0.6, 3)
    ringing = (t + rng.uniform(0, on)) % (on + off) < on
    return np.where(ringing, sound, 0).astype(np.float32)


def _struck_bell(samples: int, rng: np.random.Generator) -> Samples:
    h = np.arange(round(0.25 * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = rng.uniform(900, 1500)
    # (loudness, decay in s, ratio to the pitch) of the inharmonic partials of a small gong
    partials = ((1.0, 0.12, 1.0), (0.8, 0.09, 1.26), (0.6, 0.06, 2.05), (0.5, 0.05, 2.73), (0.4, 0.03, 3.9))
    stroke = np.zeros_like(h)
    for loudness, decay, ratio in partials:
        stroke += loudness * np.exp(-h / decay) * np.sin(2 * np.pi * pitch * ratio * h)
    strikes = np.zeros(samples)
    moments = (np.arange(0, samples / SAMPLE_RATE, 1 / rng.uniform(18, 28)) * SAMPLE_RATE).astype(int)
    moments = moments[moments < samples]
    strikes[moments] = 1 + 0.1 * rng.standard_normal(len(moments))
    return np.convolve(strikes, stroke)[:samples].astype(np.float32)


def _warble(samples: int, rng: np.random.Generator) -> Samples:
    t = np.arange(samples) / SAMPLE_RATE
    first, second = rng.uniform(700, 1100), rng.uniform(1000, 1500)
    frequency = np.where(np.sin(2 * np.pi * rng.uniform(12, 20) * t) > 0, first, second)
    square = np.sign(np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE))
    return band_pass(square.astype(np.float32), 300, 6000, SAMPLE_RATE)


def _noise(samples: int, low: float, high: float, rng: np.random.Generator) -> Samples:
    noise = band_pass(rng.standard_normal(samples).astype(np.float32), low, high, SAMPLE_RATE)
    return noise / np.std(noise)
