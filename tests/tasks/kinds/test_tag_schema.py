"""Which tables are words with tags, and what is refused of their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from support.words import tagged_rows, write_tagged

from autopeft.errors import DataError
from autopeft.tasks import load_task
from autopeft.tasks.kinds.tags import TagSchema, tagged
from autopeft.tasks.table import ColumnNames, Columns, RawRows, Table

CHOSEN = Columns("tokens", None, "tags")
NONE, SCHEMA = ColumnNames(), TagSchema()


def table(tokens: Any, tags: Any, names: dict[str, tuple[str, ...]] | None = None, **more: Any) -> Table:
    return Table("x", {"tokens": tokens, "tags": tags, **more}, names or {})


@pytest.mark.parametrize(
    ("columns", "named", "fits"),
    [
        ({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}, NONE, True),
        ({"words": [["a"]], "labels": [["X"]], "id": [1]}, NONE, True),
        ({"tokens": ["a b"], "tags": ["O B"]}, NONE, True),
        ({"Tokens": [("a", "b")], "POS_tags": [("X", "Y")]}, NONE, True),
        ({"sentence": [["a", "b"]], "y": [[0, 1]]}, ColumnNames("sentence", None, "y"), True),
        ({"text": ["a"], "label": ["x"]}, NONE, False),
        ({"sentence": ["a"], "label": ["x"]}, ColumnNames("sentence", None, "label"), False),
        ({"tokens": [["a", "b"]], "tags": [[0]]}, NONE, False),
        ({"tokens": [["a"]], "tags": [None]}, NONE, False),
        ({"tokens": [["a"]]}, NONE, False),
        ({"tokens": [], "tags": []}, NONE, False),
    ],
)
def test_which_tables_are_claimed(columns: dict[str, Any], named: ColumnNames, fits: bool) -> None:
    assert bool(SCHEMA.claim({"train": Table("x", columns, {})}, named)) is fits


def test_columns_that_cannot_be_found() -> None:
    assert SCHEMA.columns(table([["a"]], [["O"]], ner_tags=[["O"]]), NONE).label == "ner_tags"
    assert SCHEMA.text_columns(Table("x", {"id": [1], "text": ["a b"]}, {}), NONE) == Columns(
        "text", None, None
    )
    with pytest.raises(DataError, match="no column with an obvious name for the tags"):
        SCHEMA.columns(Table("x", {"tokens": [["a"]]}, {}), NONE)
    with pytest.raises(DataError, match="have no second text"):
        SCHEMA.columns(table([], []), ColumnNames(None, "b", None))
    with pytest.raises(DataError, match="words and tags at once"):
        SCHEMA.columns(table([], []), ColumnNames("tags", None, "tags"))
    with pytest.raises(DataError, match="no column 'nope' for --text-column"):
        SCHEMA.text_columns(table([], []), ColumnNames("nope"))


@pytest.mark.parametrize(
    ("tokens", "tags", "said"),
    [
        (
            [["a"], []],
            [["O"], []],
            "'tokens' has no text in row 2. Mend them, or leave them out with --drop-empty",
        ),
        ([["a"], None], [["O"], ["O"]], "no text in row 2"),
        ([["a"], {"b": 1}], [["O"], ["O"]], "something that is no list of words in row 2"),
        ([["a", " "], ["b"]], [["O", "O"], ["O"]], "an empty word, or one that is not text in row 1"),
        ([["a"], [["b"]]], [["O"], ["O"]], "an empty word, or one that is not text in row 2"),
        ([["a"], ["\ud800"]], [["O"], ["O"]], "text that is not Unicode in row 2"),
        ([["a"] * 100_001], [["O"] * 100_001], "more than 100,000 words in row 1"),
        ([["a"], ["b", "c"]], [["O"], ["O"]], "another number of tags than there are words in row 2"),
        ([["a"], ["b"]], [["O"], 3], "something that is no list of tags in row 2"),
        (["a b", "['a', 'b']"], ["O O", "['O', 'O']"], "a list that was printed as text (save lists as JSON"),
        ([["a"], ["b"]], [["O"], [["O"]]], "a tag that is neither text nor a whole number in row 2"),
        ([["a"], ["b"]], [[True], ["O"]], "neither text nor a whole number in row 1"),
        ([["a"], ["b"]], [[0.5], ["O"]], "neither text nor a whole number in row 1"),
        ([["a"], ["b"]], [[10**30], ["O"]], "neither text nor a whole number in row 1"),
        ([["a"]] * 9, [["O"]] + [[]] * 8, "in rows 2, 3, 4, 5, 6 and 3 more"),
    ],
)
def test_bad_rows_are_named_and_counted(tokens: Any, tags: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        SCHEMA.read(table(tokens, tags), CHOSEN)
    assert said in str(caught.value)


def test_names_that_the_format_notes() -> None:
    names = {"tags": ("O", "B-x")}
    raw = SCHEMA.read(table([["a", "b"]], [[1, "O"]], names), CHOSEN)
    assert raw.labels == [["B-x", "O"]]
    assert raw.texts == ["a b"]
    assert raw.fields == {"words": [["a", "b"]]}
    for wrong in (2, -1, "B-y"):
        with pytest.raises(DataError, match="a tag that is none of its 2 tags in row 1"):
            SCHEMA.read(table([["a"]], [[wrong]], names), CHOSEN)


def part(*rows: list[str], where: str = "x") -> RawRows:
    return RawRows(where, ["t"] * len(rows), None, list(rows), {})


def test_the_tag_outside_is_the_first() -> None:
    encode = SCHEMA.encode_labels
    names, rows = encode([part(["B-a", "O"], ["O", "I-a"])], ())
    assert names == ("O", "B-a", "I-a")
    assert [list(row) for row in rows[0]] == [[1, 0], [0, 2]]
    assert rows[0][0].names == names
    assert encode([part(["V", "N", "N"], ["A"])], ())[0] == ("N", "A", "V"), "most words have it"
    assert encode([part(["10", "9", "9"])], ())[0] == ("9", "10")
    assert encode([part(["B-a"])], ("B-a", "I-a", "O"))[0] == ("O", "B-a", "I-a"), "as the format notes"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([part(["O", "O"])], "all words have the tag 'O'"),
        ([part([str(i) for i in range(51)])], "51 different tags of 51 words are no tags"),
        ([part(["O", "B-a"]), part(["B-b"], where="y")], "y has tags that x lacks.*'B-b'"),
    ],
)
def test_tags_that_cannot_be_learnt(parts: list[RawRows], said: str) -> None:
    with pytest.raises(DataError, match=said):
        SCHEMA.encode_labels(parts, ())


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "conll"])
def test_each_layout_gives_the_same_task(suffix: str, tmp_path: Path) -> None:
    task = load_task(str(write_tagged(tmp_path / f"data.{suffix}")))
    assert (task.kind, task.metric) == ("token_classification", "entity_f1")
    assert task.labels == ("O", "B-bad", "B-good", "I-bad", "I-good")
    assert [len(split) for split in task.splits.values()] == [96, 12, 12]
    wanted = {" ".join(words): tags for words, tags in tagged_rows()}
    for split in task.splits.values():
        for text, tags in zip(split.texts, split.labels, strict=True):
            assert [task.labels[tag] for tag in tags] == wanted[text]
    assert task.source.sha256 == load_task(str(write_tagged(tmp_path / "other.jsonl"))).source.sha256


def test_the_hash_of_the_rows_knows_every_tag(tmp_path: Path) -> None:
    frame = pd.DataFrame(tagged_rows(), columns=["tokens", "tags"])
    first = load_task(frame).source.sha256
    frame.at[7, "tags"] = ["O", *frame.at[7, "tags"][1:]] if frame.at[7, "tags"][0] != "O" else [
        "B-good", *frame.at[7, "tags"][1:]
    ]  # fmt: skip
    assert load_task(frame).source.sha256 != first


def test_features_of_datasets_name_the_tags(tmp_path: Path) -> None:
    names = ["O", "B-bad", "B-good", "I-bad", "I-good"]
    rows = tagged_rows()
    kinds = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=names)),
        }
    )
    data = datasets.Dataset.from_dict(
        {"tokens": [w for w, _ in rows], "ner_tags": [[names.index(t) for t in tags] for _, tags in rows]},
        kinds,
    )
    data.to_parquet(tmp_path / "train.parquet")
    (tmp_path / "noted").mkdir()
    data.to_json(tmp_path / "noted" / "train.jsonl")
    entries = "".join(f"            '{i}': {name}\n" for i, name in enumerate(names))
    (tmp_path / "noted" / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: tokens\n    sequence: string\n  - name: ner_tags\n"
        f"    sequence:\n      class_label:\n        names:\n{entries}---\n"
    )
    for task in (data, str(tmp_path / "train.parquet"), str(tmp_path / "noted")):
        found = load_task(task)
        assert found.labels == tuple(names)
        assert found.metric == "entity_f1"


def test_empty_sentences_can_be_left_out(tmp_path: Path) -> None:
    frame = pd.DataFrame(tagged_rows(), columns=["tokens", "tags"])
    frame.at[3, "tokens"], frame.at[3, "tags"] = [], []
    with pytest.raises(DataError, match="no text in row 4"):
        load_task(frame)
    task = load_task(frame, drop_empty=True)
    assert sum(len(split) for split in task.splits.values()) == 119


def test_rows_that_are_to_be_tagged() -> None:
    asked = Table("x", {"text": ["a b", " ", ["c"], [], 3, None]}, {})
    found = SCHEMA.unanswerable(asked, Columns("text", None, None))
    assert set(found) == {1, 3, 4, 5}
    assert tagged(["Anna", "in", "New York"], ["B-PER", "O", "B-LOC"], "O") == "Anna/B-PER in New York/B-LOC"
