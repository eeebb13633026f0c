"""Splits: disjoint, stratified, the same for the same rows and seed, whatever the order of the file."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import DataError
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.splits import cut, stratified_order

LABELS = st.lists(st.integers(0, 3), min_size=20, max_size=200)


@settings(max_examples=50, deadline=None)
@given(LABELS, st.integers(0, 5))
def test_parts_are_disjoint_complete_and_deterministic(labels: list[int], seed: int) -> None:
    texts = [f"row {i}" for i in range(len(labels))]
    tenth = len(labels) // 10
    parts = cut(texts, None, labels, [tenth, tenth], seed)
    assert sorted(row for part in parts for row in part) == list(range(len(labels)))
    assert [len(part) for part in parts[:2]] == [tenth, tenth]
    assert parts == cut(texts, None, labels, [tenth, tenth], seed)


@settings(max_examples=50, deadline=None)
@given(LABELS, st.integers(0, 5), st.floats(0.05, 0.95))
def test_every_prefix_is_stratified(labels: list[int], seed: int, share: float) -> None:
    texts = [f"row {i}" for i in range(len(labels))]
    order = stratified_order(texts, None, labels, seed)
    size = round(share * len(labels))
    counts, prefix = Counter(labels), Counter(labels[i] for i in order[:size])
    for label, count in counts.items():
        assert abs(prefix[label] - count * size / len(labels)) <= len(counts)


@settings(max_examples=50, deadline=None)
@given(st.permutations(list(range(40))), st.integers(0, 5))
def test_the_order_of_the_file_does_not_matter(shuffled: list[int], seed: int) -> None:
    texts = [f"row {i}" for i in range(40)]
    labels = [i % 3 for i in range(40)]
    moved = cut([texts[i] for i in shuffled], None, [labels[i] for i in shuffled], [8], seed)
    plain = cut(texts, None, labels, [8], seed)
    assert {texts[shuffled[i]] for i in moved[0]} == {texts[i] for i in plain[0]}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([f"text {i}" for i in range(30)]), min_size=30, max_size=90))
def test_equal_texts_stay_together(texts: list[str]) -> None:
    texts = [*texts, *(f"own {i}" for i in range(30))]
    labels = [len(text) % 2 for text in texts]
    parts = cut(texts, None, labels, [10, 10], 0)
    sides = [{texts[i] for i in part} for part in parts]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]


def test_the_split_of_a_known_set_never_changes() -> None:
    texts = [f"row {i}" for i in range(30)]
    labels = [i % 2 for i in range(30)]
    test, select, _ = cut(texts, None, labels, [3, 3], 0)
    assert (test, select) == ([14, 22, 23], [0, 3, 17])


def test_another_seed_gives_another_split_and_pairs_count() -> None:
    texts = ["same"] * 30
    pairs = [f"pair {i}" for i in range(30)]
    labels = [i % 2 for i in range(30)]
    first = cut(texts, pairs, labels, [6], 0)
    assert first != cut(texts, pairs, labels, [6], 1)
    assert len(first[0]) == 6


def test_regression_is_stratified_by_rank() -> None:
    labels = [float(i**3) for i in range(200)]
    test, _ = cut(
        [f"row {i}" for i in range(200)], None, get_kind("regression").schema.strata(labels), [20], 0
    )
    assert Counter(i // 20 for i in test) == dict.fromkeys(range(10), 2)


def test_no_row_is_lost_where_rows_of_one_text_are_not_alike() -> None:
    texts, alike = ["same"] * 40, [(f"row {i // 2}",) for i in range(40)]
    order = stratified_order(texts, None, [0] * 40, 3, alike)
    assert sorted(order) == list(range(40))
    parts = cut(texts, None, [0] * 40, [8, 8], 3, alike)
    assert sorted(i for part in parts for i in part) == list(range(40))
    assert [len(part) for part in parts] == [8, 8, 24]
    assert all(i ^ 1 in part for part in parts for i in part)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="1 different rows are too few"):
        cut(["a"] * 20, None, [0, 1] * 10, [2, 2], 0)


def test_rows_that_are_alike_never_part_and_others_stay_where_they_were() -> None:
    texts = [f"text {i % 30}" if i < 60 else f"TEXT {i % 30}" for i in range(90)]
    alike = [(text.casefold(),) for text in texts]
    parts = cut(texts, None, [0] * 90, [9, 9], 3, alike)
    held = [{alike[i] for i in part} for part in parts]
    assert not held[0] & held[1]
    assert not held[0] & held[2]
    assert not held[1] & held[2]
    assert sorted(i for part in parts for i in part) == list(range(90))
    plain = [f"text {i}" for i in range(50)]
    own = [(text,) for text in plain]
    assert cut(plain, None, [0] * 50, [5, 5], 3, own) == cut(plain, None, [0] * 50, [5, 5], 3)
    turned = list(range(90))[::-1]
    again = cut([texts[i] for i in turned], None, [0] * 90, [9, 9], 3, [alike[i] for i in turned])
    assert [sorted(turned[i] for i in part) for part in again] == parts, "the order of rows says nothing"


@pytest.mark.parametrize("pairs", [False, True])
def test_near_copies_stay_together_where_that_is_asked_and_others_where_they_were(pairs: bool) -> None:
    texts = (
        [f"Row {i}" for i in range(40)] + [f" row {i} ." for i in range(40)] + [f"own {i}" for i in range(40)]
    )
    seconds = [f"Pair {i % 40}." if i % 2 else f"pair {i % 40}" for i in range(120)] if pairs else None
    alike = list(zip(texts, seconds, strict=True)) if seconds else [(text,) for text in texts]
    told = [f"{text.casefold().strip(' .')}" for text in texts]
    apart = cut(texts, seconds, [0] * 120, [12, 12], 3, alike)
    assert {told[i] for i in apart[0]} & {told[i] for i in apart[2]}
    parts = cut(texts, seconds, [0] * 120, [12, 12], 3, alike, near=True)
    assert sorted(i for part in parts for i in part) == list(range(120))
    sides = [{told[i] for i in part} for part in parts]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    some = slice(80, None)
    without = (texts[some], seconds and seconds[some], [0] * 40, [4, 4], 3, alike[some])
    assert cut(*without, near=True) == cut(*without)
    same = ["same"] * 40
    told_apart = [(f"{'Choice' if i % 3 else 'choice'} {i}",) for i in range(40)]
    assert cut(same, None, [0] * 40, [4, 4], 3, told_apart, near=True) == cut(
        same, None, [0] * 40, [4, 4], 3, told_apart
    )
