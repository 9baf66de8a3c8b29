"""Result of `pip install`: one version, the command lines, and every file that the code reads."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import flowsep_runtime
from tests.project.packages import FOLDERS, ROOT

COMMANDS = {
    "flowsep-run": "flowsep_runtime.app.cli:main",
    "flowsep-export": "flowsep_export.cli:main",
    "flowsep-train": "flowsep_train.cli:main",
    "flowsep-eval": "flowsep_eval.cli:main",
    "flowsep-serve": "flowsep_serve.cli:main",
    "flowsep-batch": "flowsep_batch.cli:main",
}


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel, built from a copy so that the build leaves nothing in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in FOLDERS.values():
        shutil.copytree(
            package,
            source / package.relative_to(ROOT),
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        "..",
    ]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize(("command", "target"), COMMANDS.items())
def test_the_command_lines_are_installed(command: str, target: str) -> None:
    scripts = importlib.metadata.distribution("flowsep-engine").entry_points.select(group="console_scripts")
    assert {script.name: script.value for script in scripts}[command] == target


def test_the_runtime_names_the_version_of_setup_cfg(setup_cfg: configparser.ConfigParser) -> None:
    assert flowsep_runtime.__version__ == setup_cfg["metadata"]["version"]


def test_the_changelog_has_an_entry_for_the_version(setup_cfg: configparser.ConfigParser) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{setup_cfg['metadata']['version']}]" in changelog


@pytest.mark.parametrize(
    ("environment", "left"),
    [
        (
            {"python_version": "3.10"},
            {"numpy", "onnxruntime", "av", "fonttools", "markdown", "python-dateutil"},
        ),
        ({"sys_platform": "darwin", "platform_machine": "x86_64"}, {"numpy", "onnxruntime", "openvino"}),
    ],
    ids=["Python 3.10", "Intel Mac"],
)
def test_a_version_that_a_platform_does_not_have_is_no_constraint_there(
    environment: dict[str, str], left: set[str]
) -> None:
    """docs/platforms.md has the lists. A pin of such a version makes an installation impossible."""
    usual = {"python_version": "3.12", "sys_platform": "linux", "platform_machine": "x86_64"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for where, free in ((usual, set()), (usual | environment, left)):
        pinned = {pin.name.lower() for pin in pins if pin.marker is None or pin.marker.evaluate(where)}
        assert left & pinned == left - free


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(FOLDERS))
def test_the_wheel_holds_every_file_of_a_package(package: str, wheel: set[str]) -> None:
    """A module or a data file which setup.cfg does not know works in a checkout and is missing for users."""
    folder = FOLDERS[package]
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert f"{package}/py.typed" in expected
    assert expected - wheel == set(), "add the subpackage or the package data to setup.cfg"


@pytest.mark.slow
def test_the_wheel_holds_nothing_but_the_packages(wheel: set[str]) -> None:
    folders = {name.partition("/")[0] for name in wheel}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == set(FOLDERS)


@pytest.mark.slow
def test_the_published_configurations_ship_and_are_those_of_the_golden_numbers(
    data: Path, wheel: set[str]
) -> None:
    for name in ("full.yaml", "tiny.yaml"):
        assert f"flowsep_ref/configs/{name}" in wheel
        assert (ROOT / "flowsep_ref/configs" / name).read_bytes() == (data / "configs" / name).read_bytes()


def test_the_runtime_alone_asks_for_no_deep_learning_framework(setup_cfg: configparser.ConfigParser) -> None:
    needed = setup_cfg["options"]["install_requires"] + setup_cfg["options.extras_require"]["cpu"]
    assert not any(name in needed for name in ("torch", "transformers", "librosa"))


PAGES = ("*.md", "docs/*.md", "runtime/**/*.py")
DOCUMENTED = {
    tuple(found.split(","))
    for page in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("runtime/**/*.py"),
        ROOT / "Makefile",
    )
    for found in re.findall(r"(?:\.|flowsep-engine)\[([a-z0-9,-]+)\]", page.read_text(encoding="utf-8"))
}


def test_the_readme_lists_every_extra(setup_cfg: configparser.ConfigParser) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("\n| extra |")[2].partition("\n\n")[0]
    listed = [
        extra for row in re.findall(r"^\| (`.*?) \|", table, re.M) for extra in re.findall(r"[\w-]+", row)
    ]
    assert sorted(listed) == sorted(setup_cfg["options.extras_require"])


def packages_of(setup_cfg: configparser.ConfigParser, extras: Iterable[str]) -> set[str]:
    """The names of the packages that some extras bring, those of extras of their own too."""
    names: set[str] = set()
    for extra in extras:
        for line in setup_cfg["options.extras_require"][extra].strip().splitlines():
            needed = Requirement(line)
            own = needed.name == setup_cfg["metadata"]["name"]
            names |= packages_of(setup_cfg, needed.extras) if own else {needed.name}
    return names


@pytest.mark.parametrize("extras", sorted(DOCUMENTED), ids=",".join)
def test_what_is_documented_brings_one_onnx_runtime_at_most(
    extras: tuple[str, ...], setup_cfg: configparser.ConfigParser
) -> None:
    """The two overwrite each other's files; the exporter and the benchmarks run on either."""
    names = packages_of(setup_cfg, extras)
    assert not {"onnxruntime", "onnxruntime-gpu"} <= names
    assert not {"tensorrt", "tensorrt-cu12"} <= names
    if "export" in extras or "dev" in extras:
        assert names & {"onnxruntime", "onnxruntime-gpu"}, "what is exported is verified"


def test_the_extras_for_a_gpu_bring_its_libraries(setup_cfg: configparser.ConfigParser) -> None:
    assert {("gpu",), ("gpu-cu12",), ("tensorrt",), ("tensorrt-cu12",)} <= DOCUMENTED
    for extra in ("gpu", "gpu-cu12"):
        (needed,) = map(Requirement, setup_cfg["options.extras_require"][extra].strip().splitlines())
        assert needed.extras == {"cuda", "cudnn"}
