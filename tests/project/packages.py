"""The packages, and their folders."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "flowsep_ref": ROOT / "flowsep_ref",
    "flowsep_train": ROOT / "training" / "flowsep_train",
    "flowsep_eval": ROOT / "evaluation" / "flowsep_eval",
    "flowsep_export": ROOT / "export" / "flowsep_export",
    "flowsep_runtime": ROOT / "runtime" / "flowsep_runtime",
    "flowsep_serve": ROOT / "serve" / "flowsep_serve",
    "flowsep_batch": ROOT / "serve" / "flowsep_batch",
}
