"""Metrics of generated answers: what the model writes, compared with the expected texts."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.tasks.kinds.metric import Metric, ScoredRows, shrunk

__all__ = ["EXACT_MATCH", "ROUGE_L", "mean_variance"]

Texts = NDArray[Any]


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


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # it takes seconds to import

    return RougeScorer(["rougeL"], use_stemmer=False)


def _rouge_l(predictions: Texts, labels: Texts) -> NDArray[Any]:
    pairs = zip(predictions, labels, strict=True)
    found = [_rouge().score(str(wanted), str(said))["rougeL"].fmeasure for said, wanted in pairs]
    return np.asarray(found, dtype=np.float64)


EXACT_MATCH = Metric(
    "exact_match", 0, 1,
    "share of generated answers that are the expected one; white space is one space, and none at the ends",
    lambda found, wanted: float(_matches(found, wanted).mean()), mean_variance,
    by_row=_matches, generated=True,
)  # fmt: skip
ROUGE_L = Metric(
    "rouge_l", 0, 1,
    "ROUGE-L of generated answers: F-measure of the longest common subsequence of words (a to z, 0 to 9)",
    lambda found, wanted: float(_rouge_l(found, wanted).mean()), mean_variance,
    by_row=_rouge_l, generated=True,
)  # fmt: skip
