"""The core knows no method by name: it asks what a method declares."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

import autopeft
from autopeft.method import PeftKind, method_names

ROOT = Path(autopeft.__file__).parent
# `lora`, `dora` and `ia3` are formats of peft as well, and `lora` is a baseline.
METHODS = {*method_names()} - {*get_args(PeftKind)}
# What older recipes leave out is a fact of the methods of their time.
FORMER = ROOT / "recipe" / "format_1.py"


def knowing(source: str) -> list[int]:
    """Lines that compare something with a method's name, or list several."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            parts, fewest = [node.left, *node.comparators], 1
        elif isinstance(node, ast.Dict):
            parts, fewest = [key for key in node.keys if key is not None], 2
        elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            parts, fewest = node.elts, 2
        elif isinstance(node, ast.MatchValue):
            parts, fewest = [node.value], 1
        else:
            continue
        names = {n.value for part in parts for n in ast.walk(part) if isinstance(n, ast.Constant)}
        if len(names & METHODS) >= fewest:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "if entry.method.name == 'prefix_tuning': pass",
        "if name in ('bitfit', 'lora'): pass",
        "ROWS = {'prompt_tuning': 'table', 'p_tuning': 'embedding'}",
        "SAID = ('moslora', 'adalora')",
        "match name:\n  case 'vera': pass",
    ],
)
def test_what_is_looked_for_is_found(line: str) -> None:
    assert knowing(line)
    assert not knowing("item = {'prompt_tuning': {'length': 3}}")


def test_no_list_of_methods_stands_in_the_core() -> None:
    files = [p for p in ROOT.rglob("*.py") if p != FORMER]
    assert len(files) > 150
    found = [
        f"{p.relative_to(ROOT)}:{line}" for p in files for line in knowing(p.read_text(encoding="utf-8"))
    ]
    assert found == []
    assert knowing(FORMER.read_text(encoding="utf-8"))
