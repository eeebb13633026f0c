"""Classification: what its labels are, its loss, weights and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from autopeft.errors import DataError, TaskError
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.kinds.classification import CrossEntropy
from autopeft.tasks.table import RawRows, same_numbers

LOGITS = torch.tensor([[2.0, -1.0], [0.5, 0.25], [-3.0, 1.0], [0.0, 4.0], [1.0, 1.5]])
LABELS = torch.tensor([0, 1, 1, 0, 1])
KIND = get_kind("classification")


def rows(*labels: Any, where: str = "data.csv") -> RawRows:
    return RawRows(where, [f"t{i}" for i in range(len(labels))], None, list(labels))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["pos", "neg", "pos"], ("neg", "pos")),
        (["10", "9", "10"], ("9", "10")),
        ([1.0, "1", 0, "0.0"], ("0", "1")),
        ([True, False], ("False", "True")),
        (["0.5", "1.5", "0.5"], ("0.5", "1.5")),
        ([2**60, 2**60 + 1], (str(2**60), str(2**60 + 1))),
        (["1_0", "10"], ("10", "1_0")),
        ([1, 1.0, 0.5, np.int64(0)], ("0.0", "0.5", "1.0")),
        (["1", "1.0", "1.50"], ("1", "1.0", "1.50")),
    ],
)
def test_classes(labels: list[Any], classes: tuple[str, ...]) -> None:
    found, encoded = KIND.schema.encode_labels([rows(*labels)])
    assert found == classes
    assert [found[i] for i in encoded[0]] == [_as_named(value, found) for value in labels]


def _as_named(value: Any, classes: Sequence[str]) -> str:
    if str(value) in classes:
        return str(value)
    return str(float(value)) if str(float(value)) in classes else str(int(float(value)))


def test_classes_that_are_named_keep_their_order() -> None:
    order = ("no", "maybe", "yes")
    assert KIND.schema.encode_labels([rows("maybe", "no")], order) == (order, [[1, 0]])
    assert KIND.schema.encode_labels([rows("b", "a")], order) == (("a", "b"), [[1, 0]])


@pytest.mark.parametrize(
    ("order", "labels", "encoded"),
    [
        (("1.0", "1.5", "2.0"), (2, 1), [2, 0]),
        (("1.0", "1.5", "2.0"), ("1", "2.00"), [0, 2]),
        (("0", "1", "2"), (1.0, "2"), [1, 2]),
        (("1.10", "1.5"), (1.5, 1.1), [1, 0]),
    ],
)
def test_numbers_are_the_classes_of_their_value(
    order: tuple[str, ...], labels: tuple[Any, ...], encoded: list[int]
) -> None:
    assert KIND.schema.encode_labels([rows(*labels)], order) == (order, [encoded])


def test_large_whole_numbers_are_told_apart() -> None:
    order = (str(2**60), "0")
    found, _ = KIND.schema.encode_labels([rows(2**60 + 1, 0)], order)
    assert found == ("0", str(2**60 + 1))
    assert same_numbers(["1.0", "x", "nan"], ["1", "1.00"]) == {}
    assert same_numbers(["1.0", "x", "nan"], ["1", "2"]) == {"1.0": "1"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([rows("a", "a")], "all rows have the label 'a'"),
        ([rows(*(f"id{i}" for i in range(50)))], "50 different labels in 50 rows are not classes"),
        ([rows(0.5, float("inf"))], "not finite in row 2"),
        ([rows("a", "b"), rows("c", "a", where="test")], "test has labels that data.csv lacks.*'c'"),
    ],
)
def test_unusable_labels(parts: list[RawRows], message: str) -> None:
    with pytest.raises(DataError, match=message):
        KIND.schema.encode_labels(parts)


@pytest.mark.parametrize("weights", [None, [0.5, 3.0]])
def test_cross_entropy_is_torch_s_own(weights: list[float] | None) -> None:
    expected = F.cross_entropy(LOGITS, LABELS, weight=None if weights is None else torch.tensor(weights))
    assert torch.allclose(KIND.scorer.loss(("a", "b"), weights).mean(LOGITS, {"labels": LABELS}), expected)


@pytest.mark.parametrize("weights", [None, [0.5, 3.0]])
def test_parts_add_up_to_the_batch(weights: list[float] | None) -> None:
    loss = CrossEntropy(weights)
    parts = [loss.total(LOGITS[a:b], {"labels": LABELS[a:b]}) for a, b in ((0, 2), (2, 3), (3, 5))]
    assert float(sum(parts)) / loss.weight({"labels": LABELS}) == pytest.approx(
        float(loss.mean(LOGITS, {"labels": LABELS})), rel=1e-6
    )


def test_class_weights() -> None:
    assert KIND.scorer.class_weights("balanced", [0, 0, 0, 1], ("a", "b")) == pytest.approx([2 / 3, 2.0])
    assert KIND.scorer.class_weights([1, 2.5], [0, 1], ("a", "b")) == [1.0, 2.5]
    assert KIND.scorer.class_weights(None, [0, 1], ("a", "b")) is None
    with pytest.raises(TaskError, match="every class in train; none of 'b' is"):
        KIND.scorer.class_weights("balanced", [0, 0], ("a", "b"))
    with pytest.raises(TaskError, match="2 positive class weights"):
        KIND.scorer.class_weights([1.0, -1.0], [0, 1], ("a", "b"))


def test_labels_move_to_the_order_of_a_head() -> None:
    assert KIND.schema.relabel([0, 1, 1], ("a", "c"), ("c", "b", "a")) == [2, 0, 0]
    assert KIND.schema.class_counts([0, 1, 1], ("a", "b", "c")) == (1, 2, 0)


def test_a_prediction_is_the_likeliest_class() -> None:
    output = np.array([0.0, np.log(3.0)], dtype=np.float32)
    found = KIND.scorer.present(output, ("no", "yes"))
    assert found["label"] == "yes"
    assert found["probabilities"] == pytest.approx({"no": 0.25, "yes": 0.75})
    assert KIND.scorer.line(found) == "yes  0.7500"
    assert KIND.scorer.decisions(output[None]).tolist() == [1]


def test_the_loss_of_rows_is_their_mean_cross_entropy() -> None:
    found = KIND.scorer.row_loss(LOGITS.numpy(), LABELS.numpy())
    assert found == pytest.approx(float(F.cross_entropy(LOGITS, LABELS)))
    large = np.array([[1e4, 0.0], [0.0, 1e4]])
    assert KIND.scorer.row_loss(large, np.array([0, 0])) == pytest.approx(5e3)
    assert KIND.scorer.row_loss(LABELS.numpy(), LABELS.numpy()) is None, "decisions have no loss"
    assert KIND.scorer.row_loss(LOGITS.numpy()[:0], LABELS.numpy()[:0]) is None
