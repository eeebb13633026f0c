"""Metrics of generated answers: what the model writes, compared with the expected texts.

ROUGE is rouge-score's (Lin 2004). chrF is sacrebleu's (Popović 2015; Post 2018) with its defaults: of the
whole split, not the mean over rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import TaskError
from autopeft.tasks.kinds.metric import Metric, ScoredRows, shrunk

__all__ = [
    "CHRF",
    "EXACT_MATCH",
    "LAST_NUMBER",
    "ROUGE_1",
    "ROUGE_2",
    "ROUGE_L",
    "check_installed",
    "mean_variance",
]

Texts = NDArray[Any]
_MOST_LETTERS = 100_000
# As LLM-Adapters scores arithmetic (Hu et al. 2023; AGI-Edgerunners/LLM-Adapters, evaluate.py).
_NUMBER, _NEAR = re.compile(r"-?[0-9]+(?:\.[0-9]*)?"), 1e-3


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


def _last_number(text: Any) -> float:
    """The last number of a text, whose commas part thousands; not a number where it has none."""
    found = _NUMBER.findall(str(text)[-_MOST_LETTERS:].replace(",", ""))
    return float(found[-1]) if found else math.nan


def _same_numbers(predictions: Texts, labels: Texts) -> NDArray[Any]:
    pairs = zip(predictions, labels, strict=True)
    near = [abs(_last_number(found) - _last_number(wanted)) <= _NEAR for found, wanted in pairs]
    return np.asarray(near, dtype=np.float64)


@cache
def _rouge(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name])


def _rouge_of(name: str) -> Callable[[Texts, Texts], NDArray[Any]]:
    """The F-measure of each row by one of rouge-score's figures."""

    def by_row(predictions: Texts, labels: Texts) -> NDArray[Any]:
        pairs = zip(map(_decodable, predictions), map(_decodable, labels), strict=True)
        found = [_rouge(name).score(wanted, said)[name].fmeasure for said, wanted in pairs]
        return np.asarray(found, dtype=np.float64)

    return by_row


def _decodable(text: Any) -> str:
    """A text without halves of surrogate pairs, which rouge-score cannot encode."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def check_installed(metric: Metric) -> None:
    """Look for what a metric needs beside this package.

    Raises:
        TaskError: it is not installed.
    """
    if metric.name == "chrf" and find_spec("sacrebleu") is None:
        raise TaskError("metric='chrf' is sacrebleu's, which is not installed: pip install 'autopeft[chrf]'.")


@cache
def _chrf() -> Any:
    check_installed(CHRF)
    from sacrebleu.metrics import CHRF as Scorer  # noqa: N811

    return Scorer()


def _chrf_counts(predictions: Texts, labels: Texts) -> NDArray[Any]:
    """What chrF counts of each row: n-grams of letters said, wanted and common, up to six, (rows, 18)."""
    said, wanted = ([str(text)[:_MOST_LETTERS] for text in texts] for texts in (predictions, labels))
    # The statistics of single sentences have no public name; they are what its significance tests use.
    return np.asarray(_chrf()._extract_corpus_statistics(said, [wanted]), dtype=np.float64)


def _chrf_of(counts: NDArray[Any]) -> float:
    return float(_chrf()._compute_score_from_stats(counts.tolist()).score) / 100


def _mean_of(name: str, summary: str, by_row: Callable[[Texts, Texts], NDArray[Any]]) -> Metric:
    """A metric that is the mean of a value for each row."""
    return Metric(
        name, 0, 1, summary, lambda found, wanted: float(by_row(found, wanted).mean()), mean_variance,
        by_row=by_row, generated=True,
    )  # fmt: skip


EXACT_MATCH = _mean_of(
    "exact_match",
    "share of generated answers that are the expected one; white space is one space, and none at the ends",
    _matches,
)
LAST_NUMBER = _mean_of(
    "last_number",
    "share of generated answers whose last number is that of the expected one, within 0.001",
    _same_numbers,
)
ROUGE_L = _mean_of(
    "rouge_l",
    "ROUGE-L of generated answers: F-measure of the longest common subsequence of words (a to z, 0 to 9)",
    _rouge_of("rougeL"),
)
ROUGE_1 = _mean_of(
    "rouge_1",
    "ROUGE-1 of generated answers: F-measure of common words (a to z, 0 to 9)",
    _rouge_of("rouge1"),
)
ROUGE_2 = _mean_of(
    "rouge_2",
    "ROUGE-2 of generated answers: F-measure of common pairs of neighbouring words, as rouge_1",
    _rouge_of("rouge2"),
)
CHRF = Metric(
    "chrf", 0, 1,
    "chrF2 of generated answers, of all rows together, over 100: F-measure of n-grams of up to six letters, "
    "up to 100,000 of each text",
    lambda found, wanted: _chrf_of(_chrf_counts(found, wanted).sum(axis=0)), mean_variance,
    by_row=_chrf_counts, of_sums=_chrf_of, generated=True,
)  # fmt: skip
