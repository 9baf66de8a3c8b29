"""Docstrings start with a noun or a verb."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("flowsep_ref", "training", "export", "runtime", "evaluation", "benchmarks", "recipes", "tests")
OPENERS = re.compile(r"(What|Of|Whether|Whom|Who|Whose|Which|How|Where|As|From|For|By)\b")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_docstring_starts_with_a_noun_or_a_verb(folder: str) -> None:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            for entry in node.body:  # docstrings of modules, classes and functions, and of fields
                if (
                    isinstance(entry, ast.Expr)
                    and isinstance(entry.value, ast.Constant)
                    and isinstance(entry.value.value, str)
                    and OPENERS.match(entry.value.value.strip())
                ):
                    found.append(f"{path.relative_to(ROOT)}:{entry.lineno}")
    assert found == []
