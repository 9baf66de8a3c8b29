"""Draw `docs/images/example.png`, a separation as three spectrograms: `python -m recipes.nano.picture`."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import soundfile
from matplotlib.figure import Figure

from flowsep_runtime import FlowSepError, Separator
from flowsep_runtime.arrays import Floats

ROOT = Path(__file__).parents[2]
WINDOW_SECONDS = 0.046
HOPS_IN_WINDOW = 4
HIGHEST_HZ = 8000  # the model's own bandwidth
RANGE_DB = 70.0  # below the mixture's loudest point
COLOURS = "viridis"  # even steps of lightness: readable in grey and with every kind of colour vision


def spectrogram(samples: Floats, sample_rate: int) -> Floats:
    """Magnitude in dB of a Hann STFT: `samples [S]` to `[bins up to 8 kHz, frames]`."""
    size = 2 ** round(np.log2(WINDOW_SECONDS * sample_rate))
    padded = np.pad(samples, (size // 2, size // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // HOPS_IN_WINDOW]
    spectrum = np.fft.rfft(frames * np.hanning(size + 1)[:-1])
    bins = round(HIGHEST_HZ * size / sample_rate) + 1
    decibels: Floats = (20 * np.log10(np.maximum(np.abs(spectrum[:, :bins]), 1e-9))).T.astype(np.float32)
    return decibels


def draw(tracks: dict[str, Floats], sample_rate: int, title: str, output: Path) -> None:
    """Write a picture of tracks `[S]`, "mixture" among them: a panel each, one time axis, one scale of dB."""
    panels = {name: spectrogram(samples, sample_rate) for name, samples in tracks.items()}
    loudest = float(panels["mixture"].max())
    seconds = len(next(iter(tracks.values()))) / sample_rate

    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True)
    figure.suptitle(title, fontsize=16)
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(
            panel - loudest,
            cmap=COLOURS,
            vmin=-RANGE_DB,
            vmax=0,
            extent=(0, seconds, 0, HIGHEST_HZ / 1000),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
        )
        axis.set_ylabel("kHz", fontsize=12)
        axis.set_title(name, loc="left", fontsize=13)
        axis.tick_params(labelsize=11)
    axes[-1].set_xlabel("seconds", fontsize=12)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("dB below the mixture's loudest point", fontsize=12)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


@click.command()
@click.option(
    "--mixture",
    type=click.Path(dir_okay=False, path_type=Path),
    default=ROOT / "examples" / "mix.wav",
    help="[default: examples/mix.wav]",
)
@click.option("--query", default="dog barking", show_default=True)
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="[default: the model that ships with the package]"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=ROOT / "docs" / "images" / "example.png",
    help="[default: docs/images/example.png]",
)
def main(mixture: Path, query: str, bundle: Path | None, seed: int, output: Path) -> None:
    """Separate QUERY from MIXTURE and draw the mixture, the target and the residual."""
    try:
        samples, sample_rate = soundfile.read(mixture, dtype="float32", always_2d=True)
        result = Separator.load(bundle).separate(samples, sample_rate, query, seed=seed)
        tracks = {"mixture": samples, "target": result.target, "residual": result.residual}
        mono = {name: track.mean(axis=1) for name, track in tracks.items()}
        draw(mono, sample_rate, f"“{query}”", output)
    except (FlowSepError, OSError, soundfile.LibsndfileError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(output)


if __name__ == "__main__":
    main()
