"""What recipes are ranked by beside their score: the loss at the temperature that suits the rows best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from autopeft.tasks.kinds import get_kind, kind_names
from autopeft.tasks.kinds.tags import Tags
from autopeft.tasks.tokens import ragged

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 3, 60)
LOGITS = RNG.normal(size=(60, 3)) + 1.5 * np.eye(3)[CLASSES]


def _rows(kind: str) -> tuple[Any, Any]:
    """Outputs and labels of some rows, neither sure nor useless."""
    if kind == "classification":
        return LOGITS, CLASSES
    if kind == "multi_label":
        labels = RNG.integers(0, 2, (40, 4)).astype(np.float64)
        return RNG.normal(size=(40, 4)) + 2 * labels - 1, labels
    if kind == "multiple_choice":
        rows = [np.stack([row[: 2 + i % 2], np.ones(2 + i % 2)], axis=1) for i, row in enumerate(LOGITS)]
        return ragged(rows), np.minimum(CLASSES, 1)
    tags = [Tags(CLASSES[i : i + 4], ("O", "A", "B")) for i in range(0, 60, 4)]
    return ragged([LOGITS[i : i + 4] for i in range(0, 60, 4)]), ragged(tags)


@pytest.mark.parametrize("name", ["classification", "multi_label", "multiple_choice", "token_classification"])
def test_confidence_alone_changes_nothing(name: str) -> None:
    kind = get_kind(name)
    outputs, labels = _rows(name)
    plain, found = kind.scorer.row_loss(outputs, labels), kind.scorer.calibrated_loss(outputs, labels)
    assert plain is not None
    assert found is not None
    assert 0 < found <= plain
    for factor in (0.5, 4.0):
        assert kind.scorer.calibrated_loss(outputs * factor, labels) == pytest.approx(found, abs=1e-5)
        assert kind.scorer.row_loss(outputs * factor, labels) != pytest.approx(plain, abs=1e-2)


def test_it_is_the_least_loss_over_temperatures() -> None:
    kind = get_kind("classification")
    grid = [
        -log_softmax(3 * LOGITS / t, axis=1)[np.arange(60), CLASSES].mean()
        for t in np.exp(np.linspace(-3, 3, 2001))
    ]
    assert kind.scorer.calibrated_loss(3 * LOGITS, CLASSES) == pytest.approx(min(grid), abs=1e-5)


def test_what_is_right_more_often_but_too_sure_comes_first() -> None:
    kind = get_kind("classification")
    labels = np.repeat([0, 1], 50)
    sign = np.where(labels == 0, 1.0, -1.0)
    # Right in 80 rows of 100 with a log-odds of 12 each; right in 60 with 0.4 each.
    sure, timid = (np.where(np.arange(100) % 50 < n // 2, 1, -1) * sign for n in (80, 60))
    sure, timid = (np.stack([x * c / 2, -x * c / 2], axis=1) for x, c in ((sure, 12.0), (timid, 0.4)))
    plain = [kind.scorer.row_loss(outputs, labels) for outputs in (sure, timid)]
    told = [kind.scorer.calibrated_loss(outputs, labels) for outputs in (sure, timid)]
    assert plain[0] > plain[1]  # type: ignore[operator]
    assert told[0] < told[1]  # type: ignore[operator]
    assert told[0] == pytest.approx(-0.8 * np.log(0.8) - 0.2 * np.log(0.2), abs=1e-4)


def test_outputs_against_the_labels_are_worth_a_guess() -> None:
    kind = get_kind("classification")
    found = kind.scorer.calibrated_loss(-5 * LOGITS, CLASSES)
    assert found == pytest.approx(np.log(3), abs=0.05)


def test_kinds_without_logits_are_ranked_by_their_loss() -> None:
    assert {name for name in kind_names() if get_kind(name).scorer.tempered} >= {
        "classification",
        "token_classification",
    }
    assert not get_kind("causal_lm").scorer.tempered
    scorer, rows = get_kind("regression").scorer, (np.ones((3, 1)), np.ones(3))
    assert scorer.calibrated_loss(*rows) == scorer.row_loss(*rows)
