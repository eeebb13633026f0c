"""Metrics of generated answers: what the model writes, compared with the expected texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.tasks.kinds.metric import Metric, ScoredRows, shrunk

__all__ = ["EXACT_MATCH", "ROUGE_L", "common_subsequence", "mean_variance"]

Texts = NDArray[Any]
_MOST_WORDS = 20_000


def mean_variance(score: float, rows: ScoredRows) -> float:
    """Of the mean of values from 0 to 1: exact where they are 0 or 1, else the largest that it can be."""
    share = shrunk(score, rows.rows)
    return share * (1 - share) / max(rows.rows, 1)


def _plain(text: Any) -> str:
    """A text without white space at its ends, and with one space for each white space inside."""
    return " ".join(str(text).split())


def _matches(predictions: Texts, labels: Texts) -> NDArray[Any]:
    pairs = zip(predictions, labels, strict=True)
    return np.asarray([_plain(found) == _plain(wanted) for found, wanted in pairs], dtype=np.float64)


def _rouge_l(predictions: Texts, labels: Texts) -> NDArray[Any]:
    pairs = zip(predictions, labels, strict=True)
    return np.asarray([_f_measure(_words(said), _words(wanted)) for said, wanted in pairs], dtype=np.float64)


def _words(text: Any) -> list[str]:
    """The words of a text as rouge-score takes them, up to a number that bounds the time."""
    from rouge_score.tokenize import tokenize

    found: list[str] = tokenize(str(text).encode("utf-8", "replace").decode("utf-8"), None)
    return found[:_MOST_WORDS]


def _f_measure(said: Sequence[str], wanted: Sequence[str]) -> float:
    common = common_subsequence(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, by the bit-parallel algorithm of Hyyrö (2004, AWOCA): a row
    of the usual table is one integer, whose zeros are where the length grows."""
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    whole = (1 << len(first)) - 1
    row = whole
    for word in second:
        there = row & places.get(word, 0)
        row = ((row + there) | (row - there)) & whole
    return len(first) - row.bit_count()


EXACT_MATCH = Metric(
    "exact_match", 0, 1,
    "share of generated answers that are the expected one; white space is one space, and none at the ends",
    lambda found, wanted: float(_matches(found, wanted).mean()), mean_variance,
    by_row=_matches, generated=True,
)  # fmt: skip
ROUGE_L = Metric(
    "rouge_l", 0, 1,
    "ROUGE-L of generated answers: F-measure of the longest common subsequence of words (a to z, 0 to 9), "
    "up to 20,000 of each",
    lambda found, wanted: float(_rouge_l(found, wanted).mean()), mean_variance,
    by_row=_rouge_l, generated=True,
)  # fmt: skip
