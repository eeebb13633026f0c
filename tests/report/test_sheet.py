from __future__ import annotations

import io

import pytest
from rich.console import Console

from autopeft.report.sheet import Sheet

SHEET = Sheet(
    ("name", "count"), (("a", "1"), ("longer", "1,000")), title="T", notes=("n",), right=frozenset({"count"})
)


def test_plain_columns_line_up() -> None:
    assert SHEET.plain().splitlines() == ["T", "name    count", "a           1", "longer  1,000", "n"]


def test_wide_characters_count_double() -> None:
    lines = Sheet(("x", "y"), (("日本", "1"), ("ab", "2"))).plain().splitlines()
    assert lines[1] == "日本  1"
    assert lines[2] == "ab    2"


def test_markdown_escapes_the_cell_separator() -> None:
    text = Sheet(("x", "n"), (("a|b", "1"),), right=frozenset({"n"})).markdown()
    assert text.splitlines() == ["| x | n |", "|---|---:|", "| a\\|b | 1 |"]


def test_cells_are_never_read_as_markup() -> None:
    """Labels come from users' files: `[red]` is a word, and an unclosed tag must not raise."""
    out = io.StringIO()
    Console(file=out, width=80).print(Sheet(("[bold]h",), (("[red]x",), ("[/]",))).rich())
    assert "[red]x" in out.getvalue()
    assert "[/]" in out.getvalue()
    assert "[bold]h" in out.getvalue()


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 cells under 2"):
        Sheet(("a", "b"), (("1", "2", "3"),))
