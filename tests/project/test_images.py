"""The Dockerfile, held against what is in the repository; no builder is needed, and none is asked."""

from __future__ import annotations

import configparser
import fnmatch
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "Dockerfile"
ON_LINUX_X86 = sys.platform == "linux" and platform.machine() == "x86_64"


@dataclass
class Stage:
    """A stage of the build: what it begins with, and its instructions."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [text for name, text in self.instructions if name == instruction]


def lines() -> Iterator[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, " ".join(rest.split())


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for name, text in lines():
        if name == "FROM":
            base, _, label = text.partition(" AS ")
            stage = found[label] = Stage(base, label)
        elif stage is not None:
            stage.instructions.append((name, text))
        else:
            assert name == "ARG", f"{name} stands before the first FROM"
    return found


@pytest.fixture(scope="module")
def extras() -> set[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return set(parser["options.extras_require"])


def inherited(stages: dict[str, Stage], stage: Stage) -> list[tuple[str, str]]:
    """The instructions of a stage behind those of the stages that it begins with."""
    below = inherited(stages, stages[stage.base]) if stage.base in stages else []
    return below + stage.instructions


def is_ignored(path: str) -> bool:
    """True if .dockerignore keeps a path from the builder; the last pattern that fits decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        fits = (
            any(fnmatch.fnmatchcase(part, pattern) for part in parts)
            if "**/" in line
            else (fnmatch.fnmatchcase(parts[0], pattern))
        )
        if fits:
            ignored = not line.startswith("!")
    return ignored


def test_the_default_is_for_processors_and_there_is_one_for_cuda(stages: dict[str, Stage]) -> None:
    assert list(stages)[-1] == "cpu"
    assert "cuda" in stages


def test_everything_that_is_copied_is_there_and_reaches_the_builder(stages: dict[str, Stage]) -> None:
    copied = [word for stage in stages.values() for text in stage.all("COPY") for word in text.split()[:-1]]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert not is_ignored(path), path
    assert is_ignored("tests") and is_ignored(".git") and is_ignored("runtime/flowsep_runtime/__pycache__")


def test_the_wheel_is_built_from_every_package_of_setup_cfg(stages: dict[str, Stage]) -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = {
        line.split("=")[1].strip().split("/")[0] for line in parser["options"]["package_dir"].split("\n")[1:]
    }
    copied = {word for text in stages["wheel"].all("COPY") for word in text.split()[:-1]}
    needed = {"setup.cfg", "pyproject.toml", "README.md", parser["metadata"]["license_files"], *folders}
    assert needed <= copied


def test_nothing_comes_from_an_address(stages: dict[str, Stage]) -> None:
    for stage in stages.values():
        assert stage.all("ADD") == []
        for name, text in stage.instructions:
            assert not (name == "RUN" and re.search(r"\b(curl|wget|git)\b", text)), text


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_runs_as_no_root_with_a_health_check(stages: dict[str, Stage], target: str) -> None:
    found = inherited(stages, stages[target])
    (user,) = [text for name, text in found if name == "USER"]
    made = [text for name, text in found if name == "RUN" and "useradd --system --uid 10001 " in text]
    assert user == "flowsep" and made and made[0].split(" && ")[0].endswith(" flowsep")
    assert [name for name, _ in found].index("USER") > max(
        place for place, (name, text) in enumerate(found) if name == "RUN" and "pip install" in text
    )
    (health,) = [text for name, text in found if name == "HEALTHCHECK"]
    python, option, code = json.loads(health[health.index("[") :])
    compile(code, "healthcheck", "exec")
    assert (python, option) == ("python", "-c") and ":8000/healthz" in code
    assert "8000" in [text for name, text in found if name == "EXPOSE"]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_extras_of_a_target_are_those_of_setup_cfg(
    stages: dict[str, Stage], extras: set[str], target: str
) -> None:
    (chosen,) = [text.partition("=")[2] for text in stages[target].all("ARG")]
    assert set(chosen.split(",")) <= extras
    (install,) = [text for text in stages[target].all("RUN") if "pip install" in text]
    assert install.split(" && ")[0].endswith('"$(ls /wheel/wheels/*.whl)[${EXTRAS}]"')
    assert "from=wheel,source=/,target=/wheel" in install
    assert "--wheel-dir /wheels " in stages["wheel"].all("RUN")[0]
    assert stages["wheel"].all("WORKDIR") == ["/source"]
    assert "/wheel/source/constraints.txt" in install


