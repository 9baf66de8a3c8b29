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
    from flowsep_runtime.bundle.manifest import Manifest
    from flowsep_runtime.errors import (
        AudioError,
        BackendError,
        BundleError,
        FlowSepError,
        FlowSepWarning,
        OptionError,
        OutputError,
        QueryError,
    )
    from flowsep_runtime.options import Options
    from flowsep_runtime.pipeline import Pipeline
    from flowsep_runtime.separation.streaming import Part, Parts
    from flowsep_runtime.separator import Separation, Separator

_HOME = {
    "AudioError": "errors",
    "BackendError": "errors",
    "BundleError": "errors",
    "FlowSepError": "errors",
    "FlowSepWarning": "errors",
    "Manifest": "bundle.manifest",
    "OptionError": "errors",
    "Options": "options",
    "OutputError": "errors",
    "Part": "separation.streaming",
    "Parts": "separation.streaming",
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
    "Options",
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
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
