"""Label words and templates as text: what comes back as it was, and what is refused in one sentence."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autopeft.errors import AutoPEFTError, TaskError
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.kinds.verbalised import ClozeEncoder
from autopeft.tasks.kinds.verbaliser import (
    EXAMPLES,
    LabelWords,
    Template,
    kind_with_words,
    words_text,
)

printed = st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" "), max_size=20)
word = printed.map(str.strip).filter(bool)
words = st.lists(word, min_size=2, max_size=6, unique=True)
literal = printed.map(lambda text: text.replace("{", "{{").replace("}", "}}"))


@st.composite
def templates(draw: st.DrawFn) -> str:
    fields = ["{text}", *draw(st.lists(st.sampled_from(["{text_pair}", "{mask}"]), unique=True))]
    parts = [part for field in draw(st.permutations(fields)) for part in (draw(literal), field)]
    return "".join([*parts, draw(literal)])


@given(words, st.booleans())
def test_words_come_back_from_their_text(found: list[str], named: bool) -> None:
    data: Any = {f"{word}=,%": word for word in found} if named else found
    told = LabelWords.of(data)
    assert told.words == tuple(found)
    assert LabelWords.parse(str(told)) == told == LabelWords.of(str(told))
    assert words_text(data) == str(told)


@given(templates())
def test_a_template_comes_back_from_its_text(text: str) -> None:
    found = Template.parse(text)
    assert Template.parse(str(found)) == found
    assert found.masked == ("{mask}" in re.sub(r"\{\{|\}\}", "", text))
    shown, places = found.render(text="A\0", text_pair="B\0", mask="C\0")
    assert {name: shown[a:b] for name, (a, b) in places.items()}.items() <= {
        "text": "A\0", "text_pair": "B\0", "mask": "C\0",
    }.items()  # fmt: skip
    assert shown.count("\0") == len(places)


@given(templates(), words)
@settings(max_examples=50)
def test_a_kind_comes_back_from_its_name(text: str, found: list[str]) -> None:
    name = kind_with_words(None, found, text)
    assert name is not None
    kind = get_kind(name)
    assert isinstance(kind.encoder, ClozeEncoder)
    assert (kind.encoder.words.words, kind.encoder.template) == (tuple(found), Template.parse(text))
    assert get_kind(kind.name) is get_kind(kind.name)
    assert kind.name.isascii()


@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_comes_is_read_or_refused(left: str, right: str) -> None:
    for read in (LabelWords.parse, Template.parse, get_kind, lambda text: get_kind(f"classification?{text}")):
        for text in (left, f"{left}={right},{right}", f"label_words={left}&template={right}"):
            try:
                read(text)
            except AutoPEFTError:
                continue


@given(printed, printed)
def test_nothing_of_a_text_is_a_field(text: str, other: str) -> None:
    """What texts have in braces stays text, as do attributes of what stands in fields."""
    assume(text != other)
    found = Template.parse("{text} {mask}")
    assert found.render(text=f"{{mask}}{text}", mask="M")[0] == f"{{mask}}{text} M"
    with pytest.raises(TaskError, match="unknown field"):
        Template.parse("{text.__class__} {mask}")


def test_defaults_fit_what_they_are_for() -> None:
    for (masked, pairs), text in EXAMPLES.items():
        found = Template.parse(text)
        assert (found.masked, found.of_pairs) == (masked, pairs)


def test_columns_have_the_names_of_usual_files() -> None:
    assert str(Template.parse("{sentence1} ? {mask} , {sentence2}")) == EXAMPLES[True, True]
    assert str(Template.parse("{text} so far   ")) == "{text} so far", "the word brings its own space"
    assert str(Template.parse("{text}:\n")) == "{text}:\n"


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("{text} It was {mask} .", ("a It was", " ")),
        ("{text} ({mask})", ("a (", "")),
        ("{mask} : {text}", ("", "")),
        ("{text} It was", ("a It was", " ")),
        ("{text}\nMood:\n", ("a\nMood:\n", "")),
        ("{{ {text} ? {text_pair}", ("{ a ? a", " ")),
    ],
)
def test_what_stands_before_the_word(text: str, before: tuple[str, str]) -> None:
    assert Template.parse(text).before_word() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It was {mask}.", "has no place for the text; write {text} there"),
        ("{text} {mask} and {mask}", "has two masks, but one word is predicted"),
        ("{text} {text} {mask}", "has {text} twice"),
        ("{sentence1} {text} {mask}", "has {text} twice"),
        ("{text} {masc}", "has the unknown field {masc}. Did you mean 'mask'"),
        ("{text} {}", "has the unknown field {}"),
        ("{text} {mask", "has a brace without a partner at letter 8"),
        ("{text} mask}", "has a brace without a partner at letter 12"),
        ("{text} {0!r} {mask}", "has the unknown field {0!r}"),
        ("{text} \x1b[31m {mask}", "has the letter U+001B"),
        ("{text} \ud800 {mask}", "that can be printed"),
        ("{text} " + "x" * 1_000, "A template has up to 1,000 letters"),
    ],
)
def test_a_template_is_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(TaskError, match=re.escape(said)):
        Template.parse(text)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("great", "from 2 to 500, but got 1"),
        ("", "from 2 to 500, but got 1"),
        ("bad,", "is empty"),
        ("bad,bad", "The label word 'bad' stands there twice"),
        ("no=bad,no=good", "The class 'no' stands there twice"),
        ("no=bad,good", "some have the name of a class before them"),
        ("bad," + "g" * 61, "up to 60 letters"),
        ("bad,go\x07od", "has the letter U+0007"),
        ("x" * 40_000, "but got 40,000 letters"),
        (["bad", 3], "Label words are texts, but got 3"),
        ({"no": "bad", 1: "good"}, "Label words are texts, but got 1"),
    ],
)
def test_words_are_refused_in_a_sentence(data: Any, said: str) -> None:
    with pytest.raises(TaskError, match=re.escape(said)):
        LabelWords.of(data)


def test_words_in_the_order_of_the_classes() -> None:
    assert LabelWords.parse("bad,good").in_order(["no", "yes"]).words == ("bad", "good")
    assert LabelWords.parse("yes=good,no=bad").in_order(["no", "yes"]) == LabelWords(("bad", "good"))
    with pytest.raises(TaskError, match=r"3 label words.* 2 classes 'no', 'yes'"):
        LabelWords.parse("bad,good,fine").in_order(["no", "yes"])
    with pytest.raises(TaskError, match=r"'yea'.*Did you mean 'yes'"):
        LabelWords.parse("no=bad,yea=good").in_order(["no", "yes"])


def test_where_they_are_told() -> None:
    assert kind_with_words("regression", None, None) == "regression"
    assert kind_with_words(None, None, None) is None
    for name, said in {
        str(kind_with_words("regression", "bad,good", None)): "'regression' can be told nothing",
        str(kind_with_words(None, None, "{text} {mask}")): "A template is for label words",
        "classification?": "can be told label_words, template, but got ''",
        "classification?label_word=a,b": "Did you mean 'label_words'",
        "classification?label_words=a,b&label_words=c,d": "stands there twice",
        "classification?label_words": "has no value",
        "clasification?label_words=a,b": "Did you mean 'classification'",
    }.items():
        with pytest.raises(TaskError, match=re.escape(said)):
            get_kind(name)
    with pytest.raises(TaskError, match="in one place"):
        kind_with_words("classification?label_words=a,b", "a,b", None)
