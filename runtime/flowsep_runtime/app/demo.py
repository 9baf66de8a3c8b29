"""The example that ships with the package: a dog in the rain."""

from __future__ import annotations

from pathlib import Path

from flowsep_runtime.app.outputs import replacing
from flowsep_runtime.audio.reading import read_audio
from flowsep_runtime.audio.writing import Encoding, write_audio

EXAMPLE = Path(__file__).parents[1] / "assets" / "example" / "mix.flac"
DEMO_QUERIES = ("dog barking", "rain")


def write_demo(folder: Path) -> Path:
    """Writes the example mixture as `mix.wav` into a folder, unless it is there, and returns its path.

    Raises:
        OutputError: If the disk does not take it.
    """
    path = folder / "mix.wav"
    if not path.exists():
        recording = read_audio(EXAMPLE)
        with replacing([path]) as (temporary,):
            write_audio(temporary, recording.samples, recording.sample_rate, Encoding("WAV", "PCM_16"), path)
    return path
