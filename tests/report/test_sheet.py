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
    sheet = Sheet(("[bold]h",), (("[red]x",), ("[/]",)), title="[i]t", notes=("[b]n",))
    Console(file=out, width=80).print(sheet.rich(sheet.layout(80)))
    assert "[i]t" in out.getvalue()
    assert "[b]n" in out.getvalue()
    assert "[red]x" in out.getvalue()
    assert "[/]" in out.getvalue()
    assert "[bold]h" in out.getvalue()


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 cells under 2"):
        Sheet(("a", "b"), (("1", "2", "3"),))


def shown(sheet: Sheet, width: int) -> list[str]:
    """The lines of a sheet on a terminal of that width, as the commands print it."""
    out, layout = io.StringIO(), sheet.layout(width)
    Console(file=out, width=max(width, layout.width)).print(sheet.rich(layout))
    return [line.rstrip() for line in out.getvalue().splitlines()]


RUN = "2026-01-31-142233-movie-sentences-1a2b3c"
WIDE = Sheet(
    ("run", "what", "where", "test"),
    ((RUN, "a sentence of 113,566 words or so", "somewhere-else", "0.8123 ± 0.0041"),),
    right=frozenset({"test"}),
    fold=frozenset({"what"}),
    drop=("where",),
)


def test_prose_folds_before_a_column_is_left_out() -> None:
    natural = sum(map(len, WIDE.rows[0])) + 3 * 2
    assert WIDE.layout(natural).widths == tuple(map(len, WIDE.rows[0]))
    narrower = WIDE.layout(natural - 9)
    assert narrower.columns == (0, 1, 2, 3)
    assert narrower.widths[1] == len(WIDE.rows[0][1]) - 9
    assert WIDE.layout(75).dropped == ("where",)
    assert WIDE.layout(75).width == 75


@pytest.mark.parametrize("width", [30, 60, 71, 80, 100, 200])
def test_names_and_numbers_are_whole_at_every_width(width: int) -> None:
    lines = shown(WIDE, width)
    for whole in (RUN, "0.8123 ± 0.0041"):
        assert sum(whole in line for line in lines) == 1, lines
    assert any("113,566" in line for line in lines)
    left_out = any("Left out at this width: where" in " ".join(lines) for _ in [0])
    assert left_out == (width < 91)
    if width >= 71:
        assert max(map(len, lines)) <= width


def test_columns_go_in_the_declared_order() -> None:
    cells = ("aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc", "dddddddddd")
    sheet = Sheet(("a", "b", "c", "d"), (cells,), drop=("c", "a", "d"))
    assert [sheet.layout(w).dropped for w in (46, 45, 33, 21)] == [(), ("c",), ("a", "c"), ("a", "c", "d")]
    assert sheet.layout(5).columns == (1,)
    assert sheet.layout(5).width == 10, "what is left is whole"


def test_headers_fold_where_nothing_else_helps() -> None:
    """Names of classes over counts."""
    sheet = Sheet(("true", "a long class", "another one"), (("a", "1,234", "5"),))
    assert sheet.layout(20).widths == (1, 5, 1) or sheet.layout(20).width <= 20
    assert "1,234" in " ".join(shown(sheet, 12))


def test_a_long_word_of_prose_may_break_and_a_number_may_not() -> None:
    path, figure = "/a/very/long/path/" * 4, "123,456,789,012,345,678,901,234,567,890"
    sheet = Sheet(("x", "prose"), (("1", f"{path} {figure}"),), fold=frozenset({"prose"}))
    assert any(figure in line for line in shown(sheet, 60))
    assert not any(path in line for line in shown(sheet, 60))


def test_wide_characters_are_measured_on_a_terminal_too() -> None:
    sheet = Sheet(("x", "y"), (("日本語" * 5, "1"),))
    assert sheet.layout(80).widths == (30, 1)


def test_a_column_that_is_not_there_cannot_fold() -> None:
    with pytest.raises(ValueError, match="no column 'z'"):
        Sheet(("a",), (), fold=frozenset({"z"}))
    with pytest.raises(ValueError, match="no column 'y'"):
        Sheet(("a",), (), drop=("y",))
