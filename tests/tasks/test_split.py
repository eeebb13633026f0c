"""Rows of a split: further columns go along, and the hash tells them."""

from __future__ import annotations

from autopeft.tasks.split import Split, rows_sha256

TEXTS, LABELS = ["a", "b", "c"], [1, 0, 1]


def test_all_columns_are_taken_together() -> None:
    split = Split(TEXTS, ["x", "y", "z"], LABELS, {"choices": [["p"], ["q", "r"], []]})
    assert split.take([2, 0]) == Split(["c", "a"], ["z", "x"], [1, 1], {"choices": [[], ["p"]]})


def test_further_columns_change_the_hash_and_their_order_does_not() -> None:
    plain = rows_sha256(TEXTS, None, LABELS)
    assert plain == rows_sha256(TEXTS, None, LABELS, {})
    more = rows_sha256(TEXTS, None, LABELS, {"s": [1, 2, 3], "e": [4, 5, 6]})
    assert more == rows_sha256(TEXTS, None, LABELS, {"e": [4, 5, 6], "s": [1, 2, 3]}) != plain
    assert more != rows_sha256(TEXTS, None, LABELS, {"s": [4, 5, 6], "e": [1, 2, 3]})
