"""The packages depend on each other in one direction, and the command line starts light.

Each package is imported, module by module, in a fresh interpreter that refuses the forbidden names;
and its source is read, because an import inside a function only fails on the day that it runs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "flowsep_ref": ROOT / "flowsep_ref",
    "flowsep_eval": ROOT / "evaluation" / "flowsep_eval",
    "flowsep_export": ROOT / "export" / "flowsep_export",
    "flowsep_runtime": ROOT / "runtime" / "flowsep_runtime",
}
FORBIDDEN = {
    "flowsep_ref": {"flowsep_runtime", "flowsep_export", "flowsep_eval", "recipes", "tests"},
    "flowsep_eval": {"flowsep_export", "librosa", "onnx", "recipes", "tests"},
    "flowsep_export": {"flowsep_eval", "recipes", "tests"},
    "flowsep_runtime": {
        "flowsep_ref",
        "flowsep_export",
        "flowsep_eval",
        "torch",
        "transformers",
        "librosa",
        "onnx",
        "recipes",
        "tests",
    },
}
# What a user who only asks for --help need not wait for.
HEAVY = {"onnxruntime", "openvino", "soxr", "soundfile", "tokenizers", "torch", "transformers", "numba"}

REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked by this test", name=name)

sys.meta_path.insert(0, Refuse())
"""

# A back end whose library is not installed here cannot be imported; that is no crossing of a boundary.
IMPORT_ALL = """
import importlib
import pkgutil

package = importlib.import_module(PACKAGE)
names = [PACKAGE]
for found in pkgutil.walk_packages(package.__path__, PACKAGE + ".", onerror=lambda name: None):
    if not found.name.endswith("__main__"):
        names.append(found.name)
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] in BLOCKED | {PACKAGE}:
            raise
print(len(names))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )


def refusing(blocked: set[str]) -> str:
    return f"BLOCKED = {blocked!r}\n{REFUSE}"


def imported_names(source: Path) -> Iterator[tuple[str, int]]:
    """The top-level package and line of every import of a file, wherever in the file it stands."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno


@pytest.mark.parametrize("package", sorted(FOLDERS))
def test_every_module_imports_with_the_forbidden_packages_blocked(package: str) -> None:
    result = run(f"PACKAGE = {package!r}\n{refusing(FORBIDDEN[package])}{IMPORT_ALL}")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 1, f"only {package} itself was found: the walk over its modules is broken"


@pytest.mark.parametrize("package", sorted(FOLDERS))
def test_no_line_imports_a_forbidden_package(package: str) -> None:
    crossings = [
        f"{source.relative_to(ROOT)}:{line} imports {name}"
        for source in sorted(FOLDERS[package].rglob("*.py"))
        for name, line in imported_names(source)
        if name in FORBIDDEN[package]
    ]
    assert crossings == []


def test_scoring_needs_neither_pytorch_nor_the_reference() -> None:
    imports = "import flowsep_eval.evaluation, flowsep_eval.writing"
    result = run(refusing({"torch", "transformers", "flowsep_ref"}) + imports)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["torch", "flowsep_ref"])
def test_the_blocker_blocks(name: str) -> None:
    """Without this, a broken blocker would let every test above pass."""
    result = run(f"{refusing({name})}import {name}")
    assert result.returncode == 1
    assert f"{name} is blocked by this test" in result.stderr


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("flowsep-run", "flowsep_runtime.cli"),
        ("flowsep-export", "flowsep_export.cli"),
        ("flowsep-eval", "flowsep_eval.cli"),
    ],
)
def test_a_command_line_prints_its_help_without_an_engine_or_an_audio_library(
    command: str, module: str
) -> None:
    start = f"sys.argv = [{command!r}, '--help']\nfrom {module} import main\nsys.exit(main())"
    result = run(refusing(HEAVY) + start)
    assert result.returncode == 0, result.stderr
    assert f"Usage: {command}" in result.stdout
