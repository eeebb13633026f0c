"""Answers in a text: SQuAD's metrics by hand, the best span, and where an answer stands in a window."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autopeft.errors import AutoPEFTError
from autopeft.tasks.kinds.metric import pseudo_values
from autopeft.tasks.kinds.spans import (
    LONGEST,
    SQUAD_EXACT_MATCH,
    SQUAD_F1,
    Answers,
    RowWindows,
    places_of_answer,
    squad_plain,
)
from autopeft.tasks.tokens import ragged


def row(*texts: str) -> Answers:
    return Answers([(0, text) for text in texts], " ".join(texts), null=not texts)


def scores(found: str, *wanted: str) -> tuple[float, float]:
    """Exact match and F1 of one answer."""
    said, truth = ragged([found]), ragged([row(*wanted)])
    return SQUAD_EXACT_MATCH.score(said, truth), SQUAD_F1.score(said, truth)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Denver\tBroncos!", "denver broncos"),
        ("a b an c the d", "b c d"),
        ("theatre", "theatre"),
        ("U.S.", "us"),
        ("the-a", "thea"),
        ("the.", ""),
        ("1,000", "1000"),
        ("«Ärger»", "«ärger»"),
    ],
)
def test_how_texts_are_compared(text: str, plain: str) -> None:
    """Lower case first, then punctuation goes, then articles, then white space: `the-a` becomes one word."""
    assert squad_plain(text) == plain


@pytest.mark.parametrize(
    ("found", "wanted", "exact", "f1"),
    [
        ("The Denver Broncos.", ("denver broncos",), 1.0, 1.0),
        ("Broncos", ("Denver Broncos",), 0.0, 2 / 3),  # precision 1, recall 1/2
        ("Denver Broncos of Denver", ("Denver Broncos",), 0.0, 2 / 3),  # precision 1/2, recall 1
        ("Denver Denver", ("Denver Broncos",), 0.0, 0.5),  # a word counts as often as both have it
        ("Carolina", ("Denver Broncos",), 0.0, 0.0),
        ("Broncos", ("Carolina", "Denver Broncos", "the Broncos"), 1.0, 1.0),  # the best acceptable one
        ("in the year 1999", ("1999", "year 2000"), 0.0, 0.5),  # 1/3 and 1 against 1999; 1/3 and 1/2
        ("", (), 1.0, 1.0),  # SQuAD 2: no answer to a question without one
        ("Denver", (), 0.0, 0.0),
        ("", ("Denver",), 0.0, 0.0),
        ("the", (), 1.0, 1.0),  # nothing is left of an article
    ],
)
def test_scores_by_hand(found: str, wanted: tuple[str, ...], exact: float, f1: float) -> None:
    assert scores(found, *wanted) == pytest.approx((exact, f1))


def test_a_score_is_the_mean_over_rows() -> None:
    said = ragged(["Denver", "", "Broncos"])
    truth = ragged([row("Denver"), row("Carolina"), row("Denver Broncos")])
    assert SQUAD_EXACT_MATCH.score(said, truth) == pytest.approx(1 / 3)
    assert SQUAD_F1.score(said, truth) == pytest.approx((1 + 0 + 2 / 3) / 3)
    for metric in (SQUAD_EXACT_MATCH, SQUAD_F1):
        assert metric.by_row is not None
        parts = pseudo_values(lambda v, _: float(v.mean()), metric.by_row(said, truth), np.zeros(3))
        assert parts == pytest.approx(pseudo_values(metric.score, said, truth))


def test_answers_are_data_and_go_to_other_processes() -> None:
    answers = Answers([(3, "Denver"), (0, "In Denver")], "In Denver", null=True)
    again = pickle.loads(pickle.dumps(answers))
    assert (again, again.context, again.null) == (answers, "In Denver", True)
    assert json.loads(json.dumps(answers)) == [[3, "Denver"], [0, "In Denver"]]
    assert answers.texts == ["Denver", "In Denver"]
    assert Answers([], "x", null=True).texts == [""]


# Where an answer stands
# ------------------------------------------------------------------------------------------------------

SPANS = np.array([[-1, -1], [-1, -1], [0, 3], [4, 7], [7, 9], [10, 14], [-1, -1]])


@pytest.mark.parametrize(
    ("start", "stop", "places"),
    [
        (0, 3, (2, 2)),
        (4, 9, (3, 4)),
        (5, 8, (3, 4)),  # inside of tokens
        (0, 14, (2, 5)),
        (10, 14, (5, 5)),
        (9, 12, (5, 5)),  # from the space between two tokens
        (10, 15, (0, 0)),  # not whole in the window
        (20, 22, (0, 0)),
        (3, 4, (0, 0)),  # the space alone, which no token has
    ],
)
def test_the_tokens_of_an_answer(start: int, stop: int, places: tuple[int, int]) -> None:
    assert places_of_answer(SPANS, start, stop) == places


def test_a_window_that_begins_later_or_has_no_context_holds_no_answer() -> None:
    assert places_of_answer(SPANS[3:], 0, 7) == (0, 0)
    assert places_of_answer(SPANS[:2], 0, 3) == (0, 0)


# The best span
# ------------------------------------------------------------------------------------------------------


def window(
    starts: list[float], ends: list[float], *, begin: int = 0, question: int = 1
) -> NDArray[np.float64]:
    """Tokens of two letters each behind the first one and a question."""
    tokens = len(starts)
    found = np.full((tokens, 4), -1.0)
    found[:, 0], found[:, 1] = starts, ends
    own = np.arange(tokens - question)
    found[question:, 2], found[question:, 3] = begin + 2 * own, begin + 2 * own + 2
    return found


TEXT = "abcdefghijklmnopqrstuvwxyz" * 4


def test_the_best_span_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        sizes = rng.integers(2, 50, 3)
        windows = tuple(
            window(*rng.normal(size=(2, n)).tolist(), begin=int(4 * i)) for i, n in enumerate(sizes)
        )
        pairs = [
            (w[i, 0] + w[j, 1], int(w[i, 2]), int(w[j, 3]))
            for w in windows
            for i in range(1, len(w))
            for j in range(i, min(len(w), i + LONGEST))
        ]
        _, start, stop = max(pairs)
        found = RowWindows(TEXT, windows, null=False).answer
        assert (found.start, found.stop, found.text) == (start, stop, TEXT[start:stop])


def test_an_answer_never_ends_before_it_begins_nor_is_the_question() -> None:
    found = RowWindows(TEXT, (window([9, 0, 0, 5], [9, 6, 0, 0]),), null=False).answer
    assert (found.start, found.stop) == (0, 2)  # 0 + 6; the pair of 5 and 6 runs backwards


def test_equal_spans_are_told_apart_by_their_place() -> None:
    """The first window, then the first beginning, then the shortest."""
    flat, later = window([0.0] * 5, [0.0] * 5), window([0.0] * 5, [0.0] * 5, begin=6)
    found = RowWindows(TEXT, (flat, later), null=False).answer
    assert (found.start, found.stop) == (0, 2)
    assert found.probability == pytest.approx(1 / 25)


def test_no_answer_is_given_where_the_first_token_is_better_in_each_window() -> None:
    sure, unsure = window([3, 0, 0], [3, 0, 0]), window([1, 0, 2], [1, 2, 2])
    for null, windows, text in (
        (True, (sure,), ""),
        (False, (sure,), "ab"),  # where all questions have one
        (True, (sure, unsure), "cd"),
        (True, (unsure,), "cd"),
        (True, (window([2, 0, 2], [2, 0, 2]),), "cd"),  # as good
    ):
        assert RowWindows(TEXT, windows, null=null).answer.text == text
    assert RowWindows(TEXT, (sure,), null=True).answer.start == -1
    nothing = window([1.0], [1.0])
    assert RowWindows(TEXT, (nothing,), null=False).answer.text == "", "a tokenizer may give nothing"


def test_white_space_at_the_ends_of_a_span_is_no_part_of_it() -> None:
    found = RowWindows(" a  b ", (window([0, 0, 0, 5], [0, 0, 5, 5]),), null=False).answer
    assert (found.text, found.start, found.stop) == ("b", 4, 5)


def test_the_loss_of_a_window_is_over_its_own_tokens() -> None:
    own = window([1.0, 2.0, 3.0], [0.0, 0.0, 1.0])
    (found,) = RowWindows("abcd", (own,), null=False).losses(Answers([(2, "cd")], "abcd", null=False))
    start = np.log(np.exp([1.0, 2.0, 3.0]).sum()) - 3.0
    end = np.log(np.exp([0.0, 0.0, 1.0]).sum()) - 1.0
    assert found == pytest.approx((start + end) / 2)
    (none,) = RowWindows("abcd", (own,), null=True).losses(Answers([], "abcd", null=True))
    assert none == pytest.approx((start + 2.0 + end + 1.0) / 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: Any) -> None:
    with pytest.raises(AutoPEFTError, match="not finite"):
        RowWindows(TEXT, (window([0.0, value], [0.0, 0.0]),), null=False)
