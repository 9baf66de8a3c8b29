"""Progress of a run on stderr, with an estimate of its end."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Sequence

import click

from flowsep_batch.work import Row
from flowsep_runtime.app.console import one_line

EVERY = 30.0  # seconds between two lines where nobody watches
#: Seconds between two marks, and the marks that are kept: the pace is that of the last five minutes.
BETWEEN, MARKS = 5.0, 60
MOST_WARNINGS = 20  # that are said; the report has all


class Progress:
    """Counts what is done, and says it from time to time: on a terminal in one line that changes.

    Attributes:
        tasks: Those that have come to an end.
        counts: Results by their state.
    """

    def __init__(self, program: str, total: int) -> None:
        self._program, self._total = program, total
        self._is_watched = sys.stderr.isatty()
        self._began = self._said = time.monotonic()
        self._marks = deque([(self._began, 0)], MARKS)
        self.tasks = 0
        self.counts: Counter[str] = Counter()
        self._warned: set[str] = set()

    def add(self, rows: Sequence[Row]) -> None:
        """Takes the rows of a task that is done; failures, and a warning of a new kind, are said at
        once."""
        self.tasks += 1
        if time.monotonic() - self._marks[-1][0] > BETWEEN:
            self._marks.append((time.monotonic(), self.tasks))
        self.counts.update(row.state for row in rows)
        errors = dict.fromkeys((row.file, row.error) for row in rows if row.error is not None)
        for file, error in errors:
            self.say(error if file in error else f"{file}: {error}")
        for warning in dict.fromkeys(row.warnings for row in rows if row.warnings):
            if len(self._warned) < MOST_WARNINGS and warning not in self._warned:
                self._warned.add(warning)
                self.say(f"warning: {warning}")
        if time.monotonic() - self._said > (0.5 if self._is_watched else EVERY):
            self._said = time.monotonic()
            self._show(self.line())

    def say(self, sentence: str) -> None:
        """A line that stays."""
        click.echo(f"{self._erased}{self._program}: {one_line(sentence)}", err=True)

    def line(self) -> str:
        """Progress so far, and the time that the rest takes at this pace."""
        since, before = self._marks[0]
        # the pace of late: what was done before is passed by quickly
        pace = max(self.tasks - before, 1) / max(time.monotonic() - since, 1e-9)
        parts = [f"{self.tasks} of {self._total} recordings"]
        if self.counts["failed"]:
            parts.append(f"{self.counts['failed']} results failed")
        left = max(self._total - self.tasks, 0) / pace
        parts += [f"{60 * pace:.1f} a minute", f"about {span(left)} left"]
        return ", ".join(parts)

    def summary(self) -> str:
        """Everything that was done, at the end."""
        spent = time.monotonic() - self._began
        states = [f"{count} {state}" for state, count in sorted(self.counts.items())]
        pace = f"{self.tasks} recordings in {span(spent)}, {60 * self.tasks / max(spent, 1e-9):.1f} a minute"
        click.echo(self._erased, err=True, nl=False)
        return f"{pace}; results: {', '.join(states) or 'none'}"

    @property
    def _erased(self) -> str:
        return "\r\x1b[2K" if self._is_watched else ""

    def _show(self, text: str) -> None:
        click.echo(f"{self._erased}{self._program}: {text}", err=True, nl=not self._is_watched)


def span(seconds: float) -> str:
    """A time in the two largest of its units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
