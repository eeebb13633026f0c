"""Regression: which labels it claims, its loss, strata and predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autopeft.errors import DataError, TaskError
from autopeft.tasks.kinds import choose_kind, get_kind
from autopeft.tasks.table import ColumnNames, RawRows, Table

KIND = get_kind("regression")
NUMBERS = [i / 4 for i in range(44)]


def rows(*labels: Any) -> RawRows:
    return RawRows("data.csv", [f"t{i}" for i in range(len(labels))], None, list(labels))


def chosen(labels: list[Any], metric: str | None = None, names: tuple[str, ...] | None = None) -> str:
    table = Table(
        "data.csv", {"text": ["t"] * len(labels), "label": labels}, {"label": names} if names else {}
    )
    return choose_kind({"train": table}, ColumnNames(), metric=metric).name


@pytest.mark.parametrize(
    ("labels", "metric", "kind"),
    [
        ([str(n) for n in NUMBERS], None, "regression"),
        ([str(n) for n in NUMBERS[:10] * 2], None, "classification"),
        ([*NUMBERS, "many"], None, "classification"),
        ([*NUMBERS, None], None, "classification"),
        ([*NUMBERS, float("inf")], None, "regression"),
        (list(range(30)), None, "classification"),
        (list(range(30)), "pearson", "regression"),
        (NUMBERS, "accuracy", "classification"),
        (NUMBERS, "acuracy", "regression"),
        ([True, False] * 20, None, "classification"),
    ],
)
def test_many_fractional_numbers_mean_regression(labels: list[Any], metric: str | None, kind: str) -> None:
    assert chosen(labels, metric) == kind


def test_classes_that_the_format_names_are_no_numbers() -> None:
    assert chosen([0, 1] * 12, names=("no", "yes")) == "classification"


def test_labels_stay_the_numbers_that_they_are() -> None:
    assert KIND.schema.encode_labels([rows(*map(str, NUMBERS)), rows(1, 2.5)]) == ((), [NUMBERS, [1.0, 2.5]])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (rows("a", "b"), "not all numbers"),
        (rows(1.0, 1.0), "all labels are 1.0; there is nothing to learn"),
        (rows(0.5, float("inf")), "not finite in row 2"),
    ],
)
def test_unusable_labels(part: RawRows, message: str) -> None:
    with pytest.raises(DataError, match=message):
        KIND.schema.encode_labels([part])


def test_the_loss_is_the_mean_squared_error() -> None:
    loss = KIND.scorer.loss(())
    batch = {"labels": torch.tensor([3.0, 3.0])}
    assert float(loss.mean(torch.tensor([[1.0], [4.0]]), batch)) == pytest.approx(2.5)
    parts = loss.total(torch.tensor([[1.0]]), {"labels": torch.tensor([3.0])}), loss.weight(batch)
    assert float(parts[0]) / parts[1] == pytest.approx(2.0)


def test_strata_are_tenths_of_the_ranks() -> None:
    assert KIND.schema.strata([float(i**3) for i in range(20)]) == [i // 2 for i in range(20)]


def test_there_are_no_class_weights() -> None:
    assert KIND.scorer.class_weights(None, [0.5], ()) is None
    with pytest.raises(TaskError, match="for classification, but the task is regression"):
        KIND.scorer.class_weights("balanced", [0.5], ())


def test_a_prediction_is_a_number() -> None:
    output = np.array([[2.5]], dtype=np.float32)
    assert KIND.scorer.decisions(output).tolist() == [2.5]
    assert KIND.scorer.line(KIND.scorer.present(output[0], ())) == "2.5000"
