"""Answers that are spans of a text: the labels of a row, which span is answered, and SQuAD's metrics.

Exact match and F1 are those of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1): texts are
compared in lower case, without punctuation and the articles a, an, the, and with one space between words; F1
is that of the words, counted as often as they occur; the best of a row's acceptable answers counts. Where a
row has no answer (Rajpurkar et al. 2018, arXiv:1806.03822) both are 1 for an empty prediction, and 0 for any
other.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from autopeft.errors import AutoPEFTError
from autopeft.tasks.kinds.metric import mean_metric

__all__ = [
    "LONGEST",
    "SQUAD_EXACT_MATCH",
    "SQUAD_F1",
    "WHOLE",
    "Answers",
    "Found",
    "RowWindows",
    "Whole",
    "places_of_answer",
    "squad_plain",
]

LONGEST = 30
"""Tokens of an answer at most, as in the published script of BERT (Devlin et al. 2019)."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
Numbers = NDArray[Any]


class Answers(tuple[tuple[int, str], ...]):
    """The acceptable answers of a row, each the letter at which it begins and its text; none where the text
    does not answer the question.

    Attributes:
        context: the text that they are parts of.
        null: whether some questions of the task have no answer, so that none may be given.
    """

    context: str
    null: bool

    def __new__(cls, spans: Sequence[tuple[int, str]], context: str, null: bool) -> Answers:
        made = super().__new__(cls, [(int(start), str(text)) for start, text in spans])
        made.context, made.null = context, null
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Answers, (tuple(self), self.context, self.null)

    @property
    def texts(self) -> list[str]:
        """The answers; the empty text where there is none."""
        return [text for _, text in self] or [""]


class Whole:
    """Stands for the row's whole text as its answer, whatever that is."""


WHOLE: Final = Whole()


# Where an answer stands, and which one is found
# ------------------------------------------------------------------------------------------------------


def places_of_answer(spans: NDArray[np.int64], start: int, stop: int) -> tuple[int, int]:
    """The first and the last token of an answer in a window; (0, 0) where it is not in there as a whole.

    Args:
        spans: of each token the letters of the context that it stands for, (tokens, 2), and -1 for tokens of
            anything else.
        start, stop: letters of the answer.
    """
    there = np.flatnonzero(spans[:, 0] >= 0)
    if not len(there):
        return 0, 0
    begins, ends = spans[there, 0], spans[there, 1]
    if begins[0] > start or ends[-1] < stop:
        return 0, 0
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(begins, stop, side="left")) - 1
    return (int(there[first]), int(there[last])) if first <= last else (0, 0)


class Found(NamedTuple):
    """An answer that was found: letters `start` to `stop` of the context, which are -1 where there is none,
    and its probability in its window."""

    text: str
    start: int
    stop: int
    probability: float


@dataclass(frozen=True)
class RowWindows:
    """What a model says of a row.

    Attributes:
        context: the text that is read.
        windows: of each window an array (tokens, 4): logits of the answer's beginning and end, and which
            letters of the context the token stands for, -1 for tokens of anything else.
        null: whether no answer may be given.
    """

    context: str
    windows: tuple[NDArray[np.float64], ...]
    null: bool

    def __post_init__(self) -> None:
        if not all(np.isfinite(window[:, :2]).all() for window in self.windows):
            raise AutoPEFTError("The predictions hold values that are not finite; they cannot be scored.")

    @property
    def answer(self) -> Found:
        """The span of up to `LONGEST` tokens of the context whose two logits have the largest sum, over all
        windows; of equal ones that of the first window, then the first, then the shortest. None where none
        may be given and the first token has the larger sum in each window, as in the published script."""
        best, at = -np.inf, (0, 0, 0)
        for i, window in enumerate(self.windows):
            score, first, last = _best(window)
            if score > best:
                best, at = score, (i, first, last)
        window = self.windows[at[0]]
        if self.null or not np.isfinite(best):
            empty = [float(w[0, 0] + w[0, 1]) for w in self.windows]
            if min(empty) > best:
                w = self.windows[int(np.argmin(empty))]
                return Found("", -1, -1, _probability(w, 0, 0))
        first, last = at[1:]
        start, stop = int(window[first, 2]), int(window[last, 3])
        text = self.context[start:stop]
        # Tokens may hold the space before a word.
        start += len(text) - len(text.lstrip())
        text = text.strip()
        return Found(text, start, start + len(text), _probability(window, first, last))

    def losses(self, answers: Answers) -> list[float]:
        """The mean of the cross-entropies of beginning and end in each window, over its tokens."""
        found = []
        for window in self.windows:
            # Places of the first answer, which is the one that is learnt.
            first = last = 0
            if answers:
                begin, text = answers[0]
                first, last = places_of_answer(window[:, 2:].astype(np.int64), begin, begin + len(text))
            start, end = (logsumexp(window[:, k]) - window[at, k] for k, at in enumerate((first, last)))
            found.append(float(start + end) / 2)
        return found


def _best(window: NDArray[np.float64]) -> tuple[float, int, int]:
    """The largest sum of a window's spans in the context, and the first and the last token of the span."""
    there = np.flatnonzero(window[:, 2] >= 0)
    if not len(there):
        return -np.inf, 0, 0
    starts, ends = window[there, 0], window[there, 1]
    sums = np.full((len(there), min(LONGEST, len(there))), -np.inf)
    for more in range(sums.shape[1]):
        sums[: len(there) - more, more] = starts[: len(there) - more] + ends[more:]
    first, more = divmod(int(np.argmax(sums)), sums.shape[1])
    return float(sums[first, more]), int(there[first]), int(there[first + more])


def _probability(window: NDArray[np.float64], first: int, last: int) -> float:
    logs = [window[at, k] - logsumexp(window[:, k]) for k, at in enumerate((first, last))]
    return float(np.exp(sum(logs)))


# Metrics
# ------------------------------------------------------------------------------------------------------


def squad_plain(text: str) -> str:
    """A text as SQuAD compares it."""
    return " ".join(_ARTICLES.sub(" ", str(text).lower().translate(_PUNCTUATION)).split())


def _exact(predictions: Numbers, labels: Numbers) -> Numbers:
    """Of each row 1 where the answer is an acceptable one, else 0, (rows,)."""
    pairs = zip(map(squad_plain, predictions), labels, strict=True)
    return np.asarray([float(found in map(squad_plain, wanted.texts)) for found, wanted in pairs])


def _f1(predictions: Numbers, labels: Numbers) -> Numbers:
    """Of each row the F1 of the words of the answer, of the acceptable one that it is nearest to, (rows,)."""
    found = []
    for prediction, answers in zip(predictions, labels, strict=True):
        said, best = squad_plain(prediction).split(), 0.0
        for text in answers.texts:
            right = squad_plain(text).split()
            common = sum((Counter(said) & Counter(right)).values())
            best = max(
                best, 2 * common / (len(said) + len(right)) if said and right else float(said == right)
            )
        found.append(best)
    return np.asarray(found)


SQUAD_EXACT_MATCH = mean_metric(
    "squad_exact_match",
    "SQuAD's exact match: share of rows whose answer is an acceptable one, but for case, punctuation and "
    "articles",
    _exact,
)
SQUAD_F1 = mean_metric(
    "squad_f1", "SQuAD's F1 of the words of an answer, of the acceptable one that it is nearest to", _f1
)
