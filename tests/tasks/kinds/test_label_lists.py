"""Which tables have several labels a row, and what is refused of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from autopeft.errors import DataError
from autopeft.tasks import load_task
from autopeft.tasks.kinds.label_lists import LabelsSchema
from autopeft.tasks.table import ColumnNames, Columns, Table

NONE, SCHEMA = ColumnNames(), LabelsSchema()
MARKED = {"text": ["x", "y"], "a": [0, 1], "b": ["1", "0"]}


@pytest.mark.parametrize(
    ("columns", "named", "fits"),
    [
        ({"text": ["x"], "labels": [["a", "b"]]}, NONE, True),
        ({"text": ["x", "y"], "tags": [[], [3]]}, NONE, True),
        ({"sentence1": ["x"], "sentence2": ["y"], "label": [("a",)]}, NONE, True),
        (MARKED, ColumnNames(None, None, "a,b"), True),
        (MARKED, ColumnNames(None, None, "a, nope"), False),
        ({"text": ["x"], "label": ["a"]}, NONE, False),
        ({"text": ["x", "y", "z"], "labels": ["['a', 'b']", '["a"]', "c"]}, NONE, True),
        ({"text": ["x", "y", "z"], "labels": ["[1 0]", " [3, -4]", "[]"]}, NONE, True),
        ({"text": ["x", "y", "z"], "labels": ["[a]", "['a'", "[1.5]"]}, NONE, False),
        ({"text": ["x"], "labels": [[{"a": 1}]]}, NONE, False),
        ({"text": [["x"]], "labels": [["a"]]}, NONE, False),
        ({"text": ["x"], "labels": [[0.5, 1.0]]}, NONE, False),
        ({"text": [["x", "y", "z"]], "labels": [[0, 1, 1]]}, NONE, False),
    ],
)
def test_which_tables_are_claimed(columns: dict[str, Any], named: ColumnNames, fits: bool) -> None:
    assert bool(SCHEMA.claim({"train": Table("x", columns, {})}, named)) is fits


def test_columns_of_marks() -> None:
    table = Table("x", MARKED, {})
    chosen = SCHEMA.columns(table, ColumnNames(None, None, "b,a"))
    assert chosen == Columns("text", None, "b,a")
    raw = SCHEMA.read(table, chosen)
    assert raw.labels == [["b"], ["a"]]
    assert raw.fields == {"b": [1, 0], "a": [0, 1]}
    with pytest.raises(DataError, match="no column 'c' for --label"):
        SCHEMA.columns(table, ColumnNames(None, None, "a,c"))
    with pytest.raises(DataError, match="names a column twice"):
        SCHEMA.columns(table, ColumnNames(None, None, "a,a"))
    for wrong in (2, "yes", None, [1], float("nan")):
        odd = Table("x", {**MARKED, "a": [0, wrong]}, {})
        with pytest.raises(DataError, match="'a' has something other than 0 and 1 in row 2"):
            SCHEMA.read(odd, chosen)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([["a"], "b"], "something that is no list of labels in row 2"),
        ([["a"], None], "something that is no list of labels in row 2"),
        ([["a"], "['b']"], "a list that was printed as text (save lists as JSON lines or Parquet) in row 2"),
        ([["a"], [["b"]]], "a label that is neither text nor a whole number in row 2"),
        ([[True], ["a"]], "a label that is neither text nor a whole number in row 1"),
        ([[10**20], ["a"]], "a label that is neither text nor a whole number in row 1"),
        ([["a"], [" "]], "a label that is neither text nor a whole number in row 2"),
        ([["a"], ["\ud800"]], "a label that is not Unicode in row 2"),
        ([["a"] * 10_001, ["a"]], "more than 10,000 labels in row 1"),
    ],
)
def test_bad_rows_are_named_and_counted(labels: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        SCHEMA.read(Table("x", {"text": ["x", "y"], "l": labels}, {}), Columns("text", None, "l"))
    assert said in str(caught.value)


@pytest.mark.parametrize("mark", [int, float, bool, np.int64])
@pytest.mark.parametrize("box", [list, np.array])
def test_marks_in_the_place_of_labels_are_claimed_and_refused(mark: Any, box: Any) -> None:
    """They were read as labels called 0 and 1."""
    marks = [box([mark(m) for m in row]) for row in ([0, 1, 0], [1, 1, 0], [0, 0, 0])]
    told = Table("t", {"text": ["a", "b", "c"], "labels": marks}, {})
    assert SCHEMA.claim({"train": told}, ColumnNames())
    with pytest.raises(DataError, match="'labels' has lists of 0 and 1"):
        SCHEMA.read(told, SCHEMA.columns(told, ColumnNames()))


@pytest.mark.parametrize(
    "labels", [[[0, 1], [1, 0], [1]], [[0, 1], [1, 0]], [[0, 2, 2], [1, 1, 0]], [[], []]]
)
def test_lists_that_may_be_labels_are_read_as_such(labels: list[list[int]]) -> None:
    told = Table("t", {"text": ["a", "b", "c"][: len(labels)], "labels": labels}, {})
    raw = SCHEMA.read(told, SCHEMA.columns(told, ColumnNames()))
    assert raw.labels == [[str(label) for label in row] for row in labels]


def test_names_that_the_format_notes() -> None:
    table = Table("x", {"text": ["x", "y"], "l": [[1, 0], ["no"]]}, {"l": ("no", "yes")})
    assert SCHEMA.read(table, Columns("text", None, "l")).labels == [["yes", "no"], ["no"]]
    table = Table("x", {"text": ["x"], "l": [[2]]}, {"l": ("no", "yes")})
    with pytest.raises(DataError, match="a label that is none of its 2 labels in row 1"):
        SCHEMA.read(table, Columns("text", None, "l"))


def test_both_layouts_give_the_same_labels() -> None:
    rows = [(f"text {i}", [name for k, name in enumerate("abc") if i >> k & 1]) for i in range(40)]
    lists = load_task(pd.DataFrame(rows, columns=["text", "labels"]))
    frame = pd.DataFrame([{"text": t, **{n: int(n in own) for n in "abc"}} for t, own in rows])
    marks = load_task(frame, label="a,b,c")
    assert lists.kind == marks.kind == "multi_label"
    assert lists.labels == marks.labels == ("a", "b", "c")
    assert lists.splits["train"].labels == marks.splits["train"].labels
    assert marks.reading.columns == {"text": "text", "label": "a,b,c", "a": "a", "b": "b", "c": "c"}
    assert marks.reading.ignored == ()
