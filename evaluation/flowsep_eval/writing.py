"""The folder of a report: the description of the run, and files that are written together."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowsep_eval.evaluation import read_tracks, separated
from flowsep_eval.pictures import Example, chosen, class_bars, example_page
from flowsep_eval.report import markdown, report
from flowsep_eval.scores import Scores
from flowsep_runtime import Options, Separator, __version__
from flowsep_runtime.app.outputs import replacing
from flowsep_runtime.bundle.checksums import sha256_of
from flowsep_runtime.bundle.manifest import MANIFEST_NAME
from flowsep_runtime.errors import OptionError, OutputError, shown
from flowsep_runtime.versions import installed

REPORT, TABLES, CLASSES, EXAMPLES = "report.json", "report.md", "classes.png", "examples.png"
LIBRARIES = ("numpy", "soxr", "onnxruntime", "onnxruntime-gpu", "transformers")
EXAMPLE_SETS = 8  # more would make the page too long


def check_pictures() -> None:
    """Raises: OptionError: If matplotlib is missing; checked before an hour of work."""
    if find_spec("matplotlib") is None:
        raise OptionError("The report's pictures need matplotlib: pip install 'flowsep-engine[eval]'.")


def check_folder(folder: Path, force: bool) -> None:
    """Makes the report's folder.

    Raises:
        OptionError: If it cannot be made, or holds a report and `force` is not given.
    """
    if (folder / REPORT).exists() and not force:
        raise OptionError(f"{shown(folder / REPORT)} exists already: choose another folder or add --force.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{shown(folder)} cannot be made: {error.strerror}.") from None
    if not os.access(folder, os.W_OK):
        raise OptionError(f"The folder {shown(folder)} is not writable: choose another output.")


def set_names(manifests: Sequence[Path]) -> list[str]:
    """Names of the sets: `sets/held-out/manifest.jsonl` is `held-out`, `mine.jsonl` is `mine`.

    Raises:
        OptionError: If the same manifest is given twice.
    """
    if len({path.resolve() for path in manifests}) < len(manifests):
        raise OptionError("One manifest is given twice: every test set counts once.")
    names: list[str] = []
    for path in manifests:
        whole = path.resolve()
        base = (whole.parent.name if whole.stem == "manifest" else whole.stem) or "set"
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names


def about(separator: Separator, settings: Mapping[str, Any], manifests: Mapping[str, Path]) -> dict[str, Any]:
    """Description of a run: settings, bundle, test sets with their digests, versions."""
    pipeline = separator.pipeline
    return {
        "settings": dict(settings),
        "bundle": {
            "name": pipeline.manifest.name,
            "precision": pipeline.manifest.precision,
            # The manifest holds the digest of every other file.
            "digest": sha256_of(pipeline.folder / MANIFEST_NAME),
            "checkpoint": pipeline.manifest.provenance.sha256,
            "backend": pipeline.backend.name,
        },
        "manifests": {
            name: {"path": str(path), "sha256": sha256_of(path)} for name, path in manifests.items()
        },
        "versions": {"flowsep": __version__, "python": platform.python_version(), **installed(LIBRARIES)},
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count()},
    }


def write_report(
    folder: Path,
    sets: Mapping[str, Scores],
    facts: Mapping[str, Any],
    separator: Separator,
    asked: Mapping[str, Options],
) -> None:
    """Writes `report.json`, `report.md`, `classes.png` and `examples.png`: all of them, or none.

    Args:
        folder: Where to; `check_folder` has made it.
        sets: Scores by name.
        facts: Of `about`.
        separator: Makes the examples once more.
        asked: Options of each set's separations, by the same names.

    Raises:
        OutputError: If the disk does not take them.
    """
    paths = [folder / name for name in (TABLES, CLASSES, EXAMPLES, REPORT)]
    text = json.dumps(report(sets, facts), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        with replacing(paths) as (tables, classes, page, data):
            tables.write_text(markdown(sets, facts), encoding="utf-8")
            class_bars(sets, classes)
            example_page(examples(sets, asked, separator), page)
            data.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{shown(folder)} cannot be written: {error.strerror or error}.") from None


def examples(sets: Mapping[str, Scores], asked: Mapping[str, Options], separator: Separator) -> list[Example]:
    """Best, median and worst query of every set, separated again, because all audio would take gigabytes."""
    found: list[Example] = []
    for name, scores in list(sets.items())[:EXAMPLE_SETS]:
        for place, score in chosen(scores):
            tracks = read_tracks(score.item)
            output = separated(
                separator, tracks.mixture, score.item.query, replace(asked[name], seed=score.seed)
            )
            sounds = (
                (f"{score.item.id}: mixture with {score.item.other_label or 'other sounds'}", tracks.mixture),
                ("target" if tracks.target is not None else "target (not there)", tracks.target),
                (f"output: “{score.item.query}”", output.waveform),
            )
            found.append((f"{name}\n{place}", sounds))
    return found
