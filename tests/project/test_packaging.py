"""Result of `pip install`: one version, the command lines, and every file that the code reads."""

from __future__ import annotations

import configparser
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import flowsep_runtime

ROOT = Path(__file__).parents[2]
PACKAGE_FOLDERS = {
    "flowsep_ref": ROOT / "flowsep_ref",
    "flowsep_train": ROOT / "training" / "flowsep_train",
    "flowsep_eval": ROOT / "evaluation" / "flowsep_eval",
    "flowsep_export": ROOT / "export" / "flowsep_export",
    "flowsep_runtime": ROOT / "runtime" / "flowsep_runtime",
}
COMMANDS = {
    "flowsep-run": "flowsep_runtime.app.cli:main",
    "flowsep-export": "flowsep_export.cli:main",
    "flowsep-train": "flowsep_train.cli:main",
    "flowsep-eval": "flowsep_eval.cli:main",
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
    for package in PACKAGE_FOLDERS.values():
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


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(PACKAGE_FOLDERS))
def test_the_wheel_holds_every_file_of_a_package(package: str, wheel: set[str]) -> None:
    """A module or a data file which setup.cfg does not know works in a checkout and is missing for users."""
    folder = PACKAGE_FOLDERS[package]
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
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == set(PACKAGE_FOLDERS)


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


def test_no_extra_brings_both_builds_of_onnx_runtime(setup_cfg: configparser.ConfigParser) -> None:
    for extra, needed in setup_cfg["options.extras_require"].items():
        assert not ("onnxruntime>" in needed and "onnxruntime-gpu" in needed), extra
