"""What a hybrid is asked and answers: files and tables as data, every row in its place, pairs as pairs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from autopeft.errors import DataError, UsageError
from autopeft.export.answers import PROBLEM, answers, read_questions
from autopeft.export.arguments import PredictArguments
from autopeft.export.manifest import Card
from autopeft.export.out_file import write_answers
from autopeft.export.package import Saved
from autopeft.export.trained import TrainedHybrid, trained

PAIRS = {"sentence1": ["a", "b"], "sentence2": ["c", " "]}


def known(
    folder: Path, *, pairs: bool | None = False, arguments: Any = None, name: str = "t"
) -> TrainedHybrid:
    """A hybrid of two classes, as its manifest tells."""
    data = {"name": name, "kind": "classification", "labels": ["no", "yes"], "metric": "accuracy"}
    if pairs is not None:
        data["pairs"] = pairs  # type: ignore[assignment]
    manifest = {"task": name, "model": "m", "backbone": {}, "data": data, "training": {"max_length": 16}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "arguments": arguments or {}}))
    return trained(Saved(folder, folder, Card.read(folder)))


def ask(hybrid: TrainedHybrid, texts: Any, **given: Any) -> Any:
    return read_questions(hybrid, texts, PredictArguments(**given))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".tsv"])
def test_a_file_is_read_as_a_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    frame = pandas.DataFrame({"id": ["1", "2", "3"], "body": ["one, two", "", "three"]})
    write = {
        ".csv": lambda: frame.to_csv(path, index=False),
        ".tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        ".parquet": lambda: frame.to_parquet(path),
    }
    write[suffix]()
    found = ask(known(tmp_path), path)
    assert found.texts == ["one, two", "", "three"]
    assert found.problems == {1: "no text"}
    assert found.rows is not None
    assert found.rows.texts == ["one, two", "three"]


def test_lines_keep_their_places(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufefffirst\r\n\r\nthi\u2028rd\n\n".encode())
    found = ask(known(tmp_path), path)
    assert found.texts == ["first", "", "thi\u2028rd", ""]
    assert list(found.problems) == [1, 3]


def test_an_empty_line_is_a_value_where_there_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("\ntext\na\n\nb\n")
    (tmp_path / "two.csv").write_text("text,id\na,1\n\nb,2\n")
    assert ask(known(tmp_path), tmp_path / "one.csv").texts == ["a", "", "b"]
    assert ask(known(tmp_path), tmp_path / "two.csv").texts == ["a", "b"]


def test_the_column_of_training_need_not_be_named_again(tmp_path: Path) -> None:
    hybrid = known(tmp_path, arguments={"text": "note"})
    both = pandas.DataFrame({"text": ["wrong"], "note": ["right"]})
    assert ask(hybrid, both).texts == ["right"]
    assert ask(hybrid, both, text_column="text").texts == ["wrong"]
    assert ask(hybrid, pandas.DataFrame({"text": ["only"]})).texts == ["only"]


def test_pairs_are_answered_as_pairs(tmp_path: Path) -> None:
    hybrid = known(tmp_path, pairs=True)
    found = ask(hybrid, pandas.DataFrame(PAIRS))
    assert (found.texts, found.pairs) == (["a", "b"], ["c", " "])
    assert found.problems == {1: "no second text"}
    assert found.rows is not None
    assert found.rows.pairs == ["c"]
    found = ask(hybrid, ["a"], text_pair=["b"])
    assert (found.texts, found.pairs) == (["a"], ["b"])
    named = pandas.DataFrame({"sentence1": ["a"], "other": ["c"], "sentence2": ["d"]})
    assert ask(hybrid, named, text_pair_column="other", text_column="sentence1").pairs == ["c"]
    # One of single texts takes one column, whatever the others are called.
    assert ask(known(tmp_path), pandas.DataFrame(PAIRS)).pairs is None


@pytest.mark.parametrize(
    ("pairs", "texts", "given", "says"),
    [
        (True, "a", {}, "trained on pairs of texts, but the second ones are missing.*--text-pair"),
        (True, pandas.DataFrame({"text": ["a"]}), {}, "second text of each pair.*--text-pair-column"),
        (False, "a", {"text_pair": ["b"]}, "trained on single texts; leave out text_pair"),
        (False, pandas.DataFrame(PAIRS), {"text_pair_column": "sentence2"}, "trained on single texts"),
        (None, ["a", "b"], {"text_pair": ["b"]}, "2 texts but 1 second texts"),
        (True, pandas.DataFrame(PAIRS), {"text_pair": ["b"]}, "stand in one of its columns"),
        (None, "a", {"text_column": "b"}, "name columns of a table"),
        (None, pandas.DataFrame({"x": ["a"]}), {"text_column": "y"}, "no column 'y' for --text-column"),
        (None, pandas.DataFrame({"x": ["a"]}), {}, "Name it with --text-column"),
        (None, pandas.DataFrame({"text": []}), {}, "nothing to predict"),
        (None, [], {}, "nothing to predict"),
        (None, Path("no.csv"), {}, r"There is no file no\.csv"),
        (None, Path("no.txt"), {}, r"no\.txt: cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(tmp_path: Path, pairs: bool | None, texts: Any, given: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        ask(known(tmp_path, pairs=pairs), texts, **given)
    assert len(str(caught.value).splitlines()) == 1


def test_a_manifest_says_whether_it_was_trained_on_pairs(tmp_path: Path) -> None:
    for pairs in (None, True, False):
        assert known(tmp_path, pairs=pairs).pairs is pairs


def test_answers_stand_in_the_rows_order(tmp_path: Path) -> None:
    hybrid = known(tmp_path, pairs=True)
    frame = pandas.DataFrame({"text": ["a", None, 3, "\ud800", "d"], "text_pair": ["e"] * 5}, dtype=object)
    question = ask(hybrid, frame)
    found = answers(hybrid, question, np.asarray([[0.0, 2.0], [2.0, 0.0]]))
    assert [row.get("label") for row in found] == ["yes", None, None, None, "no"]
    assert [row.get(PROBLEM) for row in found] == [
        None, "no text", "something that is not text", "text that is not Unicode", None,
    ]  # fmt: skip
    assert list(found[0])[:2] == ["text", "text_pair"]
    for name in ("out.csv", "out.jsonl"):
        write_answers(tmp_path / name, found)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row["label"] for row in rows] == ["yes", "", "", "", "no"]
    assert float(rows[0]["probabilities.yes"]) == pytest.approx(lines[0]["probabilities"]["yes"])
    assert [line.get(PROBLEM, "") for line in lines] == [row[PROBLEM] for row in rows]


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text('text,id\n"a,1\nb,2\n')
    with pytest.raises(DataError, match=r"odd\.csv"):
        ask(known(tmp_path), tmp_path / "odd.csv")
