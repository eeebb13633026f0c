"""Metrics of generated answers: what the model writes, compared with the expected texts.

ROUGE is rouge-score's (Lin 2004). chrF is sacrebleu's (Popović 2015; Post 2018) with its defaults: of the
whole split, not the mean over rows.
"""

from __future__ import annotations

import math
import re
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import TaskError
from autopeft.tasks.kinds.metric import Metric, mean_metric, mean_variance

__all__ = [
    "CHRF",
    "EXACT_MATCH",
    "LAST_NUMBER",
    "ROUGE_1",
    "ROUGE_2",
    "ROUGE_L",
    "check_installed",
]

Texts = NDArray[Any]
_MOST_LETTERS = 100_000
# As LLM-Adapters scores arithmetic (Hu et al. 2023; AGI-Edgerunners/LLM-Adapters, evaluate.py).
_NUMBER, _NEAR = re.compile(r"-?[0-9]+(?:\.[0-9]*)?"), 1e-3


def _matches(predictions: Texts, labels: Texts) -> NDArray[Any]:
    pairs = zip(predictions, labels, strict=True)
    return np.asarray([str(a).split() == str(b).split() for a, b in pairs], dtype=np.float64)


def _last_number(text: Any) -> float:
    """The last number of a text, whose commas part thousands; not a number where it has none."""
    found = _NUMBER.findall(str(text)[-_MOST_LETTERS:].replace(",", ""))
    return float(found[-1]) if found else math.nan


def _same_numbers(predictions: Texts, labels: Texts) -> NDArray[Any]:
    pairs = zip(predictions, labels, strict=True)
    near = [abs(_last_number(found) - _last_number(wanted)) <= _NEAR for found, wanted in pairs]
    return np.asarray(near, dtype=np.float64)


def _rouge(name: str, predictions: Texts, labels: Texts) -> NDArray[Any]:
    """The F-measure of each row by one of rouge-score's figures, (rows,)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name])
    found = []
    for pair in zip(predictions, labels, strict=True):
        # Halves of surrogate pairs, which rouge-score cannot encode, become question marks.
        said, wanted = (str(text).encode("utf-8", "replace").decode("utf-8") for text in pair)
        found.append(scorer.score(wanted, said)[name].fmeasure)
    return np.asarray(found, dtype=np.float64)


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


EXACT_MATCH = mean_metric(
    "exact_match",
    "share of generated answers that are the expected one; white space is one space, and none at the ends",
    _matches,
    generated=True,
)
LAST_NUMBER = mean_metric(
    "last_number",
    "share of generated answers whose last number is that of the expected one, within 0.001",
    _same_numbers,
    generated=True,
)
ROUGE_L = mean_metric(
    "rouge_l",
    "ROUGE-L of generated answers: F-measure of the longest common subsequence of words (a to z, 0 to 9)",
    partial(_rouge, "rougeL"),
    generated=True,
)
ROUGE_1 = mean_metric(
    "rouge_1",
    "ROUGE-1 of generated answers: F-measure of common words (a to z, 0 to 9)",
    partial(_rouge, "rouge1"),
    generated=True,
)
ROUGE_2 = mean_metric(
    "rouge_2",
    "ROUGE-2 of generated answers: F-measure of common pairs of neighbouring words, as rouge_1",
    partial(_rouge, "rouge2"),
    generated=True,
)
CHRF = Metric(
    "chrf", 0, 1,
    "chrF2 of generated answers, of all rows together, over 100: F-measure of n-grams of up to six letters, "
    "up to 100,000 of each text",
    lambda found, wanted: _chrf_of(_chrf_counts(found, wanted).sum(axis=0)), mean_variance,
    by_row=_chrf_counts, of_sums=_chrf_of, generated=True,
)  # fmt: skip
