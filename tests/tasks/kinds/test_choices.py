"""Questions with choices: the field's layouts, errors with row numbers, and the tokens of choices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.language import word_tokenizer

from autopeft.errors import DataError
from autopeft.tasks import load_task
from autopeft.tasks.kinds import choose_kind, get_kind
from autopeft.tasks.kinds.choices import EncodedChoices
from autopeft.tasks.split import Split
from autopeft.tasks.table import ColumnNames, RawRows, Table

KIND = get_kind("multiple_choice")
NONE = ColumnNames()
ARC = [
    {"text": ["one", "two", "three"], "label": ["A", "B", "C"]},
    {"text": ["one", "two", "three", "four"], "label": ["1", "2", "3", "4"]},
]
SPLIT = Split(
    ["what follows one", "what is", "what follows four"],
    None,
    [1, 0, 2],
    {"choices": [["one", "two"], ["three", "four five"], ["one", "two", "five"]]},
)


def table(**columns: list[Any]) -> Table:
    return Table("data.jsonl", columns, {})


def read(found: Table, named: ColumnNames = NONE) -> RawRows:
    return KIND.schema.read(found, KIND.schema.columns(found, named))


@pytest.mark.parametrize(
    ("columns", "texts", "choices", "labels"),
    [
        (
            {"question": ["a?", "b?"], "choices": ARC, "answerKey": ["C", "4"], "id": [1, 2]},
            ["a?", "b?"],
            [["one", "two", "three"], ["one", "two", "three", "four"]],
            [2, 3],
        ),
        (
            {"question": ["a?", "b?"], "choices": [["x", "y"], ["y", "x", "z"]], "answer": [1, 2], "id": "s"},
            ["a?", "b?"],
            [["x", "y"], ["y", "x", "z"]],
            [1, 2],
        ),
        (
            {"ctx": ["A man", "Cats"], "endings": [["sits.", "runs."], ["eats.", "is"]], "label": ["1", "0"]},
            ["A man", "Cats"],
            [["sits.", "runs."], ["eats.", "is"]],
            [1, 0],
        ),
        (
            {"sent1": ["It rains."], "sent2": ["I"], "ending0": ["walk"], "ending1": ["sit"], "label": [1]},
            ["It rains. I"],
            [["walk", "sit"]],
            [1],
        ),
        ({"goal": ["Boil"], "sol1": ["a"], "sol2": ["b"], "label": [0]}, ["Boil"], [["a", "b"]], [0]),
        (
            {"article": ["Long."], "question": ["Who?"], "options": [["me", "you"]], "answer": ["b"]},
            ["Long.\nWho?"],
            [["me", "you"]],
            [1],
        ),
        (
            {"question": ["a?", "b?"], "choices": [["x", "y"], ["B", "A"]], "answer": ["x", "A"]},
            ["a?", "b?"],
            [["x", "y"], ["B", "A"]],
            [0, 1],
        ),
        (
            {
                "premise": ["p", "q"],
                "choice1": ["a", "b"],
                "choice2": ["c", "d"],
                "choice3": ["e", None],
                "label": [2.0, 1],
            },
            ["p", "q"],
            [["a", "c", "e"], ["b", "d"]],
            [2, 1],
        ),
    ],
)  # fmt: skip
def test_layouts(columns: dict[str, list[Any]], texts: list[str], choices: Any, labels: list[int]) -> None:
    found = read(table(**columns))
    assert (found.texts, found.fields["choices"], found.labels) == (texts, choices, labels)
    assert choose_kind({"train": table(**columns)}, NONE) == KIND


@pytest.mark.parametrize("names", [[1, 2, 3], ["1", "2", "3"], [10, 20, 30], ["A", "B", "C"]])
def test_numbers_that_name_choices_are_no_places(names: list[Any]) -> None:
    choices = [{"text": ["x", "y", "z"], "label": names}] * 3
    answers = names if isinstance(names[0], int) else [1, 2, 3] if names[0] == "1" else [0, 1, 2]
    assert read(table(question=["a?"] * 3, choices=choices, answerKey=answers)).labels == [0, 1, 2]
    if names[0] != "A":
        with pytest.raises(DataError, match="in row 1"):
            read(table(question=["a?"] * 3, choices=choices, answerKey=[0, *answers[1:]]))


def test_a_premise_stands_before_its_question() -> None:
    copa = {
        "premise": ["It rained.", "He ran."],
        "choice1": ["a", "c"],
        "choice2": ["b", "d"],
        "label": [0, 1],
    }
    asked = read(table(**copa, question=["cause", "effect"]))
    assert asked.texts == ["It rained.\ncause", "He ran.\neffect"]
    assert asked.fields["passages"] == copa["premise"]
    alone = read(table(**copa))
    assert alone.texts == copa["premise"]
    assert "passages" not in alone.fields


@pytest.mark.parametrize("same", ["Which is true?", None])
def test_rows_that_ask_the_same_of_other_choices_are_split(same: str | None) -> None:
    """What has one question and one right choice stays together all the same."""
    rows = [
        {"question": same or f"q{i // 3}", "choices": [f"a{i // 3}", f"b{i}"], "answer": 0, "row": i}
        for i in range(90)
    ]
    task = load_task(pd.DataFrame(rows), kind=KIND.name)
    choices = [[tuple(own) for own in split.fields["choices"]] for split in task.splits.values()]
    assert sorted(own for part in choices for own in part) == sorted(tuple(row["choices"]) for row in rows)
    right = [{own[0] for own in part} for part in choices]
    assert all(right)
    assert sum(map(len, right)) == len(set.union(*right)) == 30


def test_arrays_and_lists_of_records_are_choices_too() -> None:
    records = [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]
    found = read(table(question=["a?", "b?"], choices=[np.array(["x", "y"]), records], answer=["B", "A"]))
    assert found.labels == [1, 0]
    assert found.fields["choices"] == [["x", "y"], ["x", "y"]]


def test_questions_on_one_text_stay_together_and_its_column_is_used() -> None:
    rows = [
        {
            "article": f"text {i // 5}" if i < 45 else "",
            "question": f"q{i}",
            "options": ["x", "y"],
            "answer": i % 2,
        }
        for i in range(50)
    ]
    task = load_task(pd.DataFrame([{**row, "id": 1} for row in rows]), kind=KIND.name)
    parts = [set(KIND.schema.alike(split)) for split in task.splits.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 9 + 5, (
        "those without a text stand for themselves"
    )
    assert task.splits["test"].texts[0].startswith("text ")
    assert {"article", "options"} <= set(task.reading.columns.values())
    assert task.reading.ignored == ("id",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer": [0, 2, 1]}, r"'answer' has no index, letter or text of one .* in row 2"),
        ({"answer": [0, -1, 7]}, r"in rows 2, 3"),
        ({"answer": ["a", "c", True]}, r"in rows 2, 3"),
        ({"answer": ["A", None, "½"]}, r"in rows 2, 3"),
        ({"choices": [["x", "y"], ["x"], "xy"]}, r"no list of 2 to 26 texts in rows 2, 3"),
        ({"choices": [["x", "y"], ["x"] * 27, {"text": "xy"}]}, r"no list of 2 to 26 texts in rows 2, 3"),
        ({"choices": [["x", "y"], "['x', 'y']", "['x' 'y']"]}, r"printed as text \(save .* in rows 2, 3"),
        ({"choices": [["x", "y"], ["x", " "], ["x", 3]]}, r"an empty choice .* in rows 2, 3"),
        ({"choices": [["x", "y"], ["x", "\ud800"], ["x", "y"]]}, r"not Unicode in row 2"),
        (
            {"choices": [["x", "y"], {"text": ["x", "y"], "label": ["A"]}, {"text": ["x", "y"], "label": 5}]},
            r"labels that do not name each of its texts in rows 2, 3",
        ),
        (
            {"choices": [["x", "y"], {"text": ["x", "y"], "label": ["A", None]}, ["x", "y"]]},
            r"do not name .* row 2",
        ),
        ({"question": ["a", " ", None]}, r"'question' has no text in rows 2, 3"),
    ],
)
def test_rows_that_are_refused(changes: dict[str, list[Any]], said: str) -> None:
    columns = {"question": ["a", "b", "c"], "choices": [["x", "y"]] * 3, "answer": [0, 1, 1]}
    with pytest.raises(DataError, match=said):
        read(table(**{**columns, **changes}))


def test_columns_that_are_not_there() -> None:
    with pytest.raises(DataError, match="no columns of choices"):
        KIND.schema.columns(table(question=["a"], answer=["b"]), NONE)
    with pytest.raises(DataError, match="for the right choice"):
        KIND.schema.columns(table(question=["a"], choices=[["x", "y"]]), NONE)
    with pytest.raises(DataError, match="for the question"):
        KIND.schema.columns(table(q=["a"], choices=[["x", "y"]], answer=[0]), NONE)
    with pytest.raises(DataError, match="has no second text"):
        KIND.schema.columns(
            table(question=["a"], choices=[["x", "y"]], answer=[0]), ColumnNames(text_pair="answer")
        )
    with pytest.raises(DataError, match="has no rows"):
        read(table(question=[], choices=[], answer=[]))
    named = KIND.schema.columns(
        table(q=["a"], choices=[["x", "y"]], right=[0]), ColumnNames("q", None, "right")
    )
    assert (named.text, named.label) == ("q", "right")
    assert KIND.schema.text_columns(table(question=["a"], choices=[["x", "y"]]), NONE).label is None
    with pytest.raises(DataError, match="--text-column"):
        KIND.schema.text_columns(table(q=["a"], choices=[["x", "y"]]), NONE)
    with pytest.raises(DataError, match="has no column 'foo' for --text-column"):
        KIND.schema.text_columns(table(question=["a"], choices=[["x", "y"]]), ColumnNames("foo"))


def test_other_tables_are_not_claimed() -> None:
    assert not KIND.schema.claim({"train": table(question=["a?"], answer=["b"])}, NONE)
    assert not KIND.schema.claim({"train": table(text=["a"], option_1=["x"], label=[0])}, NONE)
    assert not KIND.schema.claim({"train": table(question=["a"], choices=["x, y"], answer=[0])}, NONE)
    printed = table(question=["a"], choices=["['x', 'y']"], answer=[0])
    assert KIND.schema.claim({"train": printed}, NONE), "it is refused, and not read as something else"
    assert choose_kind({"train": table(prompt=["a"], completion=["b"])}, NONE).name == "causal_lm"


def encoded() -> EncodedChoices:
    found = KIND.encoder.encode(SPLIT, word_tokenizer(None), 32, cached=False)
    assert isinstance(found, EncodedChoices)
    return found


def test_what_is_measured_depends_on_where_a_choice_begins() -> None:
    found = encoded()
    other = replace(found, sequences=replace(found.sequences, learnt=~found.sequences.learnt))
    assert found.fingerprint == other.fingerprint
    assert found.labels_fingerprint == encoded().labels_fingerprint != other.labels_fingerprint


def test_a_batch_has_the_choices_of_its_rows_one_after_the_other() -> None:
    tokenizer, found = word_tokenizer(None), encoded()
    batch = found.collate([2, 0])
    assert batch["beside_choice_of"].tolist() == [[0, 3], [0, 3], [0, 4], [1, 3], [1, 3]]
    texts = [
        tokenizer.decode(row[mask.bool()])
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert texts[0] == "what follows four one"
    assert texts[4] == "what follows one two"
    learnt = [tokenizer.decode(row[row >= 0]) for row in batch["labels"]]
    assert learnt == ["one", "two", "five", "one", "two"], "no end tokens"


def test_training_learns_the_right_choice_with_its_end() -> None:
    tokenizer = word_tokenizer(None)
    found = KIND.encoder.encode_splits({"train": SPLIT}, tokenizer, 32)["train"]
    batch = found.collate([0, 1, 2])
    learnt = [tokenizer.decode(row[row >= 0]) for row in batch["labels"]]
    assert learnt == ["two </s>", "three </s>", "five </s>"]


def test_a_template_ends_what_is_learnt_and_not_what_is_scored() -> None:
    tokenizer = word_tokenizer()
    scored = KIND.encoder.encode(SPLIT, tokenizer, 32, cached=False).collate([0])
    trained = KIND.encoder.encode_splits({"train": SPLIT}, tokenizer, 32)["train"].collate([0])
    assert [tokenizer.decode(row[row >= 0]) for row in scored["labels"]] == ["one", "two"]
    assert [tokenizer.decode(row[row >= 0]) for row in trained["labels"]] == ["two <|end|>"]


def test_parts_and_batches_of_rows() -> None:
    found = encoded()
    assert len(found) == 3
    assert found.lengths.tolist() == [4, 4, 4]
    part = found.take(np.array([2, 1]))
    assert (len(part), part.labels.tolist(), part.starts.tolist()) == (2, [2, 0], [0, 3, 5])
    for key, value in part.collate([0, 1]).items():
        assert value.tolist() == found.collate([2, 1])[key].tolist(), key
    assert [rows.tolist() for rows in found.batch_indices(4)] == [[0, 1], [2]]
    assert [rows.tolist() for rows in found.batch_indices(1)] == [[0], [1], [2]]
    assert np.concatenate(found.batch_indices(4)).tolist() == found.order().tolist()
    assert sorted(np.concatenate(found.batch_indices(2, shuffle=True, seed=1)).tolist()) == [0, 1, 2]


def test_copies_are_questions_with_the_same_choices() -> None:
    found = encoded()
    assert found.take(np.array([2, 0, 2, 1])).copies().tolist() == [0, 1, 0, 3]
