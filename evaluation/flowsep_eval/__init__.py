"""Evaluation of FlowSep models: test sets, metrics with their uncertainty, ceilings, reports.

    from flowsep_eval import evaluate, read_manifest
    from flowsep_runtime import Separator

    scores = evaluate(Separator.load(), read_manifest("runs/test/manifest.jsonl"), steps=10)
    print(scores.overall()["query_accuracy"])

Everything heavy is imported on first use, so that `flowsep-eval --help` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowsep_eval.bootstrap import Estimate
    from flowsep_eval.builder import build_test_set
    from flowsep_eval.evaluation import evaluate
    from flowsep_eval.manifest import Item, ManifestError, read_manifest
    from flowsep_eval.scores import Scores

_HOME = {
    "Estimate": "bootstrap",
    "Item": "manifest",
    "ManifestError": "manifest",
    "Scores": "scores",
    "build_test_set": "builder",
    "evaluate": "evaluation",
    "read_manifest": "manifest",
}

__all__ = ["Estimate", "Item", "ManifestError", "Scores", "build_test_set", "evaluate", "read_manifest"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"flowsep_eval.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
