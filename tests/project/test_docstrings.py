"""Docstrings start with a noun or a verb, and there is one way to document attributes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *("flowsep_ref", "training", "export", "runtime", "serve"),
    *("evaluation", "benchmarks", "recipes", "tests"),
)
OPENERS = re.compile(r"(What|Of|Whether|Whom|Who|Whose|Which|How|Where|As|From|For|By)\b")


def texts(node: ast.AST) -> list[ast.Expr]:
    """Strings that stand alone in the body of a module, a class or a function."""
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        return []
    return [
        entry
        for entry in node.body
        if isinstance(entry, ast.Expr)
        and isinstance(entry.value, ast.Constant)
        and isinstance(entry.value.value, str)
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_docstring_starts_with_a_noun_or_a_verb(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{text.lineno}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for text in texts(node)
        if OPENERS.match(ast.literal_eval(text.value).strip())
    ]
    assert found == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_attributes_are_documented_in_their_class_and_constants_in_a_comment(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{text.lineno}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for text in texts(node)
        if isinstance(node, (ast.Module, ast.ClassDef)) and text is not node.body[0]
    ]
    assert found == []
