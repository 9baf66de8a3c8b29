"""Errors of an export that a user can act on, one sentence each."""

from __future__ import annotations

from flowsep_runtime.errors import FlowSepError


class ExportError(FlowSepError):
    """The export failed for other reasons than misuse: nothing was written."""

    exit_code = 1


class VerificationError(ExportError):
    """An exported stage differs from the reference by more than its tolerance."""


class RangeError(ExportError):
    """An activation beyond the limit of half precision."""


class DownloadError(ExportError):
    """The published checkpoint cannot be downloaded."""


class TokenizerError(FlowSepError):
    """The tokenizer is missing, or belongs to another model."""


class EngineError(ExportError):
    """TensorRT cannot make an engine of a graph."""
