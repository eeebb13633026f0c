"""Columns, missing values and the rule for what labels mean."""

from __future__ import annotations

from typing import Any

import pytest

from autopeft.errors import DataError
from autopeft.tasks.table import Columns, RawRows, Table, choose_columns, encode_labels, read_rows


def table(**columns: list[Any]) -> Table:
    return Table("data.csv", columns, {})


def rows(*labels: Any, where: str = "data.csv") -> RawRows:
    return RawRows(where, [f"t{i}" for i in range(len(labels))], None, list(labels))


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
    with pytest.raises(DataError, match=r"for the label; it has 'text', 'kind'\. Name it with --label"):
        chosen("text", "kind")
    with pytest.raises(DataError, match=r"for the text; it has 'x', 'label'\. Name it with --text"):
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


def test_named_classes_keep_their_order() -> None:
    named = Table("hub", {"text": ["a", "b"], "label": [1, 0]}, {"label": ("no", "maybe", "yes")})
    raw = read_rows(named, Columns("text", None, "label"))
    assert raw.labels == ["maybe", "no"]
    assert encode_labels([raw], None, ("no", "maybe", "yes"))[1:] == (("no", "maybe", "yes"), [[1, 0]])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["pos", "neg", "pos"], ("neg", "pos")),
        (["10", "9", "10"], ("9", "10")),
        ([1.0, "1", 0, "0.0"], ("0", "1")),
        ([True, False], ("False", "True")),
        (["0.5", "1.5", "0.5"], ("0.5", "1.5")),
        ([2**60, 2**60 + 1], (str(2**60), str(2**60 + 1))),
        (["1_0", "10"], ("10", "1_0")),
    ],
)
def test_classes(labels: list[Any], classes: tuple[str, ...]) -> None:
    kind, found, encoded = encode_labels([rows(*labels)], None)
    assert kind == "classification"
    assert found == classes
    assert len(encoded[0]) == len(labels)


def test_many_fractional_numbers_mean_regression() -> None:
    numbers = [i / 4 for i in range(44)]
    assert encode_labels([rows(*map(str, numbers))], None) == ("regression", (), [numbers])
    assert (
        encode_labels([rows(*map(str, numbers[:10]), *map(str, numbers[:10]))], None)[0] == "classification"
    )
    assert encode_labels([rows(*range(30))], "pearson")[0] == "regression"
    assert encode_labels([rows(*(i / 2 for i in range(12)), *(i / 2 for i in range(12)))], "accuracy")[0] == (
        "classification"
    )


@pytest.mark.parametrize(
    ("parts", "metric", "message"),
    [
        ([rows("a", "a")], None, "all rows have the label 'a'"),
        ([rows(*(f"id{i}" for i in range(50)))], None, "50 different labels in 50 rows are not classes"),
        ([rows("a", "b")], "pearson", "not all numbers"),
        ([rows(1.0, 1.0)], "pearson", "nothing to learn"),
        ([rows(0.5, float("inf"))], None, "not finite in row 2"),
        ([rows("a", "b"), rows("c", "a", where="test")], None, "test has labels that data.csv lacks.*'c'"),
    ],
)
def test_unusable_labels(parts: list[RawRows], metric: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_labels(parts, metric)
