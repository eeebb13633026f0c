"""Entities are found as seqeval finds them, and metrics of tags add up over rows."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autopeft.tasks.kinds import get_metric
from autopeft.tasks.kinds.metric import pseudo_values
from autopeft.tasks.kinds.tags import (
    ENTITY_F1,
    TAG_ACCURACY,
    TAG_F1,
    Tags,
    entities,
    entity_types,
    outside_of,
    spell_entities,
)
from autopeft.tasks.tokens import ragged

CASES = json.loads((Path(__file__).parents[2] / "fixtures" / "entities" / "cases.json").read_text())
NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def rows_of(rows: list[list[str]], names: tuple[str, ...] = NAMES) -> Any:
    return ragged([Tags([names.index(tag) for tag in row], names) for row in rows])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['names'])}-{case['f1']:.3f}")
def test_entities_are_those_of_seqeval(case: dict[str, Any]) -> None:
    names = tuple(case["names"])
    truth, found = rows_of(case["true"], names), rows_of(case["predicted"], names)
    assert ENTITY_F1.by_row is not None
    assert ENTITY_F1.by_row(found, truth).tolist() == case["counts"]
    assert ENTITY_F1.score(found, truth) == pytest.approx(case["f1"])


def test_entities_end_with_their_row() -> None:
    names = ("O", "B-a", "I-a")
    tags, rows = np.array([1, 2, 2, 0, 1, 1]), np.array([0, 0, 1, 1, 1, 2])
    assert entities(tags, rows, names).tolist() == [[0, 1, 0], [2, 2, 0], [4, 4, 0], [5, 5, 0]]
    assert entities(np.empty(0, dtype=np.int64), np.empty(0), names).shape == (0, 3)


def test_bilou_is_read_as_iobes() -> None:
    names = ("O", "B-a", "L-a", "U-a")
    tags = np.array([1, 2, 3, 3, 0, 2])
    assert entities(tags, np.zeros(6), names).tolist() == [[0, 1, 0], [2, 2, 0], [3, 3, 0], [5, 5, 0]]


@pytest.mark.parametrize(
    ("names", "spelt"),
    [
        (NAMES, True),
        (("O", "I-PER"), True),
        (("O", "B", "I"), True),
        (("B-a-b", "I-a-b"), True),
        (("O", "I"), False),
        (("NOUN", "VERB"), False),
        (("O", "B-a", "swap"), False),
        (("O",), False),
    ],
)
def test_which_tags_spell_entities(names: tuple[str, ...], spelt: bool) -> None:
    assert spell_entities(names) is spelt


def test_types_and_the_tag_outside() -> None:
    assert entity_types(NAMES) == ("LOC", "PER")
    assert entity_types(("O", "B", "I")) == ("entity",)
    assert outside_of(NAMES) == 0
    assert outside_of(("B-a", "O")) == 1
    assert outside_of(("NOUN", "VERB")) == 0


def test_tags_of_single_words() -> None:
    truth = rows_of([["O", "B-PER", "I-PER"], ["O", "O"]])
    found = rows_of([["B-LOC", "B-PER", "O"], ["O", "O"]])
    assert TAG_F1.score(found, truth) == pytest.approx(2 * 1 / (2 + 2))
    assert TAG_ACCURACY.score(found, truth) == pytest.approx(3 / 5)
    nothing = rows_of([["O"], ["O"]])
    assert [m.score(nothing, nothing) for m in (ENTITY_F1, TAG_F1, TAG_ACCURACY)] == [0.0, 0.0, 1.0]
    classes = ("NOUN", "VERB", "ADJ")
    truth, found = rows_of([["NOUN", "VERB"]], classes), rows_of([["VERB", "VERB"]], classes)
    assert TAG_F1.score(found, truth) == pytest.approx(2 / 3), "NOUN is what most words have"


def test_scores_of_all_rows_but_a_group_follow_from_counts() -> None:
    """What rows contribute is computed from counts, and is what scoring again and again gives."""
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 5, draw.integers(1, 9)) for _ in range(40)]
    truth = ragged([Tags(row.tolist(), NAMES) for row in rows])
    found = ragged([np.where(draw.random(len(row)) < 0.3, 0, row) for row in rows])
    for metric in (ENTITY_F1, TAG_F1, TAG_ACCURACY):
        assert metric.by_row is not None
        assert metric.of_sums is not None
        slow = pseudo_values(metric.score, found, truth)
        whole = metric.of_sums
        fast = pseudo_values(lambda c, _, w=whole: w(c.sum(axis=0)), metric.by_row(found, truth), truth)
        assert fast == pytest.approx(slow)


def test_the_variance_is_that_of_scores_over_rows() -> None:
    """Of 400 draws of rows whose words err by chance; entities of a row are nearly independent here."""
    draw = np.random.default_rng(0)

    def drawn() -> tuple[Any, Any]:
        rows = [draw.choice(5, 12, p=[0.7, 0.1, 0.1, 0.05, 0.05]) for _ in range(60)]
        noisy = [np.where(draw.random(12) < 0.2, draw.integers(0, 5, 12), row) for row in rows]
        return ragged(noisy), ragged([Tags(row.tolist(), NAMES) for row in rows])

    for metric in (TAG_F1, TAG_ACCURACY, ENTITY_F1):
        pairs = [drawn() for _ in range(200)]
        scores = [metric.score(*pair) for pair in pairs]

        class Rows:
            rows, classes, labels = 60, (), pairs[0][1]

        assert metric.variance is not None
        told = metric.variance(float(np.mean(scores)), Rows())
        assert 0.6 < told / np.var(scores) < 1.7, metric.name


def test_they_travel_and_are_found_by_name() -> None:
    tags = Tags([0, 1], NAMES)
    again = pickle.loads(pickle.dumps(tags))
    assert (again, again.names) == (tags, NAMES)
    assert tags.at([1]).names == NAMES
    assert json.dumps([tags]) == "[[0, 1]]"
    assert get_metric("entity_f1") is ENTITY_F1
