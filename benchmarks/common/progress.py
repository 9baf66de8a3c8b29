"""Progress of a long run: lines on stderr, only on a terminal."""

from __future__ import annotations

import sys
import time

import click

_started = time.monotonic()


def say(doing: str) -> None:
    """One line, with the time since the program started; nothing where stderr is not a terminal."""
    if sys.stderr.isatty():
        minutes, seconds = divmod(int(time.monotonic() - _started), 60)
        click.echo(f"{minutes:3d}:{seconds:02d}  {doing}", err=True)
