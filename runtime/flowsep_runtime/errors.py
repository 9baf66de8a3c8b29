"""Errors that a user can act on.

Every message is one sentence that names the file (or the option) and says what to do. Anything else that
escapes this package is a fault of ours.
"""

from __future__ import annotations

import os


class FlowSepError(Exception):
    """Base of every error this package raises on purpose; `exit_code` is the command line's answer to it."""

    exit_code = 2


class BundleError(FlowSepError):
    """A folder is not a bundle, a damaged one, or one this version cannot read."""


class AudioError(FlowSepError):
    """Audio that cannot be read, written or separated."""


class QueryError(FlowSepError, ValueError):
    """A query that says nothing."""


class OptionError(FlowSepError, ValueError):
    """An option outside its range: steps, solver, backend, precision, an output path."""


class BackendError(FlowSepError):
    """A backend that cannot be loaded or that failed while it ran."""

    exit_code = 1


class OutputError(FlowSepError):
    """A result that could not be put on disk: it is full, or the folder went away."""

    exit_code = 1


class FlowSepWarning(UserWarning):
    """Something that a user should know of and that did not stop the separation."""


class QueryWarning(FlowSepWarning):
    """A query that the model may not understand, or that hardly anything in the recording is like."""


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it may stand in a one-line message: quoted with escapes if it holds control or broken
    characters."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)
