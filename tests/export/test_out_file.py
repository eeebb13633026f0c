"""The file of answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from autopeft.errors import UsageError, printable
from autopeft.export.arguments import PredictArguments
from autopeft.export.out_file import write_answers


def test_nested_and_unfinite_values(tmp_path: Path) -> None:
    rows = [{"text": 'a, "b"', "x": {"no": 1.0, "yes": float("nan")}, "y": [1, 2]}, {"text": None, "z": "c"}]
    write_answers(tmp_path / "a.csv", rows)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines == ["row,text,x.no,x.yes,y.0,y.1,z", '1,"a, ""b""",1.0,,1,2,', "2,,,,,,c"]
    write_answers(tmp_path / "a.jsonl", rows)
    assert '"yes": null' in (tmp_path / "a.jsonl").read_text().splitlines()[0]


def test_lists_of_words_are_one_cell(tmp_path: Path) -> None:
    row = {
        "text": ["=a", "b"],
        "tags": ["O", None],
        "labels": ["two words"],
        "shares": [0.5, None],
        "none": [],
    }
    write_answers(tmp_path / "a.csv", [row])
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines == ["row,text,tags,labels,shares.0,shares.1", "1,'=a b,O ?,two words,0.5,"]
    write_answers(tmp_path / "a.jsonl", [row])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"row": 1, **row}


@pytest.mark.parametrize(
    ("out", "says"),
    [("a.txt", r"\.csv or \.jsonl"), ("there.csv", "is there already"), ("no/a.csv", "no folder")],
)
def test_where_answers_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("text\nmine\n")
    with pytest.raises(UsageError, match=says):
        PredictArguments(out=out)
    assert Path("there.csv").read_text() == "text\nmine\n"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("- a list", "'- a list"),
        ("＝1", "'＝1"),
        ("-5", "-5"),
        ("+0.5e3", "+0.5e3"),
        ("a = b", "a = b"),
        ("\x1b[31mred\x9b\x00", "�[31mred��"),
        ("two\r\nlines\rand", "two\nlines\nand"),
        ("שלום \u200fabc", "שלום \u200fabc"),
    ],
    ids=ascii,
)
def test_cells_that_nothing_acts_on(tmp_path: Path, text: str, cell: str) -> None:
    write_answers(tmp_path / "a.csv", [{text: text}])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        header, row = csv.reader(file)
    assert row == ["1", cell]
    assert header == ["row", cell]
    write_answers(tmp_path / "a.jsonl", [{"answer": text}])
    written = (tmp_path / "a.jsonl").read_text("utf-8")
    assert json.loads(written)["answer"] == text
    assert printable(written, keep="\n") == written
