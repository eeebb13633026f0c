"""Sampling variances of metrics without a formula: near the truth, and never a failure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from autopeft.tasks import METRICS, ScoredSplit
from autopeft.tasks.kinds import Metric, get_kind, jackknife_variance
from autopeft.tasks.kinds.metric import ScoredRows, pseudo_values


def split(labels: Any) -> ScoredRows:
    return ScoredSplit("any", len(labels), labels=np.asarray(labels))


def without_formula(name: str) -> Metric:
    known = METRICS[name]
    return Metric(known.name, known.low, known.high, known.summary, known.score)


def test_the_jackknife_of_a_mean_is_its_variance() -> None:
    labels = np.arange(60) % 2
    predictions = np.where(np.arange(60) < 45, labels, 1 - labels)
    found = jackknife_variance(METRICS["accuracy"].score, predictions, labels)
    assert found == pytest.approx(0.75 * 0.25 / 59, rel=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1", "matthews"])
@pytest.mark.parametrize("score", [0.6, 0.9])
def test_simulation_is_near_the_formula(name: str, score: float) -> None:
    labels = np.arange(400) % 2
    counts = ScoredSplit(name, 400, (200, 200), labels)
    formula = math.sqrt(METRICS[name].sampling_variance(score, counts))
    assert math.sqrt(without_formula(name).sampling_variance(score, counts)) == pytest.approx(
        formula, rel=0.4
    )


def test_more_rows_vary_less_and_no_score_is_certain() -> None:
    metric = without_formula("accuracy")
    few, many = split(np.arange(300) % 3), split(np.arange(30_000) % 3)
    for score in (0.0, 0.5, 0.9, 1.0):
        assert 0 < metric.sampling_variance(score, many) < metric.sampling_variance(score, few) / 20


def test_words_as_labels() -> None:
    exact = Metric("exact", 0, 1, "share of equal words", lambda p, y: float(np.mean(p == y)))
    labels = np.array([f"word {i % 7}" for i in range(200)], dtype=object)
    assert exact.sampling_variance(0.8, split(labels)) == pytest.approx(0.8 * 0.2 / 200, rel=0.3)


def _fail(*_args: Any) -> float:
    raise RuntimeError("of the metric's own")


@pytest.mark.parametrize(
    "metric",
    [
        Metric("m", -1, 1, "fails", _fail),
        Metric("m", -1, 1, "no number", lambda p, y: math.nan),
        Metric("m", -1, 1, "constant", lambda p, y: 0.5),
        Metric("m", -1, 1, "its formula fails", lambda p, y: 0.5, _fail),
        Metric("m", -1, 1, "its formula is no number", lambda p, y: 0.5, lambda s, rows: math.nan),
        Metric("m", -1, 1, "takes outputs", lambda p, y: 0.5, raw=True),
    ],
)
@pytest.mark.parametrize("rows", [0, 1, 2, 100])
def test_what_cannot_be_computed_is_the_largest_that_the_range_allows(metric: Metric, rows: int) -> None:
    found = metric.sampling_variance(0.5, split(np.arange(rows) % 2))
    share = (rows * 0.75 + 1) / (rows + 2)
    assert found == pytest.approx(4 * share * (1 - share) / max(rows, 1))


def test_rows_without_labels_at_hand() -> None:
    metric = without_formula("accuracy")
    assert metric.sampling_variance(0.5, ScoredSplit("accuracy", 100)) == pytest.approx(0.25 / 100)


def test_pseudo_values_of_a_mean_are_the_means_of_groups() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(400)
    predictions = rng.normal(size=400)
    values = pseudo_values(lambda p, y: float((p - y).mean()), predictions, labels)
    assert len(values) == 100
    assert values.mean() == pytest.approx(predictions.mean())
    # Four rows to a group: the same rows for every model that answers so many.
    other = pseudo_values(lambda p, y: float((p - y).mean()), predictions + 2.0, labels)
    assert other - values == pytest.approx(np.full(100, 2.0))
    assert np.var(values, ddof=1) == pytest.approx(np.var(predictions, ddof=1) / 4, rel=0.3)


def test_pseudo_values_of_few_rows_are_the_rows() -> None:
    right = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    values = pseudo_values(lambda p, y: float((p == y).mean()), right, np.ones(5))
    assert sorted(values) == pytest.approx([0, 0, 1, 1, 1])


@pytest.mark.parametrize("name", ["f1", "macro_f1", "matthews", "pearson"])
def test_pseudo_values_of_other_metrics_average_to_the_score(name: str) -> None:
    rng, metric = np.random.default_rng(1), METRICS[name]
    labels = rng.integers(0, 2, 2000)
    predictions = np.where(rng.random(2000) < 0.8, labels, 1 - labels)
    values = pseudo_values(metric.score, predictions, labels)
    assert values.mean() == pytest.approx(metric.score(predictions, labels), abs=1e-3)


def test_a_metric_that_cannot_score_a_part_has_no_pseudo_values(caplog: pytest.LogCaptureFixture) -> None:
    def only_all(predictions: Any, labels: Any) -> float:
        if len(labels) < 6:
            raise ValueError("too few")
        return 0.5

    metric = Metric("only_all", 0, 1, "needs six rows", only_all)
    kind = get_kind("classification")
    logits = np.eye(2)[[0, 1, 0, 1, 0, 1]]
    assert kind.pseudo_values(metric, logits, np.array([0, 1, 0, 1, 0, 1])).size == 0
    assert "only_all" in caplog.text
    assert kind.pseudo_values(METRICS["accuracy"], logits[:1], np.array([0])).size == 0
    assert list(kind.pseudo_values(METRICS["accuracy"], logits, np.array([0, 1, 0, 1, 0, 1]))) == [1.0] * 6
