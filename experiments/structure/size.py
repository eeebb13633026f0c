"""How much code a package is: files, lines of code, functions, and the lines of a median function's body.

    python experiments/structure/size.py            # this package and its tests, peft and optuna as installed

A line of code holds something besides comments and docstrings. A function is every `def`, those in classes
and in functions too. Its body is its lines of code below the signature, without its docstring.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import statistics
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import show

__all__ = ["Size", "size_of"]

ROOT = Path(__file__).resolve().parents[2]
_SILENT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


@dataclass(frozen=True)
class Size:
    """Of some files."""

    files: int
    code: int
    functions: int
    median_body: float
    long: int
    """Functions whose body has more than 40 lines of code."""


def size_of(paths: Iterable[Path]) -> Size:
    """The size of Python files, together."""
    files, code, bodies = 0, 0, list[int]()
    for path in paths:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        lines = _code_lines(source, tree)
        files, code = files + 1, code + len(lines)
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                start, end = node.body[0].lineno, node.end_lineno or node.lineno
                bodies.append(sum(start <= line <= end for line in lines))
    return Size(files, code, len(bodies), statistics.median(bodies or [0]), sum(n > 40 for n in bodies))


def _code_lines(source: str, tree: ast.Module) -> set[int]:
    silent = {line for node in _docstrings(tree) for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _SILENT:
            found.update(range(token.start[0], token.end[0] + 1))
    return found - silent


def _docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    """Strings that stand as statements: docstrings, those of attributes as well."""
    for node in ast.walk(tree):
        constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if constant and isinstance(node.value.value, str):
            yield node


def _installed(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return sorted(Path(spec.origin).parent.rglob("*.py"))


def main() -> None:
    sides = {
        "autopeft": sorted([*(ROOT / "autopeft").rglob("*.py"), *(ROOT / "methods").rglob("*.py")]),
        "autopeft/search": sorted((ROOT / "autopeft" / "search").rglob("*.py")),
        "autopeft/tasks": sorted((ROOT / "autopeft" / "tasks").rglob("*.py")),
        "its tests": sorted((ROOT / "tests").rglob("*.py")),
        "peft": _installed("peft"),
        "optuna": _installed("optuna"),
    }
    rows = []
    for name, paths in sides.items():
        s = size_of(paths)
        each = s.code / max(1, s.functions)
        rows.append((name, s.files, f"{s.code:,}", f"{s.functions:,}", s.median_body, f"{each:.1f}", s.long))
    columns = ("", "files", "lines of code", "functions", "median body", "code a function", "above 40 lines")
    show("Size", columns, rows)


if __name__ == "__main__":
    main()
