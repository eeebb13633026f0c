"""Nothing outside `tasks/kinds/` asks which kind a task is of: it asks the kind."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import autopeft
from autopeft.tasks.kinds import kind_names

ROOT = Path(autopeft.__file__).parent
KINDS = {*kind_names(), "causal_lm", "multiple_choice", "multi_label", "token_classification"}


def literals(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def asking(source: str) -> list[int]:
    """Lines that compare something with a kind's name, match it, or look it up in a table of kinds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            parts = list(node.keys)
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        if any(part is not None and literals(part) & KINDS for part in parts):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "if task.kind == 'regression': pass",
        "x = 1 if 'classification' != kind else 2",
        "if kind in ('classification', 'regression'): pass",
        "x = {'classification': 1}[kind]",
        "match kind:\n  case 'regression': pass",
    ],
)
def test_what_is_looked_for_is_found(line: str) -> None:
    assert asking(line)
    assert not asking("kind: str = 'classification'")


def test_no_comparison_with_a_kind_stands_outside() -> None:
    files = [p for p in ROOT.rglob("*.py") if p.parent != ROOT / "tasks" / "kinds"]
    assert len(files) > 150
    found = [f"{p.relative_to(ROOT)}:{line}" for p in files for line in asking(p.read_text(encoding="utf-8"))]
    assert found == []
