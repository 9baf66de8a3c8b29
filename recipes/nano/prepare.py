"""Make the sound cache that the nano model is trained on: `python -m recipes.nano.prepare --work DIR`.

Needs Debian 12 with `apt-get` and `dpkg`, some 8 GB of disk, and for the synthesised part
`apt-get install fluidsynth fluid-soundfont-gm timgm6mb-soundfont espeak-ng flite`.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import click

from recipes.nano import RecipeError
from recipes.nano.archives import open_sound
from recipes.nano.cache import Clip, Entry, write_cache
from recipes.nano.packages import fetch
from recipes.nano.signals import clean, decode
from recipes.nano.strings import strung_clips
from recipes.nano.synthesis import parts
from recipes.nano.tables import EXTRA_0AD, SOUNDS, Recording, read_recordings
from recipes.nano.tools import require_tools

Item = TypeVar("Item")


def recorded_clips(recordings: Sequence[Recording], debs: Path, root: Path) -> Iterator[Clip]:
    """Fetch the packages that `recordings` lie in, then yield each recording as a clean clip.

    Raises:
        RecipeError: a package, a file or its audio cannot be had, or a file is another than the table says.
    """
    for package in _progress(sorted({recording.package for recording in recordings}), "Fetching packages"):
        fetch(package, debs, root)
    for recording in _progress(recordings, "Decoding recordings"):
        audio, rate = decode(open_sound(root, recording.package, recording.path), recording.source)
        seconds = len(audio) / rate
        if rate != recording.sample_rate or abs(seconds - recording.seconds) > 0.02:
            raise RecipeError(
                f"{recording.source} is {seconds:.2f} s at {rate} Hz, not the {recording.seconds:.2f} s at"
                f" {recording.sample_rate} Hz of the table: its package is another version; use Debian 12."
            )
        clip = clean(audio, rate, recording.label)
        if not len(clip):
            raise RecipeError(f"{recording.source} is silent; take its row out of the table.")
        yield Clip(recording.label, recording.split, clip, recording.source, recording.licence)


def summary(entries: Iterable[Entry]) -> str:
    """A table of clips and seconds by class, kind and split."""
    clips: Counter[tuple[str, str, str]] = Counter()
    seconds: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for entry in entries:
        key = (entry.label, entry.kind, entry.split)
        clips[key] += 1
        seconds[key] += entry.seconds
    lines = [f"{'label':20}{'kind':13}{'train':>6}{'seconds':>9}{'test':>6}{'seconds':>9}"]
    for label, kind in sorted({key[:2] for key in clips}):
        train, test = (label, kind, "train"), (label, kind, "test")
        lines.append(
            f"{label:20}{kind:13}{clips[train]:6}{seconds[train]:9.1f}{clips[test]:6}{seconds[test]:9.1f}"
        )
    return "\n".join(lines)


def _progress(items: Sequence[Item], label: str) -> Iterator[Item]:
    if not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, label=label, file=sys.stderr) as bar:
        yield from bar


@click.command()
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for downloads (debs/), unpacked packages (root/) and the cache; what is there is reused.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="New folder for the cache.  [default: WORK/sounds]",
)
@click.option(
    "--extra/--no-extra", default=True, help="Also the recordings of 0ad-data (1.4 GB to download)."
)
@click.option(
    "--synthesise/--no-synthesise", default=True, help="Also strings of single sounds, and synthesised ones."
)
def main(work: Path, output: Path | None, extra: bool, synthesise: bool) -> None:
    """Download the free sounds of 40 classes and make the training cache of the nano model."""
    cache = output or work / "sounds"
    try:
        if synthesise:
            require_tools()
        recordings = read_recordings(SOUNDS) + (read_recordings(EXTRA_0AD) if extra else [])
        entries = write_cache(cache, _clips(recordings, work, synthesise))
    except (RecipeError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(summary(entries))
    click.echo(
        f"{len(entries)} clips, {sum(entry.seconds for entry in entries) / 60:.1f} minutes, in {cache}"
    )


def _clips(recordings: Sequence[Recording], work: Path, synthesise: bool) -> Iterator[Clip]:
    recorded = []
    for clip in recorded_clips(recordings, work / "debs", work / "root"):
        recorded.append(clip)
        yield clip
    if synthesise:
        yield from strung_clips(recorded)
        for part in _progress(parts(), "Synthesising"):
            yield part.clip()


if __name__ == "__main__":
    main()
