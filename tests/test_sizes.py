"""No file above 500 lines, no function above 60."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("autopeft", "methods", "search_spaces", "experiments", "docs", "tests")
FILE, FUNCTION = 500, 60


def long_functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and length of every function above the limit, those in classes and functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION:
                yield node.name, lines


@pytest.mark.parametrize("top", TOPS)
def test_files_and_functions_are_short(top: str) -> None:
    files, functions = {}, {}
    for path in sorted((ROOT / top).rglob("*.py")):
        source, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        lines = len(source.splitlines())
        if lines > FILE:
            files[name] = lines
        functions |= {(name, f): n for f, n in long_functions(source)}
    assert files == {}
    assert functions == {}


def test_long_functions_are_found_wherever_they_stand() -> None:
    body = "\n".join("        x = 1" for _ in range(FUNCTION))
    assert list(long_functions(f"class A:\n    def f(self):\n{body}\n")) == [("f", FUNCTION + 1)]
    assert list(long_functions(f"def g():\n    async def h():\n{body}\n")) == [("g", 62), ("h", 61)]
    assert list(long_functions("def short():\n    return 1\n")) == []
