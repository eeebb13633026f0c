"""Layouts of conversations: which columns are meant, what rows become, and what is said of wrong ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
from pyarrow import parquet
from support.language import chats

from autopeft.errors import DataError
from autopeft.tasks import load_task
from autopeft.tasks.files import read_file
from autopeft.tasks.kinds import choose_kind
from autopeft.tasks.kinds.conversations import (
    PAIRS,
    AnswersSchema,
    pair_columns,
    problems_of,
    read_conversations,
)
from autopeft.tasks.table import ColumnNames, Columns, RawRows, Table

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be brief"}


def table(**columns: list[Any]) -> Table:
    return Table("data.jsonl", columns, {})


def read(found: Table, **named: str) -> RawRows:
    return read_conversations(found, AnswersSchema().columns(found, ColumnNames(**named)))


def kind_of(found: Table, **named: str) -> str:
    return choose_kind({"train": found}, ColumnNames(**named)).name


def test_messages_and_sharegpt_are_the_same_conversation() -> None:
    openai = read(table(messages=[[SYSTEM, USER, ASSISTANT]]))
    sharegpt = read(
        table(
            conversations=[
                [
                    {"from": "system", "value": "be brief"},
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "hello"},
                ]
            ]
        )
    )
    assert openai.fields["messages"] == sharegpt.fields["messages"] == [[SYSTEM, USER, ASSISTANT]]
    assert openai.texts == ["system: be brief\nuser: hi"]
    assert openai.labels == ["hello"]


def test_answers_of_weight_0_keep_it_in_either_layout() -> None:
    def row(weight: Any) -> list[dict[str, Any]]:
        return [USER, {**ASSISTANT, "weight": weight}, USER, {**ASSISTANT, "weight": None}]

    unlearnt = [USER, {**ASSISTANT, "weight": 0}, USER, ASSISTANT]
    for weight, wanted in ((0, unlearnt), (0.0, unlearnt), (1, [USER, ASSISTANT] * 2)):
        names = {"user": "human", "assistant": "gpt"}
        sharegpt = [
            {"from": names[m["role"]], "value": m["content"], "weight": m.get("weight")} for m in row(weight)
        ]
        assert read(table(messages=[row(weight)])).fields["messages"] == [wanted]
        assert read(table(conversations=[sharegpt])).fields["messages"] == [wanted]


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ((0.5, 1), "neither 0 nor 1"),
        (("0", 1), "neither 0 nor 1"),
        (([], 1), "neither 0 nor 1"),
        ((1, 0), "a last answer of weight 0"),
    ],
)
def test_weights_that_nothing_can_be_made_of_are_refused(weights: tuple[Any, Any], why: str) -> None:
    first, last = ({**ASSISTANT, "weight": weight} for weight in weights)
    with pytest.raises(DataError, match=why):
        read(table(messages=[[USER, first, USER, last]]))


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("prompt", "completion"), ("Question", "Answer"), ("instruction", "response"), ("query", "output")],
)
def test_prompts_and_answers_are_found_by_their_usual_names(prompt: str, answer: str) -> None:
    raw = read(table(id=[1], **{prompt: ["hi"], answer: ["hello"]}))
    assert raw.fields["messages"] == [[USER, ASSISTANT]]
    assert (raw.texts, raw.labels) == (["hi"], ["hello"])


def test_named_columns_go_first() -> None:
    found = table(prompt=["no"], completion=["no"], a=["hi"], b=["hello"])
    assert read(found, text="a", label="b").fields["messages"] == [[USER, ASSISTANT]]
    with pytest.raises(DataError, match="no column 'c' for --label"):
        read(found, text="a", label="c")
    with pytest.raises(DataError, match="prompt and answer at once"):
        read(found, text="a", label="a")
    with pytest.raises(DataError, match="no second text"):
        read(found, text="a", text_pair="b")


def test_an_input_of_alpaca_may_be_empty() -> None:
    raw = read(table(instruction=["add", "greet"], input=["1 2", ""], output=["3", "hello"]))
    assert raw.texts == ["add\n\n1 2", "greet"]
    assert raw.fields["input"] == ["1 2", ""]


def test_whole_numbers_are_answers() -> None:
    raw = read(table(prompt=["1 + 3", "2 - 9", "6 * 7"], completion=[4, np.int64(-7), "42"]))
    assert raw.labels == ["4", "-7", "42"]
    for wrong in (True, 4.5, float("nan")):
        with pytest.raises(DataError, match="a message that is not text"):
            read(table(prompt=["x"], completion=[wrong]))


def test_what_stands_in_a_folder_is_read_as_in_a_file(tmp_path: Path) -> None:
    """Numbers of a CSV file are text, and whoever reads text finds it."""
    lines = [f"{i}.50,{i / 2}" for i in range(30)]
    for path in (tmp_path / "alone.csv", tmp_path / "folder" / "train.csv"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["prompt,answer", *lines]) + "\n")
    alone, folder = (load_task(tmp_path / name) for name in ("alone.csv", "folder"))
    assert folder.splits == alone.splits
    assert folder.source.sha256 == alone.source.sha256
    assert "1.50" in [text for split in folder.splits.values() for text in split.texts]


def test_the_column_that_is_wrong_is_named() -> None:
    for prompts, answers, wrong in (
        (["a", "b"], [0.5, 1.5], "answer"),
        ([0.5, 1.5], ["a", "b"], "prompt"),
        (["a", 1.5], [0.5, "b"], "answer"),
    ):
        told = Table("t", {"prompt": prompts, "answer": answers}, {})
        with pytest.raises(DataError, match=f"column '{wrong}' has a message that is not text in row"):
            read_conversations(told, Columns("prompt", None, "answer"))


def test_numbers_of_a_folder_are_answers_as_they_stand_there(tmp_path: Path) -> None:
    for name, answers in (("whole", ["4", "-7"]), ("code", ["007", "12"])):
        (tmp_path / name).mkdir()
        rows = [f"q{i} {answers[i % 2]},{answers[i % 2]}" for i in range(40)]
        (tmp_path / name / "train.csv").write_text("\n".join(["prompt,completion", *rows]))
        task = load_task(tmp_path / name, kind="causal_lm")
        assert {label for split in task.splits.values() for label in split.labels} == set(answers)


@pytest.mark.parametrize("missing", [None, "", " ", float("nan")])
def test_a_row_that_is_asked_may_lack_its_answer(missing: Any) -> None:
    found = table(prompt=["hi", "bye"], completion=["hello", missing])
    columns = AnswersSchema().text_columns(found, ColumnNames())
    assert problems_of(found, columns, asked=True) == {}
    assert read_conversations(found, columns, asked=True).fields["messages"][1] == [
        {"role": "user", "content": "bye"}
    ]


def test_a_plain_text_is_learnt_as_a_whole() -> None:
    raw = read(table(text=["hello"]))
    assert raw.fields["messages"] == [[ASSISTANT]]
    assert raw.texts == raw.labels == ["hello"]


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([USER], "a last message that is not the assistant's"),
        ([ASSISTANT, USER], "roles out of order"),
        ([USER, SYSTEM, ASSISTANT], "roles out of order"),
        ([SYSTEM], "roles out of order"),
        ([USER, {"role": "tool", "content": "x"}, ASSISTANT], "a role other than system, user and assistant"),
        ([USER, {"role": ["a"], "content": "x"}], "a role other than"),
        ([USER, {**ASSISTANT, "content": " "}], "an empty answer"),
        ([USER, {"role": "assistant"}], "an empty answer"),
        ([{**USER, "content": ""}, ASSISTANT], "an empty prompt"),
        ([USER, {**ASSISTANT, "content": ["hello"]}], "a message that is not text"),
        ([USER, {**ASSISTANT, "content": "\ud800"}], "not Unicode"),
        ([], "no list of messages"),
        (["hi"], "no list of messages"),
        ("hi", "no list of messages"),
        (None, "no text"),
        (5, "not text"),
    ],
)
def test_wrong_conversations_are_named_by_row(messages: Any, what: str) -> None:
    good = [USER, ASSISTANT]
    with pytest.raises(DataError, match=f"column 'messages' has .*{what}.* in row 2"):
        read(table(messages=[good, messages, good]))


def test_the_first_five_rows_are_named_and_the_others_counted() -> None:
    with pytest.raises(DataError, match=r"'answer'.* rows 1, 2, 3, 4, 5 and 3 more"):
        read(table(question=["hi"] * 8, answer=[""] * 8))
    with pytest.raises(DataError, match=r"'question' has an empty prompt in row 1\."):
        read(table(question=["", "b"], answer=["c", "d"]))


def test_wrong_rows_can_be_listed() -> None:
    found = table(messages=[[USER, ASSISTANT], [USER]])
    assert list(problems_of(found, AnswersSchema().columns(found, ColumnNames()))) == [1]


def test_what_is_claimed() -> None:
    rows = [str(i) for i in range(40)]
    assert kind_of(table(messages=[[USER, ASSISTANT]])) == "causal_lm"
    assert kind_of(table(prompt=["a"], completion=["b"])) == "causal_lm"
    assert kind_of(table(body=rows, reply=[f"x{r}" for r in rows]), text="body", label="reply") == "causal_lm"
    assert kind_of(table(text=["a"])) == "causal_lm"


def test_what_stays_classification() -> None:
    assert kind_of(table(text=["a", "b"], label=["x", "y"])) == "classification"
    assert kind_of(table(text=["a", "b"], verdict=["x", "y"])) == "classification"
    assert kind_of(table(question=["a"], answer=["b"], label=[1])) == "classification"
    assert kind_of(table(prompt=["a"] * 50, answer=["x", "y"] * 25), label="answer") == "classification"
    assert kind_of(table(body=["a"]), text="body") == "classification"


def test_numbers_stay_regression() -> None:
    numbers = [i + 0.5 for i in range(40)]
    assert kind_of(table(question=["a"] * 40, y=numbers), text="question", label="y") == "regression"


def written(folder: Path) -> dict[str, Any]:
    rows = chats(12)
    columns = {"messages": rows}
    (folder / "c.jsonl").write_text("".join(json.dumps({"messages": r}) + "\n" for r in rows))
    (folder / "c.json").write_text(json.dumps([{"messages": r} for r in rows]))
    parquet.write_table(pyarrow.table(columns), folder / "c.parquet")
    return {
        "frame": pandas.DataFrame(columns),
        **{s: folder / f"c.{s}" for s in ("jsonl", "json", "parquet")},
    }


def test_every_format_gives_the_same_task(tmp_path: Path) -> None:
    from datasets import Dataset

    found = {name: load_task(data) for name, data in written(tmp_path).items()}
    found["dataset"] = load_task(Dataset.from_dict({"messages": chats(12)}))
    assert len({task.source.sha256 for task in found.values()}) == 1
    assert {task.kind for task in found.values()} == {"causal_lm"}
    assert found["json"].reading.columns == {"text": "messages"}


def test_messages_in_csv_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps([USER, ASSISTANT])]])
    with pytest.raises(DataError, match="no list of messages in row 1"):
        read(read_file(tmp_path / "c.csv"))


def test_columns_that_are_used_are_told(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    rows = [{"instruction": f"do {i}", "input": "", "output": f"done {i}", "id": i} for i in range(12)]
    path.write_text(json.dumps(rows))
    reading = load_task(path).reading
    assert reading.columns == {"text": "instruction", "label": "output", "input": "input"}
    assert reading.ignored == ("id",)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_sources_and_targets_are_found_by_their_usual_names(source: str, target: str) -> None:
    found = table(**{"id": [1, 2], source: ["a", "b"], target: ["c", "d"]})
    assert AnswersSchema().columns(found, ColumnNames()) == Columns(source, None, target)
    assert AnswersSchema().text_columns(found, ColumnNames()) == Columns(source, None, target)
    assert AnswersSchema().text_columns(table(**{source: ["a"]}), ColumnNames()) == Columns(
        source, None, None
    )
    assert kind_of(found) == "seq2seq"
    assert read(found).labels == ["c", "d"]


def test_either_side_of_a_pair_can_be_named() -> None:
    found = table(text=["a"], summary=["b"], title=["c"])
    assert AnswersSchema().columns(found, ColumnNames(text="title", label="summary")).text == "title"
    assert AnswersSchema().columns(found, ColumnNames(label="title")) == Columns("text", None, "title")
    assert AnswersSchema().columns(found, ColumnNames(text="text")) == Columns("text", None, "summary")
    assert pair_columns(found) == ("text", "summary")
    assert pair_columns(table(text=["a"])) is None


def test_a_column_of_classes_beside_a_pair_stays_what_is_predicted() -> None:
    assert kind_of(table(text=["a", "b"], summary=["c", "d"], label=["x", "y"])) == "classification"
    assert kind_of(table(source=["a", "b"], target=["x", "y"])) == "seq2seq"
    assert kind_of(table(prompt=["a", "b"], completion=["x", "y"])) == "causal_lm"
