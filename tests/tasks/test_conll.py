"""Sentences with a word and its tags on each line."""

from __future__ import annotations

import pytest

from autopeft.errors import DataError
from autopeft.tasks.conll import read_sentences

TEXT = """\
-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER

"""


def test_columns_of_conll_2003() -> None:
    assert read_sentences(TEXT.split("\n"), "x") == {
        "tokens": [["EU", "rejects"], ["Peter"]],
        "column_2": [["NNP", "VBZ"], ["NNP"]],
        "column_3": [["B-NP", "B-VP"], ["B-NP"]],
        "tags": [["B-ORG", "O"], ["B-PER"]],
    }


def test_tabs_part_fields_and_words_alone_are_enough() -> None:
    lines = ["New York\tB-LOC", "#1\tO", "", "", "a\tO"]
    assert read_sentences(lines, "x") == {
        "tokens": [["New York", "#1"], ["a"]],
        "tags": [["B-LOC", "O"], ["O"]],
    }
    assert read_sentences(["a", "b", " ", "c"], "x") == {"tokens": [["a", "b"], ["c"]]}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a O", "b"], "x, line 2: 1 fields, but those before have 2"),
        (["a\tO", "b\t"], "line 2"),
        (["", "-DOCSTART- O", " "], "x has no words"),
        (["a " * 101], "101 fields; there are up to 100 in a line"),
    ],
)
def test_what_is_no_such_file(lines: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_sentences(lines, "x")
