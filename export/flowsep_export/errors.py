"""Errors of an export that a user can act on, one sentence each."""

from __future__ import annotations

from flowsep_runtime.errors import FlowSepError


class ExportError(FlowSepError):
    """The export was asked for rightly and did not succeed: nothing was written."""

    exit_code = 1


class VerificationError(ExportError):
    """An exported stage differs from the reference by more than its tolerance."""


class RangeError(ExportError):
    """An activation that half precision cannot hold, or only with too little to spare."""


class DownloadError(ExportError):
    """The published checkpoint cannot be had from the network."""


class TokenizerError(FlowSepError):
    """No tokenizer there, or not this model's."""


class EngineError(ExportError):
    """TensorRT cannot make an engine of a graph."""
