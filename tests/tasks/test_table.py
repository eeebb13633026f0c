"""Columns and missing values."""

from __future__ import annotations

from typing import Any

import pytest

from autopeft.errors import DataError
from autopeft.tasks.table import Columns, Table, choose_columns, read_rows


def table(**columns: list[Any]) -> Table:
    return Table("data.csv", columns, {})


def chosen(
    *names: str, text: str | None = None, pair: str | None = None, label: str | None = None
) -> Columns:
    return choose_columns(table(**{name: [] for name in names}), text, pair, label)


def test_obvious_columns_are_found() -> None:
    assert chosen("idx", "Text", "Label") == Columns("Text", None, "Label")
    assert chosen("sentence1", "sentence2", "label") == Columns("sentence1", "sentence2", "label")
    assert chosen("question", "sentence", "label") == Columns("question", "sentence", "label")
    assert chosen("review", "rating") == Columns("review", None, "rating")
    assert chosen("sentence1", "sentence2", "label", text="sentence1") == Columns("sentence1", None, "label")
    assert chosen("a", "b", "c", text="a", pair="c", label="b") == Columns("a", "c", "b")


def test_missing_columns_are_named_with_those_that_exist() -> None:
    with pytest.raises(DataError, match=r"label.* 'text', 'kind'.* --label"):
        chosen("text", "kind")
    with pytest.raises(DataError, match=r"text.* 'x', 'label'.* --text"):
        chosen("x", "label")
    with pytest.raises(DataError, match=r"no column 'lable' for --label.*Did you mean 'label'"):
        chosen("text", "label", label="lable")
    with pytest.raises(DataError, match="two things at once"):
        chosen("text", "label", text="label")


def test_missing_values_are_reported_with_row_numbers() -> None:
    columns = Columns("text", None, "label")
    with pytest.raises(DataError, match=r"'text' has no text in rows 2, 3\."):
        read_rows(table(text=["a", " ", None], label=["x", "y", "z"]), columns)
    with pytest.raises(DataError, match=r"'label' has no label in rows 1, 2, 3, 4, 5 and 2 more"):
        read_rows(table(text=["a"] * 7, label=[None, "", float("nan"), None, None, None, None]), columns)
    with pytest.raises(DataError, match="something that is not text in row 2"):
        read_rows(table(text=["a", 5], label=[0, 1]), columns)
    with pytest.raises(DataError, match="neither text nor a number in row 1"):
        read_rows(table(text=["a"], label=[[1]]), columns)
    with pytest.raises(DataError, match="no rows"):
        read_rows(table(text=[], label=[]), columns)


def test_classes_that_the_format_names_are_read_by_name() -> None:
    named = Table("hub", {"text": ["a", "b"], "label": [1, 0]}, {"label": ("no", "maybe", "yes")})
    raw = read_rows(named, Columns("text", None, "label"))
    assert raw.labels == ["maybe", "no"]
