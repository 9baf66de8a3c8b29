"""One picture of a separation: mixture, target and residual on one time axis."""

from __future__ import annotations

import logging
import math
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from flowsep_runtime.arrays import Floats
from flowsep_runtime.audio.spectrograms import Spectrogram, mel
from flowsep_runtime.errors import OptionError, OutputError, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".webp")
RANGE = 80.0  # dB below the mixture's loudest pixel
LONGEST_TITLE = 90  # characters
FREQUENCIES = (100, 300, 1000, 3000, 8000, 20_000, 60_000, 200_000)  # Hz, labels

#: For scripts that matplotlib's own font lacks; those that are installed are used.
FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Noto Emoji",
    "Symbola",
)


def check_plot(path: Path) -> None:
    """Refuses a picture that could not be drawn, before any work is done.

    Raises:
        OptionError: If the extension is no picture's, or matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{shown(path)} is not the name of a picture: use one of {', '.join(SUFFIXES)}.")
    if find_spec("matplotlib") is None:
        raise OptionError("A plot needs matplotlib, run: pip install 'flowsep-engine[plot]'.")


class Plot:
    """Collects a separation block by block, then draws it; the memory does not grow with the length."""

    def __init__(self, sample_rate: int, frames: int) -> None:
        """A picture of `frames` samples at `sample_rate` Hz."""
        self._rows = {name: Spectrogram(sample_rate, frames) for name in ("mixture", "target", "residual")}

    def add(self, mixture: Floats, target: Floats, residual: Floats) -> None:
        """The next samples, each [n, channels]."""
        for spectrogram, block in zip(self._rows.values(), (mixture, target, residual), strict=True):
            spectrogram.add(block)

    def draw(self, file: Path, query: str, name: Path | None = None) -> None:
        """Writes the picture.

        Args:
            file: What to write.
            query: The title.
            name: The file's name in messages and for the format, if `file` is a temporary one.

        Raises:
            OutputError: If it cannot be written.
        """
        # It would complain on stderr of a home folder that cannot be written.
        logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
        from matplotlib import font_manager, rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        installed = set(font_manager.get_font_names())
        fonts = [font for font in FONTS if font in installed]
        with warnings.catch_warnings(), rc_context({"font.family": fonts or ["sans-serif"]}):
            warnings.simplefilter("ignore")  # a letter that no font has is a box, not a remark
            figure = Figure(figsize=(10, 7.5), layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.subplots(3, sharex=True)
            for spectrogram in self._rows.values():
                spectrogram.finish()
            loudest = max(float(self._rows["mixture"].decibels.max()), RANGE - 200.0)
            for place, (label, spectrogram) in zip(axes, self._rows.items(), strict=True):
                image = _show(place, spectrogram, loudest)
                place.set_ylabel(f"{label}\nHz")
            axes[0].set_title(title(query), parse_math=False)
            seconds = spectrogram.frames / spectrogram.sample_rate
            if seconds > 120:
                axes[-1].set_xticks(ticks(seconds))
            axes[-1].xaxis.set_major_formatter(lambda value, _: clock(value, seconds))
            axes[-1].set_xlabel("time, s" if seconds <= 120 else "time, min:s")
            figure.colorbar(image, ax=list(axes), label="dB of full scale", aspect=40, pad=0.01)
            try:
                figure.savefig(file, dpi=150, format=(name or file).suffix[1:].lower())
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise OutputError(f"{shown(name or file)} cannot be written: {reason}.") from None


def title(query: str) -> str:
    """A query as one short printable line."""
    text = "".join(c if c.isprintable() else " " for c in query)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_TITLE else text[: LONGEST_TITLE - 1] + "…"


def ticks(length: float) -> list[float]:
    """Up to ten round times on an axis of `length` seconds, more than two minutes."""
    minutes = next((step for step in (0.5, 1, 2, 5, 10, 15, 30) if length / 60 / step < 10), None)
    step = 60.0 * minutes if minutes is not None else 3600.0 * math.ceil(length / 3600 / 10)
    return [step * place for place in range(int(length / step) + 1)]


def clock(seconds: float, length: float) -> str:
    """A time on an axis of `length` seconds: `1.5`, `12:30` or `1:02:30`."""
    if length <= 120:
        return f"{seconds:g}"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if length >= 3600 else f"{minutes}:{rest:02}"


def _show(axes: Axes, spectrogram: Spectrogram, loudest: float) -> AxesImage:
    seconds = spectrogram.frames / spectrogram.sample_rate
    top = spectrogram.sample_rate / 2
    image = axes.imshow(
        spectrogram.decibels.T,
        origin="lower",
        aspect="auto",
        extent=(0.0, spectrogram.seconds, 0.0, mel(top)),
        vmin=loudest - RANGE,
        vmax=loudest,
        cmap="magma",
        interpolation="nearest",
    )
    axes.set_xlim(0.0, seconds)
    labels = [frequency for frequency in FREQUENCIES if frequency <= top]
    axes.set_yticks([mel(frequency) for frequency in labels], [f"{frequency}" for frequency in labels])
    return image
