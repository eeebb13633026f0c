"""The file of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.errors import UsageError
from autopeft.export.arguments import PredictArguments
from autopeft.export.out_file import write_answers


def test_nested_and_unfinite_values(tmp_path: Path) -> None:
    rows = [{"text": 'a, "b"', "x": {"no": 1.0, "yes": float("nan")}, "y": [1, 2]}, {"text": None, "z": "c"}]
    write_answers(tmp_path / "a.csv", rows)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines == ["row,text,x.no,x.yes,y.0,y.1,z", '1,"a, ""b""",1.0,,1,2,', "2,,,,,,c"]
    write_answers(tmp_path / "a.jsonl", rows)
    assert '"yes": null' in (tmp_path / "a.jsonl").read_text().splitlines()[0]


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
