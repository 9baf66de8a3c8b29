"""FlowSep without PyTorch: separates the sound that a sentence names from a recording.

    from flowsep_runtime import Separator

    separator = Separator.load()
    result = separator.separate(samples, sample_rate, "dog barking")

Everything heavy is imported on first use, so that importing the package (and `flowsep-run --help`) is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import (
        AudioError,
        BackendError,
        BundleError,
        FlowSepError,
        FlowSepWarning,
        OptionError,
        OutputError,
        QueryError,
    )
    from .manifest import Manifest
    from .pipeline import Pipeline
    from .separator import Separation, Separator
    from .streaming import Part, Parts

_HOME = {
    "AudioError": "errors",
    "BackendError": "errors",
    "BundleError": "errors",
    "FlowSepError": "errors",
    "FlowSepWarning": "errors",
    "Manifest": "manifest",
    "OptionError": "errors",
    "OutputError": "errors",
    "Part": "streaming",
    "Parts": "streaming",
    "Pipeline": "pipeline",
    "QueryError": "errors",
    "Separation": "separator",
    "Separator": "separator",
}

__all__ = [
    "AudioError",
    "BackendError",
    "BundleError",
    "FlowSepError",
    "FlowSepWarning",
    "Manifest",
    "OptionError",
    "OutputError",
    "Part",
    "Parts",
    "Pipeline",
    "QueryError",
    "Separation",
    "Separator",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