def left_out(stages: dict[str, Stage]) -> list[str]:
    """Patterns of the paths below the libraries' folder that the image for processors does not keep."""
    (install,) = [text for text in stages["cpu"].all("RUN") if "pip install" in text]
    folder, words = install.split(" && ")[1:]
    assert folder == """cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')\""""
    remove, option, *patterns = words.split()
    assert (remove, option) == ("rm", "-rf")
    return patterns


@pytest.mark.slow
@pytest.mark.skipif(not ON_LINUX_X86, reason="the names of the libraries are those of Linux on x86")
def test_the_model_runs_without_what_is_left_out(stages: dict[str, Stage], tmp_path: Path) -> None:
    patterns = left_out(stages)
    packages = {pattern.partition("/")[0] for pattern in patterns}
    libraries = tmp_path / "libraries"
    for package in packages - {"flowsep_ref"}:
        source = Path(import_module(package).__path__[0])
        shutil.copytree(source, libraries / package, copy_function=linked)
        if (source.parent / f"{package}.libs").is_dir():
            (libraries / f"{package}.libs").symlink_to(source.parent / f"{package}.libs")
    for pattern in patterns:
        found = list((ROOT if pattern.startswith("flowsep_ref/") else libraries).glob(pattern))
        assert found, f"the installed version has no {pattern}"
        for path in found:
            if path.is_relative_to(libraries):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for backend in ("openvino", "cpu"):
        environment = os.environ | {"PYTHONPATH": f"{libraries}:{ROOT / 'runtime'}"}
        code = (
            "import numpy, onnxruntime, openvino, sys\n"
            "for each in (numpy, onnxruntime, openvino):\n"
            f"    assert each.__file__.startswith({str(libraries)!r})\n"
            "from flowsep_runtime.app.cli import main\nsys.exit(main())"
        )
        command = [sys.executable, "-c", code, str(ROOT / "examples/mix.wav"), "dog barking"]
        output = tmp_path / f"{backend}.wav"
        answer = subprocess.run(
            [*command, "-o", str(output), "--backend", backend],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
        )
        assert answer.returncode == 0, answer.stderr
        assert output.stat().st_size > 44


def linked(source: str, destination: str) -> None:
    """A file in a second folder, without a copy if both are on one disk."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def commands(stages: dict[str, Stage]) -> Iterator[list[str]]:
    """The command lines of this project that the file has."""
    for stage in stages.values():
        yield from (json.loads(text) for text in stage.all("CMD"))
        for text in stage.all("RUN"):
            if text.startswith("flowsep-"):
                yield shlex.split(text)


@pytest.mark.slow
def test_the_command_lines_exist_and_take_their_options(stages: dict[str, Stage]) -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    scripts = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    modules = {name.strip(): module.strip() for name, module in (line.split("=") for line in scripts)}
    found = list(commands(stages))
    assert ["flowsep-run", "--prepare"] in found and len(found) == 3
    for program, *arguments in found:
        module = import_module(modules[program].partition(":")[0])
        # parsed only: nothing is run
        module.command.make_context(program, list(arguments))


@pytest.mark.slow
def test_pip_takes_the_command_lines(stages: dict[str, Stage]) -> None:
    for stage in stages.values():
        for text in stage.all("RUN"):
            for line in re.findall(r"\bpip (?:wheel|install)[^&]*", text):
                words = [word for word in shlex.split(line)[1:] if word.startswith("--")]
                command = [sys.executable, "-m", "pip", shlex.split(line)[1], *words[:1], "--help"]
                answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
                assert answer.returncode == 0, answer.stderr
                assert all(word in answer.stdout for word in words), line
