"""Sampling variances of metrics without a formula: near the truth, and never a failure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autopeft.tasks import METRICS, ScoredSplit
from autopeft.tasks.kinds import Metric, get_kind, jackknife_variance
from autopeft.tasks.kinds.metric import ScoredRows, groups_of, pseudo_values


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


@given(st.lists(st.sampled_from([1, 1, 1, 2, 5, 40, 300]), min_size=1, max_size=400))
@example([1] * 300 + [20] * 10)
def test_groups_are_as_equally_large_as_texts_allow(sizes: list[int]) -> None:
    groups = groups_of(sizes)
    rows = np.bincount(groups, sizes, minlength=min(100, len(sizes)))
    assert len(rows) == min(100, len(sizes))
    # No larger than the largest text, or than by one text the mean: a text is in one group.
    assert rows.max() <= max(max(sizes), rows.mean() + max(sizes))
    assert rows.min() >= 1
    # A text of more rows than groups have on average shares its group with none.
    many = [groups[i] for i, size in enumerate(sizes) if size * len(rows) >= sum(sizes)]
    assert all(np.count_nonzero(groups == group) == 1 for group in many)
    assert list(groups) == list(groups_of(np.array(sizes)))


def _share(predictions: Any, labels: Any) -> float:
    return float((predictions == labels).mean())


def _f1(predictions: Any, labels: Any) -> float:
    return float(2 * (predictions * labels).sum() / (predictions.sum() + labels.sum()))


@pytest.mark.parametrize("rows", [2, 99, 100, 101, 872, 5000])
def test_rows_that_all_differ_are_grouped_as_ever(rows: int) -> None:
    """Contributions that earlier runs have stored stay those of the same groups."""
    expected = np.random.default_rng(0).permutation(np.arange(rows) % min(100, rows))
    assert groups_of([1] * rows).tolist() == expected.tolist()
    right = (np.arange(rows) % 3 > 0).astype(float)
    known = pseudo_values(_share, right, np.ones(rows), np.arange(rows))
    assert known.tolist() == pseudo_values(_share, right, np.ones(rows)).tolist()


@pytest.mark.parametrize(
    "sizes",
    [[5] * 60, [1] * 300 + [20] * 10, [1, 2, 3, 4, 5, 6] * 20, [60, 30, 20, 15, 12, *[1] * 63], [9] * 300],
)
@pytest.mark.parametrize("score", [_share, _f1])
def test_contributions_vary_as_the_score_does_over_texts(score: Any, sizes: list[int]) -> None:
    """Texts are drawn with their sizes, and a text is answered alike wherever it stands."""
    rng, scores, found = np.random.default_rng(4), [], []
    for _ in range(150):
        drawn = rng.choice(sizes, len(sizes))
        texts = np.repeat(np.arange(len(drawn)), drawn)
        labels = rng.integers(0, 2, len(drawn))
        answers = np.where(rng.random(len(drawn)) < 0.8, labels, 1 - labels)
        scores.append(score(answers[texts], labels[texts]))
        values = pseudo_values(score, answers[texts], labels[texts], texts)
        found.append(np.var(values, ddof=1) / len(values))
    # 150 draws know a standard deviation to 6 % (one standard error), and the jackknife is a little above.
    assert 0.85 <= math.sqrt(float(np.mean(found))) / float(np.std(scores)) <= 1.35


def test_a_metric_that_cannot_score_a_part_has_no_pseudo_values(caplog: pytest.LogCaptureFixture) -> None:
    def only_all(predictions: Any, labels: Any) -> float:
        if len(labels) < 6:
            raise ValueError("too few")
        return 0.5

    metric = Metric("only_all", 0, 1, "needs six rows", only_all)
    kind = get_kind("classification")
    logits = np.eye(2)[[0, 1, 0, 1, 0, 1]]
    assert kind.scorer.pseudo_values(metric, logits, np.array([0, 1, 0, 1, 0, 1])).size == 0
    assert "only_all" in caplog.text
    assert kind.scorer.pseudo_values(METRICS["accuracy"], logits[:1], np.array([0])).size == 0
    caplog.clear()
    one = np.zeros(6, dtype=np.int64)
    assert kind.scorer.pseudo_values(METRICS["accuracy"], logits, np.array([0, 1, 0, 1, 0, 1]), one).size == 0
    assert not caplog.text, "that one text says nothing is no failure"
    assert (
        list(kind.scorer.pseudo_values(METRICS["accuracy"], logits, np.array([0, 1, 0, 1, 0, 1])))
        == [1.0] * 6
    )
