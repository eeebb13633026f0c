"""Metrics: agreement with the definitions, ranges, constant and unusable predictions."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import AutoPEFTError, TaskError
from autopeft.tasks.kinds import kinds_of
from autopeft.tasks.kinds.spans import Answers
from autopeft.tasks.kinds.tags import Tags
from autopeft.tasks.metrics import METRICS, check_metric, compute
from autopeft.tasks.tokens import ragged

Y = np.array([1, 1, 1, 0, 0, 0, 0, 0])
P = np.array([1, 1, 0, 1, 0, 0, 0, 0])
MISSING = () if find_spec("sacrebleu") else ("chrf",)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("accuracy", 6 / 8),
        ("f1", 2 * 2 / (2 * 2 + 1 + 1)),
        ("macro_f1", (2 / 3 + 2 * 4 / (2 * 4 + 1 + 1)) / 2),
        ("matthews", (2 * 4 - 1 * 1) / np.sqrt(3 * 3 * 5 * 5)),
    ],
)
def test_classification_scores_by_hand(metric: str, value: float) -> None:
    assert compute(metric, P, Y) == pytest.approx(value)


def test_correlations_by_hand() -> None:
    labels = np.array([1.0, 2.0, 3.0, 4.0])
    predictions = np.array([1.0, 2.0, 3.0, 10.0])
    pearson = np.corrcoef(predictions, labels)[0, 1]
    assert compute("pearson", predictions, labels) == pytest.approx(pearson)
    assert compute("spearman", predictions, labels) == pytest.approx(1.0)
    assert compute("pearson_spearman", predictions, labels) == pytest.approx((pearson + 1) / 2)


def test_scores_of_classes_and_single_outputs_are_reduced() -> None:
    logits = np.stack([1 - P, P], axis=1).astype(np.float32)
    assert compute("accuracy", logits, Y) == compute("accuracy", P, Y)
    assert compute("pearson", np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 4.0])) == pytest.approx(
        1.0
    )


@pytest.mark.parametrize("metric", ["matthews", "pearson", "spearman", "pearson_spearman"])
def test_constant_predictions_score_zero(metric: str) -> None:
    assert compute(metric, np.ones(8), Y) == 0.0
    assert compute(metric, P, np.ones(8)) == 0.0


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        sorted(
            name
            for name, metric in METRICS.items()
            if not metric.raw and kinds_of(name) and name not in MISSING
        )
    ),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1),
)
def test_scores_stay_in_their_range(metric: str, rows: list[tuple[int, int]]) -> None:
    predictions, labels = np.array(rows).T
    if METRICS[metric].generated:  # of texts
        predictions, labels = predictions.astype(str).astype(object), labels.astype(str).astype(object)
    kinds = kinds_of(metric)
    if "token_classification" in kinds:
        predictions, labels = ragged(predictions[:, None]), ragged([Tags([i], ("O", "B-a")) for i in labels])
    elif kinds == ("question_answering",):
        predictions = ragged([str(i) for i in predictions])
        labels = ragged([Answers([(0, str(i))], str(i), null=False) for i in labels])
    elif kinds == ("multi_label",):
        predictions, labels = predictions[:, None], labels[:, None]
    value = compute(metric, predictions, labels)
    assert METRICS[metric].low - 1e-9 <= value <= METRICS[metric].high + 1e-9


def test_wrong_input_is_refused() -> None:
    with pytest.raises(TaskError, match="Did you mean 'accuracy'"):
        compute("acuracy", P, Y)
    with pytest.raises(TaskError, match="shape"):
        compute("accuracy", P[:3], Y)
    with pytest.raises(TaskError, match="tags of words"):
        compute("entity_f1", P, Y)
    with pytest.raises(TaskError, match="one for each label"):
        compute("micro_f1", P, Y)
    with pytest.raises(TaskError, match="shape"):
        compute("accuracy", P[:0], Y[:0])
    with pytest.raises(AutoPEFTError, match="not finite"):
        compute("pearson", np.array([1.0, np.nan]), np.array([1.0, 2.0]))
    with pytest.raises(TaskError, match="choose from accuracy, f1, macro_f1, matthews"):
        check_metric("pearson", "classification", ("a", "b"))
    with pytest.raises(TaskError, match="use macro_f1"):
        check_metric("f1", "classification", ("a", "b", "c"))
