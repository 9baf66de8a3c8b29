"""The pages say what is so: links resolve, options exist, quoted errors are the code's own sentences."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "recipes").rglob("*.md"),
        ROOT / "examples" / "README.md",
        ROOT / "tests" / "data" / "example" / "README.md",
    ]
)
SOURCES = tuple(
    ROOT / name for name in ("flowsep_ref", "evaluation", "export", "runtime", "serve", "training", "recipes")
)

#: How a page calls a program, the module of its command, and the subcommand.
PROGRAMS = {
    "flowsep-run": ("flowsep_runtime.app.cli", []),
    "flowsep-export": ("flowsep_export.cli", []),
    "flowsep-train fit": ("flowsep_train.cli", ["fit"]),
    "flowsep-train latents": ("flowsep_train.cli", ["latents"]),
    "flowsep-train collect": ("flowsep_train.cli", ["collect"]),
    "flowsep-train distill": ("flowsep_train.cli", ["distill"]),
    "flowsep-eval build": ("flowsep_eval.cli", ["build"]),
    "flowsep-eval run": ("flowsep_eval.cli", ["run"]),
    "flowsep-serve": ("flowsep_serve.cli", []),
    "flowsep-batch": ("flowsep_batch.cli", []),
    "python -m recipes.nano.build": ("recipes.nano.build", []),
    "python -m recipes.nano.phrasings": ("recipes.nano.phrasings", []),
    "python -m recipes.nano.prepare": ("recipes.nano.prepare", []),
    "python -m recipes.nano.example": ("recipes.nano.example", []),
    "python -m benchmarks.latency": ("benchmarks.latency.cli", []),
    "python -m benchmarks.cost.graphs": ("benchmarks.cost.graphs", []),
    "python -m benchmarks.latency.scaling": ("benchmarks.latency.scaling", []),
    "python -m benchmarks.quality": ("benchmarks.quality.cli", []),
    "python -m benchmarks.quality.seams": ("benchmarks.quality.seams", []),
    "python -m benchmarks.latency.streaming": ("benchmarks.latency.streaming", []),
    "python -m benchmarks.latency.gpu_report": ("benchmarks.latency.gpu_report", []),
    "python -m benchmarks.latency.profile": ("benchmarks.latency.profile", []),
    "python -m benchmarks.latency.operators": ("benchmarks.latency.operators", []),
    "python -m benchmarks.latency.serving": ("benchmarks.latency.serving", []),
    "python -m benchmarks.latency.batch": ("benchmarks.latency.batch", []),
    "python -m benchmarks.latency.hostile": ("benchmarks.latency.hostile", []),
}
#: The page that has to have every option of a program.
REFERENCE = {
    "flowsep-run": "running.md",
    "flowsep-export": "exporting.md",
    "flowsep-train fit": "training.md",
    "flowsep-train latents": "training.md",
    "flowsep-train collect": "training.md",
    "flowsep-train distill": "training.md",
    "flowsep-eval build": "evaluation.md",
    "flowsep-eval run": "evaluation.md",
    "flowsep-serve": "serving.md",
    "flowsep-batch": "scaling.md",
    "python -m benchmarks.latency": "benchmarks.md",
    "python -m benchmarks.latency.scaling": "benchmarks.md",
    "python -m benchmarks.latency.operators": "benchmarks.md",
    "python -m benchmarks.quality": "benchmarks.md",
    "python -m benchmarks.quality.seams": "benchmarks.md",
    "python -m benchmarks.latency.streaming": "benchmarks.md",
    "python -m benchmarks.latency.gpu_report": "gpu.md",
    "python -m benchmarks.latency.serving": "serving.md",
    "python -m benchmarks.latency.batch": "scaling.md",
    "python -m benchmarks.latency.hostile": "serving.md",
}
OTHER_PROGRAMS = {
    "--constraint",
    "--no-deps",
    "--editable",
    "--extra-index-url",
    "--upgrade",
    "--strict",
    "--logdir",
    "--gpus",
    "--audio",
    "--load_checkpoint",
    "--infer_step",
    "--no_mixed",
    "--config_yaml",
    "--read-only",
    "--generate",
    "--tmpfs",
    "--target",
    "--build-arg",
    "--no-healthcheck",
    "--head",
}  # pip's, mypy's, tensorboard's, docker's, ray's, the published program's

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
CODE = re.compile(r"^```.*?^```|`[^`\n]+(?:\n[^`\n]+)?`", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def options(program: str) -> frozenset[str]:
    path, arguments = PROGRAMS[program]
    module = importlib.import_module(path)
    command: Any = module.command if hasattr(module, "command") else module.main
    for argument in arguments:
        command = command.commands[argument]
    shown = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    words = {word for option in shown for word in (*option.opts, *option.secondary_opts)}
    return frozenset({"--help", *(word for word in words if OPTION.fullmatch(word))})


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_resolves(page: Path) -> None:
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_pointer_from_code_to_a_page_resolves() -> None:
    files = [*ROOT.glob("*/**/*.py"), ROOT / "Makefile", *ROOT.glob("*.toml"), *ROOT.glob("*.cfg")]
    pointers = {
        (file.relative_to(ROOT).as_posix(), page, anchor)
        for file in files
        if not file.relative_to(ROOT).parts[0].startswith((".", "build"))
        for page, anchor in re.findall(r"\b(docs/[\w-]+\.md)(?:#([\w-]+))?", file.read_text(encoding="utf-8"))
    }
    assert len(pointers) > 30
    broken = [
        (file, page, anchor)
        for file, page, anchor in pointers
        if not (ROOT / page).is_file() or (anchor and anchor not in anchors(ROOT / page))
    ]
    assert broken == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_exists(page: Path) -> None:
    known = OTHER_PROGRAMS.union(*(options(program) for program in PROGRAMS))
    used = {
        option for code in CODE.findall(page.read_text(encoding="utf-8")) for option in OPTION.findall(code)
    }
    assert used - known == set()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_line_takes_its_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for program in PROGRAMS:
        pattern = r"\s+".join(re.escape(word) for word in program.split())
        for line in re.findall(rf"{pattern}(?!\S)([^`\n#|]*)", text):
            assert set(OPTION.findall(line)) <= options(program), f"{program}{line}"


@pytest.mark.slow
@pytest.mark.parametrize(("program", "page"), REFERENCE.items())
def test_every_option_is_documented(program: str, page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert options(program) - set(OPTION.findall(text)) - {"--help"} == set()


@cache
def literals() -> str:
    """Every text in the code, the pieces of an f-string between its values apart from each other."""
    return "\0".join(
        node.value
        for folder in SOURCES
        for source in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@pytest.mark.parametrize(("page", "at_least"), [("troubleshooting.md", 50), ("gpu.md", 10)])
def test_the_quoted_errors_are_those_of_the_code(page: str, at_least: int) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    # names in the first column of a table are no sentences
    sentences = [s for s in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE) if " " in s]
    assert len(sentences) > at_least
    # what click says by itself
    sentences = [sentence for sentence in sentences if sentence != "Missing argument 'QUERY'."]
    unknown = [
        sentence
        for sentence in sentences
        for piece in sentence.split("…")
        if len(piece.strip(" .()")) > 3 and piece.strip() not in literals()
    ]
    assert unknown == []


def test_every_row_of_the_fault_table_has_its_test() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith(("| ---", "| input"))
    ]
    assert len(rows) > 50
    for row in rows:
        found = re.search(r"`(\w+\.py)::(\w+)` \|$", row)
        assert found, row
        (path,) = (ROOT / "tests" / "runtime").rglob(found[1])
        source = path.read_text(encoding="utf-8")
        assert f"def {found[2]}(" in source, row
