"""Packages and their rooms depend on each other in one direction, and the command line starts light.

Each package is imported, module by module, in a fresh interpreter that refuses the forbidden names;
and its source is read, because an import inside a function only fails on the day that it runs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.project.packages import FOLDERS, ROOT

#: Packages that are missing on a machine that only separates.
NOT_LEAN = {
    "flowsep_ref",
    "flowsep_train",
    "flowsep_export",
    "flowsep_eval",
    "torch",
    "transformers",
    "librosa",
    "onnx",
    "recipes",
    "tests",
}
FORBIDDEN = {
    "flowsep_ref": {"flowsep_train", "flowsep_runtime", "flowsep_export", "flowsep_eval", "recipes", "tests"},
    "flowsep_train": {"flowsep_runtime", "flowsep_export", "flowsep_eval", "recipes", "tests"},
    "flowsep_eval": {"flowsep_export", "librosa", "onnx", "recipes", "tests"},
    "flowsep_export": {"flowsep_train", "flowsep_eval", "recipes", "tests"},
    "flowsep_runtime": {"flowsep_serve", "flowsep_batch", *NOT_LEAN},
    "flowsep_serve": NOT_LEAN,
    "flowsep_batch": {"flowsep_serve", *NOT_LEAN},
}
# Packages that --help does not wait for.
HEAVY = {
    "ray",
    "pyarrow",
    "fsspec",
    "onnxruntime",
    "openvino",
    "soxr",
    "soundfile",
    "tokenizers",
    "torch",
    "transformers",
    "numba",
}

# A room is a folder of a package, or a module beside the folders. Each room may import the rooms that stand
# before it in its list, wherever in a file the import stands.
ROOMS = {
    "flowsep_runtime": (
        "errors",
        "arrays",
        "checks",
        "processors",
        "versions",
        "caches",
        "solvers",
        "audio",
        "bundle",
        "backends",
        "backends.onnxruntime",
        "backends.openvino",
        "backends.tensorrt",
        "options",
        "stage_arrays",
        "device_pipeline",
        "loading",
        "pipeline",
        "separation",
        "separator",
        "app",
    ),
    "flowsep_export": (
        "errors",
        "bundle",
        "download",
        "precision",
        "report",
        "rewrites",
        "graphs",
        "stage_inputs",
        "tokenizer",
        "ranges",
        "quick_text",
        "verify",
        "onnx",
        "tensorrt",
        "export",
        "cli",
    ),
    "flowsep_batch": ("cluster", "stores", "tasks", "work", "report", "progress", "dispatch", "cli"),
    "benchmarks": ("common", "cost", "latency", "quality"),
}
# Backends know nothing of each other.
APART = ("backends.onnxruntime", "backends.openvino", "backends.tensorrt")

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


def modules(package: str) -> dict[str, Path]:
    """The source of every module of a package, by the module's name."""
    folder = FOLDERS.get(package, ROOT / package)
    found = {}
    for source in sorted(folder.rglob("*.py")):
        parts = source.relative_to(folder).with_suffix("").parts
        found[".".join((package, *parts)).removesuffix(".__init__")] = source
    return found


def inner_imports(source: Path, known: Collection[str]) -> Iterator[tuple[str, int]]:
    """The modules of `known` that a file imports, wherever in the file, and the lines."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno} is a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in known or node.module in known:
                    yield name if name in known else str(node.module), node.lineno


def room_of(module: str, package: str) -> str | None:
    """The room of a module, the longest name that fits; None for the package itself."""
    inner = module.removeprefix(package).removeprefix(".")
    if not inner or inner == "__main__":
        return None
    fitting = [room for room in ROOMS[package] if f"{inner}.".startswith(f"{room}.")]
    assert fitting, f"{module} lies in no room: put it into a folder, or name its room in ROOMS"
    return max(fitting, key=len)


@pytest.mark.parametrize("package", ROOMS)
def test_no_room_imports_a_room_above_it(package: str) -> None:
    order, known = ROOMS[package], modules(package)
    upwards = []
    for module, source in known.items():
        room = room_of(module, package)
        if room is None:
            continue
        for name, line in inner_imports(source, known):
            other = room_of(name, package)
            if other is None or other == room:
                continue
            if order.index(other) > order.index(room) or (room in APART and other in APART):
                upwards.append(f"{source.relative_to(ROOT)}:{line} imports {name}")
    assert upwards == []


@pytest.mark.parametrize("package", [*FOLDERS, "benchmarks", "recipes"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    known = modules(package)
    imports = {
        module: {name for name, _ in inner_imports(source, known)} - {module}
        for module, source in known.items()
    }
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.slow
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


def test_the_server_takes_clusters_alone_from_the_batches() -> None:
    batches = modules("flowsep_batch")
    taken = {
        name for source in modules("flowsep_serve").values() for name, _ in inner_imports(source, batches)
    }
    assert taken == {"flowsep_batch.cluster"}


@pytest.mark.slow
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
        ("flowsep-run", "flowsep_runtime.app.cli"),
        ("flowsep-export", "flowsep_export.cli"),
        ("flowsep-eval", "flowsep_eval.cli"),
        ("flowsep-serve", "flowsep_serve.cli"),
        ("flowsep-batch", "flowsep_batch.cli"),
    ],
)
def test_a_command_line_prints_its_help_without_a_backend_or_an_audio_library(
    command: str, module: str
) -> None:
    start = f"sys.argv = [{command!r}, '--help']\nfrom {module} import main\nsys.exit(main())"
    result = run(refusing(HEAVY) + start)
    assert result.returncode == 0, result.stderr
    assert f"Usage: {command}" in result.stdout
