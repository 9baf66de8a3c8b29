"""Make `examples/mix.wav`, barks in the rain: `python -m recipes.nano.example --work DIR`.

Both recordings are held out from training, and both are by the same author under the Free Art License.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import soundfile

from recipes.nano import RecipeError
from recipes.nano.archives import open_sound
from recipes.nano.packages import fetch
from recipes.nano.signals import Samples, decode, high_pass

PACKAGE = "gcompris-qt-data"
_FOLDER = "usr/share/gcompris-qt/rcc/memory-sound.rcc!gcompris/src/activities/memory-sound/resource"
DOG = f"{_FOLDER}/LRBark_1_LA_cut.ogg"  # three barks in 1.8 s
RAIN = f"{_FOLDER}/LRRain_in_garden_01_LA_cut.ogg"  # 5 s

SAMPLE_RATE = 44_100
SECONDS = 9.0
BARKS_AT = (0.5, 3.5, 6.8)  # seconds
FADE = 0.02  # seconds, at the ends of the barks
SEAM = 0.5  # seconds in which the rain's end turns into its beginning
LOUDEST_DROP = 7.0  # of the rain's RMS
PEAK = 0.89  # -1 dB
EXAMPLE = Path(__file__).parents[2] / "examples" / "mix.wav"


def mixture(dog: Samples, rain: Samples) -> tuple[Samples, Samples, Samples]:
    """Mix the two recordings at equal power over the whole clip.

    Args:
        dog, rain: mono recordings at 44.1 kHz, `[samples]`.

    Returns:
        The mixture and its two parts, which sum to it, each `[SECONDS * SAMPLE_RATE]`.
    """
    length = round(SECONDS * SAMPLE_RATE)
    barks = np.zeros(length, np.float32)
    faded = _faded(high_pass(dog, 60, SAMPLE_RATE))
    for moment in BARKS_AT:
        start = round(moment * SAMPLE_RATE)
        barks[start : start + len(faded)] += faded[: length - start]
    falling = _looped(_limited(high_pass(rain, 20, SAMPLE_RATE)), length)
    falling *= np.sqrt(np.mean(barks**2) / np.mean(falling**2))
    scale = PEAK / float(np.abs(barks + falling).max())
    barks, falling = barks * scale, falling * scale
    return barks + falling, barks, falling


def _faded(audio: Samples) -> Samples:
    ramp = np.linspace(0, 1, round(FADE * SAMPLE_RATE), dtype=np.float32)
    audio = audio.copy()
    audio[: len(ramp)] *= ramp
    audio[-len(ramp) :] *= ramp[::-1]
    return audio


def _limited(audio: Samples) -> Samples:
    # A few drops hit the microphone 28 dB above the rain; for their sake the mixture would have to be faint.
    ceiling = LOUDEST_DROP * float(np.sqrt(np.mean(audio**2)))
    limited: Samples = ceiling * np.tanh(audio / ceiling)
    return limited


def _looped(audio: Samples, length: int) -> Samples:
    seam = round(SEAM * SAMPLE_RATE)
    # Equal power, for the two sides of the seam are not correlated.
    angle = np.linspace(0, np.pi / 2, seam, dtype=np.float32)
    looped = audio.copy()
    while len(looped) < length:
        joint = looped[-seam:] * np.cos(angle) + audio[:seam] * np.sin(angle)
        looped = np.concatenate([looped[:-seam], joint, audio[seam:]])
    return looped[:length]


@click.command()
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of `prepare`; gets example/dog.wav and example/other.wav, the parts of the mixture.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=EXAMPLE,
    help="[default: examples/mix.wav]",
)
def main(work: Path, output: Path) -> None:
    """Make the example mixture, 16-bit mono at 44.1 kHz, and its two parts."""
    try:
        fetch(PACKAGE, work / "debs", work / "root")
        sources = []
        for path in (DOG, RAIN):
            audio, rate = decode(open_sound(work / "root", PACKAGE, path), path)
            if rate != SAMPLE_RATE:
                raise RecipeError(
                    f"{path} is at {rate} Hz, not {SAMPLE_RATE} Hz; use the package of Debian 12."
                )
            sources.append(audio)
        mix, dog, rain = mixture(*sources)
        parts = work / "example"
        parts.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        for file, audio in ((output, mix), (parts / "dog.wav", dog), (parts / "other.wav", rain)):
            soundfile.write(file, audio, SAMPLE_RATE, subtype="PCM_16")
    except (RecipeError, OSError, soundfile.LibsndfileError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{output}: {SECONDS:.0f} s; its parts are in {parts}")


if __name__ == "__main__":
    main()
