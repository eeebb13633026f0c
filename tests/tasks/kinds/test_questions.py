"""Questions on texts in SQuAD's layouts, and what is no answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.spans import question_rows, write_questions

from autopeft.errors import DataError
from autopeft.tasks import load_task
from autopeft.tasks.kinds import choose_kind
from autopeft.tasks.kinds.questions import QuestionSchema
from autopeft.tasks.table import ColumnNames, Columns, Table

PLAIN, SCHEMA = ColumnNames(), QuestionSchema()
COLUMNS = Columns("question", "context", "answers")


def table(*answers: Any, context: str = "Ann lives in Oslo .") -> Table:
    rows = len(answers)
    columns = {"question": ["where"] * rows, "context": [context] * rows, "answers": list(answers)}
    return Table("data.jsonl", columns, {})


def answer(*spans: tuple[str, Any]) -> dict[str, Any]:
    return {"text": [text for text, _ in spans], "answer_start": [start for _, start in spans]}


def test_each_layout_of_answers() -> None:
    oslo, both = answer(("Oslo", 13)), answer(("Oslo", 13), ("in Oslo", 10), ("Oslo", 13.0))
    listed = [{"text": "Oslo", "answer_start": 13}]
    arrays = {"text": np.array(["Oslo"], dtype=object), "answer_start": np.array([13])}
    raw = SCHEMA.read(table(oslo, both, listed, arrays, answer(), []), COLUMNS)
    assert raw.labels == [
        [[13, "Oslo"]], [[13, "Oslo"], [10, "in Oslo"]], [[13, "Oslo"]], [[13, "Oslo"]], [], [],
    ]  # fmt: skip
    assert (raw.texts[0], raw.pairs and raw.pairs[0]) == ("where", "Ann lives in Oslo .")
    assert SCHEMA.read(table(answer((" Oslo ", 12))), COLUMNS).labels == [[[13, "Oslo"]]]
    _, (part,) = SCHEMA.encode_labels([raw])
    assert part[1].texts == ["Oslo", "in Oslo"]
    assert all(answers.null for answers in part), "two rows have no answer"
    assert not SCHEMA.encode_labels([SCHEMA.read(table(oslo), COLUMNS)])[1][0][0].null


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (answer(("Oslo", 12)), "row 2 says that the answer 'Oslo' begins at letter 12 of its context, where"),
        (answer(("Oslo", 12)), ", where ' Osl' stands; answer_start counts letters from 0"),
        (answer(("Oslo", 99)), "begins at letter 99 of its context, which has 19 letters"),
        (answer(("Oslo", -1)), "has an answer_start that is no whole number from 0 in row 2"),
        (answer(("Oslo", True)), "no whole number from 0"),
        (answer(("Oslo", "13")), "no whole number from 0"),
        (answer(("Oslo", 13.5)), "no whole number from 0"),
        (answer(("Oslo", None)), "no whole number from 0"),
        (answer((13, 13)), "an answer that is empty or not text"),
        (answer((" ", 3)), "an answer that is empty or not text"),
        (answer(("\ud800", 3)), "text that is not Unicode"),
        ({"text": ["Oslo"], "answer_start": []}, "something that is no answers"),
        ({"text": "Oslo", "answer_start": 13}, "something that is no answers"),
        ({"text": ["Oslo"]}, "something that is no answers"),
        ([{"text": "Oslo"}], "something that is no answers"),
        ("Oslo", "something that is no answers"),
        (7, "something that is no answers"),
        (None, "column 'answers' has no label in row 2"),
        (float("nan"), "no label in row 2"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_one_sentence(value: Any, said: str) -> None:
    with pytest.raises(DataError) as error:
        SCHEMA.read(table(answer(("Oslo", 13)), value), COLUMNS)
    assert said in str(error.value)
    assert str(error.value).startswith("data.jsonl: ")
    assert "\n" not in str(error.value)


def test_columns_by_their_names() -> None:
    named = Table("x", {"Query": ["a"], "passage": ["b"], "Answers": [answer()]}, {})
    assert SCHEMA.columns(named, PLAIN) == Columns("Query", "passage", "Answers")
    assert SCHEMA.text_columns(named, PLAIN) == Columns("Query", "passage", None)
    own = Table("x", {"q": ["a"], "c": ["b"], "a": [answer()]}, {})
    assert SCHEMA.columns(own, ColumnNames("q", "c", "a")) == Columns("q", "c", "a")
    with pytest.raises(DataError, match=r"no column with an obvious name for the question.*--text"):
        SCHEMA.columns(own, PLAIN)
    with pytest.raises(DataError, match=r"obvious name for the context.*--text-pair-column"):
        SCHEMA.text_columns(own, ColumnNames("q"))
    with pytest.raises(DataError, match=r"obvious name for the answers.*--label"):
        SCHEMA.columns(own, ColumnNames("q", "c"))
    with pytest.raises(DataError, match="two things at once: q, q, a"):
        SCHEMA.columns(own, ColumnNames("q", "q", "a"))
    with pytest.raises(DataError, match="no column 'answers'"):
        SCHEMA.read(Table("x", {"question": ["a"], "context": ["b"]}, {}), COLUMNS)
    bare = Table("x", {"question": ["a"], "context": ["b"]}, {})
    assert SCHEMA.read(bare, Columns("question", "context", None)).labels == [None]


def test_which_tables_are_claimed() -> None:
    good = {"train": table(answer(("Oslo", 13)), answer(), "?")}
    assert choose_kind(good, PLAIN).name == "question_answering"
    assert SCHEMA.claim({"train": good["train"]}, PLAIN)
    for other in (
        table("Oslo", "Oslo"),
        Table("x", {"question": ["a"], "context": ["b"]}, {}),
        Table("x", {"question": ["a"], "context": ["b"], "answers": [["yes", "no"]]}, {}),
    ):
        assert not SCHEMA.claim({"train": other}, PLAIN)
    chosen = choose_kind({"train": Table("x", {"question": ["a"], "answer": ["b"]}, {})}, PLAIN)
    assert chosen.name == "causal_lm", "an answer in the model's own words"


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.jsonl: no row has an answer"):
        SCHEMA.encode_labels([SCHEMA.read(table(answer(), answer()), COLUMNS)])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".json"])
def test_files_of_each_layout_hold_the_same_rows(tmp_path: Path, suffix: str) -> None:
    task = load_task(str(write_questions(tmp_path / f"data{suffix}", 40, empty=5)))
    assert (task.kind, task.metric, task.labels) == ("question_answering", "squad_f1", ())
    read = {
        (question, context, answers)
        for split in task.splits.values()
        for question, context, answers in zip(split.texts, split.pairs or (), split.labels, strict=True)
    }
    wanted = set()
    for row in question_rows(40, empty=5):
        spans = zip(row["answers"]["answer_start"], row["answers"]["text"], strict=True)
        wanted.add((row["question"], row["context"], tuple(spans)))
    assert read == wanted
    assert task.reading.columns["label"] == "answers"


def test_rows_from_memory() -> None:
    import datasets
    import pandas

    rows = question_rows(40)
    for data in (datasets.Dataset.from_list(rows), pandas.DataFrame(rows)):
        assert load_task(data).kind == "question_answering"


def test_questions_on_one_text_stay_together(tmp_path: Path) -> None:
    rows = [
        {"question": f"which {k}", "context": f"text {i}", "answers": answer((str(i), 5))}
        for i in range(30)
        for k in range(3)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_task(str(path)).splits
    texts = [set(split.pairs or ()) for split in splits.values()]
    assert all(len(split) for split in splits.values())
    assert sum(map(len, texts)) == len(set().union(*texts)) == 30
