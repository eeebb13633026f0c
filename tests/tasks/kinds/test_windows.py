"""Contexts are read in windows that hold the answer's tokens where the published script has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_tokenizers import bytes_with_spaces, sentence_pieces, word_pieces

from autopeft.errors import UsageError
from autopeft.tasks.kinds.spans import Answers
from autopeft.tasks.kinds.windows import EncodedWindows, WindowEncoder, cut_questions
from autopeft.tasks.split import Split

SHORT = "Ann can stay happy"
LONG = " ".join(["stay happy can Ann stay unhappy"] * 5)
QUESTIONS, CONTEXTS = ["happy Ann", "stay", "can Ann"], [SHORT, LONG, LONG]
ANSWERS = [
    Answers([(8, "stay happy")], SHORT, null=True),
    Answers([(LONG.rindex("unhappy"), "unhappy"), (0, "stay")], LONG, null=True),
    Answers([], LONG, null=True),
]
TOKENIZERS = [word_pieces, bytes_with_spaces, sentence_pieces]


def encode_windows(
    questions: list[str],
    contexts: list[str],
    answers: list[Answers] | None,
    tokenizer: Any,
    max_length: int,
    *,
    cached: bool = False,
) -> EncodedWindows:
    rows = Split(questions, contexts, answers or [None] * len(questions))
    return WindowEncoder().encode(rows, tokenizer, max_length, labelled=answers is not None, cached=cached)


def encoded(make: Any = word_pieces, max_length: int = 16, **options: Any) -> EncodedWindows:
    return encode_windows(QUESTIONS, CONTEXTS, ANSWERS, make(), max_length, **options)


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("max_length", [16, 24, 64])
def test_labels_are_those_that_letters_say(make: Any, max_length: int) -> None:
    """Of every window by trying all tokens, as the published script walks over them."""
    data = encoded(make, max_length)
    held = set()
    assert data.labels is not None
    for window, row in enumerate(data.sources.tolist()):
        own = slice(data.offsets[window], data.offsets[window + 1])
        begins, ends = data.begins[own], data.ends[own]
        there = [i for i in range(len(begins)) if begins[i] >= 0]
        expected = (0, 0)
        if ANSWERS[row]:
            start, text = ANSWERS[row][0]
            stop = start + len(text)
            if begins[there[0]] <= start and ends[there[-1]] >= stop:
                touched = [i for i in there if ends[i] > start and begins[i] < stop]
                expected = (touched[0], touched[-1])
        assert tuple(data.labels[window]) == expected
        if expected != (0, 0):
            held.add(row)
            said = CONTEXTS[row][begins[expected[0]] : ends[expected[1]]]
            assert ANSWERS[row][0][1] in said
            assert len(said) <= len(ANSWERS[row][0][1]) + 2 or make is word_pieces
    assert held == {0, 1} or max_length == 16
    if max_length < 64:
        assert (np.bincount(data.sources)[1:] > 1).all(), "the long texts are in several windows"


@pytest.mark.parametrize("make", TOKENIZERS)
def test_windows_together_have_the_whole_context_and_overlap(make: Any) -> None:
    data, whole = encoded(make, 24), encoded(make, 64)
    for row in range(3):
        spans = []
        for split in (data, whole):
            own = [
                {(b, e) for b, e in zip(split.begins[at], split.ends[at], strict=True) if b >= 0}
                for at in (
                    slice(split.offsets[w], split.offsets[w + 1])
                    for w in np.flatnonzero(split.sources == row)
                )
            ]
            spans.append(own)
        assert set().union(*spans[0]) == set().union(*spans[1])
        for one, other in zip(spans[0], spans[0][1:], strict=False):
            assert len(one & other) >= 4
    assert int(data.lengths.max()) <= 24


def test_pairs_that_fit_are_encoded_as_the_tokenizer_encodes_pairs() -> None:
    tokenizer = word_pieces()
    data = encoded(word_pieces, 64)
    assert data.sources.tolist() == [0, 1, 2]
    for i, pair in enumerate(zip(QUESTIONS, CONTEXTS, strict=True)):
        assert data.ids[data.offsets[i] : data.offsets[i + 1]].tolist() == tokenizer(*pair)["input_ids"]


def test_batches_say_where_the_context_stands() -> None:
    data = encoded()
    batch = data.collate([len(data) - 1, 0])
    places = batch["beside_context_places"]
    assert places.shape == (*batch["input_ids"].shape, 2)
    assert bool((batch["attention_mask"][places[..., 0] >= 0] == 1).all())
    assert batch["labels"].tolist()[0] == [0, 0]
    start, stop = batch["labels"].tolist()[1]
    assert SHORT[places[1, start, 0] : places[1, stop, 1]] == "stay happy"
    taken = data.take(np.array([len(data) - 1, 0]))
    assert taken.contexts.tolist() == [SHORT, LONG]
    assert taken.sources.tolist() == [1, 0]
    again = taken.collate([0, 1])
    assert all(torch.equal(again[key], batch[key]) for key in batch)


def test_rows_get_their_windows_in_order() -> None:
    data = encoded()
    outputs = np.empty(len(data), dtype=object)
    outputs[:] = [np.full((3, 4), float(i)) for i in range(len(data))]
    rows = data.of_rows(outputs)
    assert [len(row.windows) for row in rows] == np.bincount(data.sources).tolist()
    assert [row.windows[0][0, 0] for row in rows] == [0.0, 1.0, float(np.flatnonzero(data.sources == 2)[0])]
    assert [row.context for row in rows] == CONTEXTS
    assert all(row.null for row in rows)
    assert data.truth is not None
    assert list(data.truth) == ANSWERS


def test_a_long_question_is_cut_and_told(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = word_pieces()
    cut, which = cut_questions(["stay " * 9, "stay Ann"], tokenizer, 16)
    assert cut == ["stay stay stay stay", "stay Ann"]
    assert which.tolist() == [True, False]
    data = encode_windows(["stay " * 9], [SHORT], None, tokenizer, 16)
    assert int(data.lengths.max()) <= 16
    assert "1 of 1 windows" in caplog.text


def test_answers_that_no_window_holds_are_told(caplog: pytest.LogCaptureFixture) -> None:
    whole = [Answers([(0, LONG)], LONG, null=False), Answers([(0, "Ann")], SHORT, null=False)]
    data = encode_windows(QUESTIONS[:2], [LONG, SHORT], whole, word_pieces(), 24)
    assert "1 of 2 answers" in caplog.text
    assert data.labels is not None
    assert not data.labels[data.sources == 0].any()


def test_tokens_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    made = []
    original = cut_questions
    monkeypatch.setattr(
        "autopeft.tasks.kinds.windows.cut_questions", lambda *a, **k: made.append(1) or original(*a, **k)
    )
    first, again = (
        encode_windows(QUESTIONS, CONTEXTS, ANSWERS, word_pieces(), 16, cached=True) for _ in range(2)
    )
    assert made == [1]
    for name in ("ids", "offsets", "begins", "ends", "sources", "labels"):
        assert (getattr(first, name) == getattr(again, name)).all()
    assert first.fingerprint == again.fingerprint


def test_the_smallest_length_has_room_for_both_texts() -> None:
    data = encode_windows(["stay Ann"], [SHORT], None, word_pieces(), 5)
    assert set(data.lengths.tolist()) == {5}
    with pytest.raises(UsageError, match="no room for a question"):
        encode_windows(["stay"], [SHORT], None, word_pieces(), 4)


def test_a_text_of_which_the_tokenizer_makes_nothing_is_one_window() -> None:
    data = encode_windows(["\u200b"], ["\u200b"], None, word_pieces(), 16)
    assert len(data) == 1
    assert (data.begins == -1).all()


def test_a_tokenizer_without_places_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UsageError, match="need a tokenizer with"):
        encode_windows(["a"], ["b"], None, Slow(), 16)
