"""Tables beside a score, against scikit-learn's own report and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import classification_report

from autopeft.tasks.kinds import class_breakdowns, get_kind

NAMES = ("a", "b", "c", "d")
LABELS = np.asarray([0, 0, 0, 1, 1, 2])
PREDICTED = np.asarray([0, 0, 1, 1, 1, 0])


def test_each_class_is_scored() -> None:
    classes, confusion = class_breakdowns(PREDICTED, LABELS, NAMES)
    expected = classification_report(LABELS, PREDICTED, output_dict=True, zero_division=np.nan)
    for name, *scores in classes.rows[:2]:
        told = expected[str(NAMES.index(str(name)))]
        assert scores == pytest.approx([told[k] for k in ("precision", "recall", "f1-score", "support")])
    assert confusion.headers == ("true", *NAMES)
    assert confusion.rows == (("a", 2, 1, 0, 0), ("b", 0, 2, 0, 0), ("c", 1, 0, 0, 0), ("d", 0, 0, 0, 0))


def test_what_is_not_defined_is_no_zero() -> None:
    classes, _ = class_breakdowns(PREDICTED, LABELS, NAMES)
    _, precision, recall, f1, support = classes.rows[2]  # never predicted
    assert math.isnan(float(precision))
    assert (recall, f1, support) == (0.0, 0.0, 1)
    _, precision, recall, f1, support = classes.rows[3]  # neither there nor predicted
    assert all(map(math.isnan, map(float, (precision, recall, f1))))
    assert support == 0


def test_classification_takes_outputs() -> None:
    _, confusion = get_kind("classification").scorer.breakdown(np.eye(4)[PREDICTED], LABELS, NAMES)
    assert confusion == class_breakdowns(PREDICTED, LABELS, NAMES)[1]


def test_numbers_have_errors() -> None:
    outputs = np.asarray([[1.0], [2.0], [6.0]])
    (table,) = get_kind("regression").scorer.breakdown(outputs, np.asarray([1.0, 3.0, 3.0]), ())
    assert table.rows == (("all rows", pytest.approx(4 / 3), pytest.approx(math.sqrt(10 / 3)), 3.0),)
