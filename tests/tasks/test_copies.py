"""Copies of a text: what they may differ by, and what makes a text another one."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.tasks import Split, get_kind
from autopeft.tasks.copies import normal_form, text_ids

WORDS = st.lists(
    st.text(st.characters(categories=("L", "N")), min_size=1, max_size=6), min_size=1, max_size=8
)
SPACES = st.text(" \t\n\u00a0\u2003\u200b\ufeff", min_size=1, max_size=4)


@given(st.text())
def test_a_normal_form_is_its_own(text: str) -> None:
    assert normal_form(normal_form(text)) == normal_form(text)


@given(WORDS, st.data())
def test_white_space_case_and_full_stops_at_the_end_make_no_difference(
    words: list[str], data: st.DataObject
) -> None:
    plain = normal_form(" ".join(words))
    spaced = "".join(data.draw(SPACES) + word for word in words) + data.draw(SPACES)
    assert normal_form(spaced) == plain
    assert normal_form(spaced + data.draw(st.sampled_from([".", " .", "...", "…", "。", ".\n"]))) == plain
    assert normal_form(" ".join(word.casefold() for word in words)) == plain
    assert normal_form(" ".join(words).upper().lower()) == normal_form(" ".join(words).upper())


@given(WORDS, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_how_unicode_composes_a_text_makes_no_difference(words: list[str], form: str) -> None:
    text = " ".join(words)
    assert normal_form(unicodedata.normalize(form, text)) == normal_form(text)  # type: ignore[arg-type]


@given(WORDS, WORDS)
def test_texts_of_other_ascii_words_are_others(one: list[str], other: list[str]) -> None:
    assert (normal_form(" ".join(one)) == normal_form(" ".join(other))) == (
        [normal_form(word) for word in one] == [normal_form(word) for word in other]
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Straße", "STRASSE", True),
        ("ＦＵＬＬ　ｗｉｄｔｈ", "full width", True),
        ("\ufeffA film.", "a  film", True),
        ("a film", "a film!", False),
        ("a film", "afilm", False),
        ("si", "sí", False),
        (".5 of it", "5 of it", False),
        ("...", "?", False),
        ("...", "", False),
    ],
)
def test_known_pairs(one: str, other: str, same: bool) -> None:
    assert (normal_form(one) == normal_form(other)) == same


def test_texts_are_numbered_as_they_come() -> None:
    inputs = [("b", "x"), ("a", "x"), ("B. ", "X"), ("a", "y"), ("a", "x")]
    assert text_ids(inputs).tolist() == [0, 1, 0, 2, 1]
    assert text_ids([]).shape == (0,)
    assert text_ids([("a", "b"), ("a b",)]).tolist() == [0, 1], "a pair is no text that joins it"


def test_what_a_row_asks_is_its_whole_input() -> None:
    pairs = Split(["a", "a", "A."], ["x", "y", "x"], [0, 1, 0])
    assert text_ids(get_kind("classification").schema.inputs_of(pairs)).tolist() == [0, 1, 0]
    choices = {"choices": [["No", "yes"], ["YES", "no"], ["no", "maybe"]]}
    asked = Split(["Is it?", "is it?", "is it?"], None, [0, 0, 0], choices)
    kind = get_kind("multiple_choice")
    assert text_ids(kind.schema.inputs_of(asked)).tolist() == [0, 0, 1], "choices in any order"
    assert kind.schema.answers_of(asked) == ["No", "YES", "no"]
    contexts = Split(["who?", "what?"], ["a text", "a text"], [0, 1])
    assert np.unique(text_ids(get_kind("question_answering").schema.inputs_of(contexts))).size == 2
