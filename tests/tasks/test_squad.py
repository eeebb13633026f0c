"""SQuAD's nested JSON becomes a table, and what is not of that layout is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import DataError
from autopeft.tasks.files import read_file
from autopeft.tasks.squad import is_squad, squad_columns

ANSWER = {"text": "Oslo", "answer_start": 13}
PARAGRAPH: dict[str, Any] = {
    "context": "Ann lives in Oslo.",
    "qas": [
        {"id": "1", "question": "Where?", "answers": [ANSWER], "is_impossible": False},
        {"id": "2", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": [ANSWER]},
    ],
}


def squad(*paragraphs: Any) -> dict[str, Any]:
    return {"version": "v2.0", "data": [{"title": "Ann", "paragraphs": list(paragraphs)}]}


def test_a_row_for_each_question(tmp_path: Path) -> None:
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps(squad(PARAGRAPH, {"context": "No questions.", "qas": []})))
    assert read_file(path).columns == {
        "id": ["1", "2"],
        "title": ["Ann", "Ann"],
        "question": ["Where?", "When?"],
        "context": ["Ann lives in Oslo."] * 2,
        "answers": [[ANSWER], []],
    }


def test_questions_without_answers_have_no_column_of_them() -> None:
    bare = {"context": "Ann lives in Oslo.", "qas": [{"question": "Where?"}]}
    assert "answers" not in squad_columns(squad(bare), "x", 100)


def test_other_json_is_none(tmp_path: Path) -> None:
    for other in ([], {}, {"data": []}, {"data": [1]}, {"data": [{"text": "a"}]}, {"data": "a"}):
        assert not is_squad(other)
    path = tmp_path / "data.json"
    path.write_text('{"data": ["a", "b"], "label": [1, 2]}')
    assert read_file(path).columns == {"data": ["a", "b"], "label": [1, 2]}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (squad(7), "a paragraph of article 1 has no list 'qas'"),
        (squad({"context": "a"}), "a paragraph of article 1 has no list 'qas'"),
        (squad({"context": "a", "qas": [3]}), "a paragraph of article 1 has a question that is no object"),
        ({"data": [{"paragraphs": []}, 3]}, "article 2 has no list 'paragraphs'"),
        ({"data": [{"paragraphs": []}, {"paragraphs": {}}]}, "article 2 has no list 'paragraphs'"),
    ],
)
def test_what_the_layout_lacks_is_told(found: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"x: {said}"):
        squad_columns(found, "x", 100)


def test_a_text_before_far_too_many_questions_is_refused() -> None:
    """A file of a megabyte would be read as a hundred gigabytes."""
    bomb = squad({"context": "a" * 10**6, "qas": [{"question": "?"}] * 10**5})
    with pytest.raises(DataError, match="more than 100,000,000 letters of context"):
        squad_columns(bomb, "x", 2 * 10**6)
