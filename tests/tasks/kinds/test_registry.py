"""Kinds and metrics by name: what is refused when they are registered, and which kind takes a table."""

from __future__ import annotations

import math

import pytest

from autopeft.errors import DataError, TaskError
from autopeft.tasks.kinds import (
    METRICS,
    Metric,
    Schema,
    Scorer,
    TaskKind,
    choose_kind,
    get_kind,
    get_metric,
    kind_names,
    kinds_of,
    metrics_of,
    register_kind,
    register_metric,
)
from autopeft.tasks.kinds.classification import ClassScorer
from autopeft.tasks.table import ColumnNames, Table

pytestmark = pytest.mark.usefixtures("own_registry")
SHARE = Metric("share", 0, 1, "a share", lambda p, y: 0.5)
TABLES = {"train": Table("data.csv", {"text": ["a", "b"], "label": ["x", "y"]}, {})}


class Made(ClassScorer):
    metrics = (SHARE,)


def kind_like(name: str, claim: float = 0.0, scorer: Scorer | None = None) -> TaskKind:
    schema = type("MadeSchema", (Schema,), {"claim": lambda *_: claim})()
    return register_kind(TaskKind(name, "made", schema=schema, scorer=scorer or Made()))


def test_a_kind_is_found_by_name() -> None:
    kind_like("other")
    assert get_kind("other").name == "other"
    assert get_kind("classification").name == "classification"
    assert "other" in kind_names()
    assert metrics_of("other") == ("share",)
    assert kinds_of("share") == ("other",)
    assert get_metric("share") is SHARE is METRICS["share"]
    assert not get_kind("other").built_in
    assert get_kind("regression").built_in


def test_unknown_names_have_near_matches() -> None:
    with pytest.raises(TaskError, match=r"kind of task 'clasification'\. Did you mean 'classification'"):
        get_kind("clasification")
    with pytest.raises(TaskError, match="Did you mean 'pearson"):
        get_metric("pearsn")
    with pytest.raises(TaskError, match=r"autopeft\.task_kinds"):
        register_metric(SHARE, kind="nothing")


def test_what_a_kind_lacks_is_said() -> None:
    with pytest.raises(TaskError, match="'empty' needs a metric"):
        kind_like("empty", scorer=type("Empty", (Scorer,), {"loss": None})())
    with pytest.raises(TaskError, match="already a kind of task 'classification'"):
        kind_like("classification")
    with pytest.raises(TaskError, match="letters, digits"):
        kind_like("two words")
    assert not {"empty", "two words"} & set(kind_names())


def test_its_parts_are_its_own_and_know_its_name() -> None:
    scorer = Made()
    made = [kind_like(name, scorer=scorer) for name in ("one", "two")]
    for kind in made:
        assert {kind.name} == {part.kind for part in (kind.schema, kind.encoder, kind.head, kind.scorer)}
    with pytest.raises(TaskError, match="for classification, but the task is two"):
        Scorer.class_weights(made[1].scorer, "balanced", [], ())


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Metric("accuracy", 0, 1, "another", lambda p, y: 0.5), "already another metric 'accuracy'"),
        (Metric("m", 0, math.inf, "endless", lambda p, y: 0.5), "no finite range, so it needs a `variance`"),
        (Metric("m", 1, 0, "upside down", lambda p, y: 0.5), "needs low < high"),
        (Metric("m", 0, 1, "", lambda p, y: 0.5, lambda s, r: 1 / (1 - s)), "fails for score=1.0"),
        (Metric("m", 0, 1, "", lambda p, y: 0.5, lambda s, r: r.classes[1]), "fails for score=0.0 on 1 rows"),
        (Metric("m", 0, 1, "", lambda p, y: 0.5, lambda s, r: 0.5 - s), "is -0.0"),
    ],
)
def test_a_metric_that_could_fail_after_training_is_refused(metric: Metric, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        register_metric(metric, kind="classification")


def test_a_metric_joins_a_kind() -> None:
    endless = Metric("gain", -math.inf, math.inf, "bits", lambda p, y: 0.5, lambda s, rows: 1.0)
    for metric in (SHARE, endless, SHARE):
        register_metric(metric, kind="regression")
    assert metrics_of("regression")[-2:] == ("share", "gain")


def test_the_surest_claim_wins_unless_the_kind_or_metric_is_named() -> None:
    assert choose_kind(TABLES, ColumnNames()).name == "classification"
    kind_like("sure", 0.9)
    assert choose_kind(TABLES, ColumnNames()).name == "sure"
    assert choose_kind(TABLES, ColumnNames(), metric="accuracy").name == "classification"
    assert choose_kind(TABLES, ColumnNames(), kind="regression", metric="share").name == "regression"
    kind_like("surer", 0.95)
    assert choose_kind(TABLES, ColumnNames(), metric="share").name == "surer"
    kind_like("twin", 0.95)
    with pytest.raises(DataError, match=r"surer and twin.* --kind"):
        choose_kind(TABLES, ColumnNames())
