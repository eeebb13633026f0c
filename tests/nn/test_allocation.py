"""A budget along a ranking, against a brute-force count of the first τ entries for every τ."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autopeft.nn import Whole, allocate, leading_entries

Problem = tuple[list[Tensor], list[Whole]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Tensors of a few entries with scores that may be equal, and what may stand for each."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    scores = [torch.tensor(draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)), dtype=torch.float32)
              for n in sizes]  # fmt: skip
    wholes = [Whole(draw(st.integers(1, 15)), draw(st.sampled_from([1.0, 1.5, 3.0, 10.0]))) for _ in sizes]
    return scores, wholes


def brute(scores: list[Tensor], wholes: list[Whole], budget: int) -> tuple[set[int], list[bool], int]:
    """The last τ whose sum the budget suffices for: single entries, what is whole, and the sum."""
    flat = torch.cat(scores).tolist()
    numbers = [i for i, score in enumerate(scores) for _ in range(len(score))]
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
    best: tuple[set[int], list[bool], int] = (set(), [False] * len(scores), 0)
    for tau in range(1, len(flat) + 1):
        counts = [0] * len(scores)
        for i in order[:tau]:
            counts[numbers[i]] += 1
        whole = [c >= w.cost / w.worth and c > 0 for c, w in zip(counts, wholes, strict=True)]
        total = sum(w.cost if is_whole else c for c, w, is_whole in zip(counts, wholes, whole, strict=True))
        if total <= budget:
            best = ({i for i in order[:tau] if not whole[numbers[i]]}, whole, total)
    return best


@settings(max_examples=300)
@given(problems(), st.integers(0, 60))
def test_it_is_the_best_prefix_of_the_ranking(problem: Problem, budget: int) -> None:
    scores, wholes = problem
    found = allocate(*leading_entries(scores, wholes), wholes, budget)
    entries, whole, total = brute(scores, wholes, budget)
    assert found.total == total <= budget
    assert set(found.entries.tolist()) == entries
    assert list(found.whole) == whole
    assert len(found.entries) == len(entries)


@pytest.mark.parametrize(("entries", "whole"), [(9, False), (10, True), (11, True)])
def test_the_whole_takes_their_place_exactly_at_cost_over_worth(entries: int, whole: bool) -> None:
    scores = [torch.cat([torch.full((entries,), 2.0), torch.zeros(500 - entries)]), torch.ones(40)]
    wholes = [Whole(100, 10.0), Whole(10**6, 1.0)]
    # A budget for the sensitive ones of the first and a single one of the second.
    budget = (100 if whole else entries) + 1
    found = allocate(*leading_entries(scores, wholes), wholes, budget)
    assert found.whole == (whole, False)
    assert found.total == budget
    assert len(found.entries) == (1 if whole else entries + 1)


@pytest.mark.parametrize(
    ("cost", "worth", "threshold"), [(100, 10.0, 10), (101, 10.0, 11), (3, 10.0, 1), (7, 1.0, 7)]
)
def test_thresholds(cost: int, worth: float, threshold: int) -> None:
    assert Whole(cost, worth).threshold == threshold


def test_no_more_is_ranked_than_a_budget_can_depend_on() -> None:
    positions, numbers = leading_entries(
        [torch.rand(1000), torch.rand(1000)], [Whole(50, 5.0), Whole(8, 2.0)]
    )
    assert torch.bincount(numbers).tolist() == [10, 4]
    assert len(set(positions.tolist())) == 14


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        leading_entries([torch.tensor([1.0, float("nan")])], [Whole(1, 1.0)])
