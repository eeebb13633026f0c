"""Pairs of methods: each works, or is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from autopeft.method import method_names

FOLDER = "composition_matrix"
Import = Callable[[str], Any]


@pytest.fixture(scope="module")
def matrix(load: Import) -> Any:
    return load("matrix")


def _check(matrix: Any, pairs: Any) -> list[Any]:
    outcomes = [matrix.outcome_of(pair) for pair in pairs]
    assert [o for o in outcomes if o.outcome not in ("works", "refused")] == []
    assert all(o.reason.strip() for o in outcomes if o.outcome == "refused")
    return outcomes


def test_every_pair_is_in_the_matrix_once(matrix: Any) -> None:
    n = len(method_names())
    pairs = matrix.all_pairs()
    assert len(pairs) == len(set(pairs)) == 2 * n * (n + 1) // 2
    assert {p.backbone for p in pairs} == {"bert", "llama"}


def test_one_pair_of_each_class_of_shared_site(matrix: Any) -> None:
    pairs = matrix.one_of_each_class(matrix.all_pairs())
    assert len({matrix.class_of(pair) for pair in pairs}) == len(pairs)
    outcomes = _check(matrix, pairs)
    assert sum(o.outcome == "works" for o in outcomes) > len(outcomes) // 2


def test_a_sample_of_all_pairs(matrix: Any) -> None:
    pairs = matrix.sampled(matrix.all_pairs(), 0.05)
    assert pairs == matrix.sampled(matrix.all_pairs(), 0.05)
    _check(matrix, pairs)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_pair(matrix: Any) -> None:
    _check(matrix, matrix.all_pairs())


def test_a_method_that_nothing_reaches_is_found(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA whose B gets no gradient, as a pair that hides a site from it would leave it."""
    from autopeft.nn import LowRankPair

    forward = LowRankPair.forward

    def deaf(self: Any, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x).detach()

    monkeypatch.setattr(LowRankPair, "forward", deaf)
    outcome = matrix.outcome_of(matrix.Pair("bert", "ia3", "lora"))
    assert outcome.outcome == "broken"
    assert "lora.at.encoder-0-q.B" in outcome.reason


def test_a_crash_is_no_refusal(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("gone")

    monkeypatch.setattr(matrix, "train", fall)
    outcome = matrix.outcome_of(matrix.Pair("llama", "ia3", "lora"))
    assert (outcome.outcome, outcome.reason) == ("broken", "ZeroDivisionError: gone")


def test_the_table_counts_and_numbers_the_reasons(load: Import, matrix: Any) -> None:
    outcomes = [
        matrix.Outcome("bert", "ia3", "ia3", "works"),
        matrix.Outcome("bert", "ia3", "lora", "refused", "too\nmuch"),
        matrix.Outcome("bert", "lora", "lora", "refused", "too\nmuch"),
    ]
    text = load("run").table(outcomes)
    assert "3 pairs: 1 work (·), 2 are refused." in text
    assert "| ia3 | · | 1 |" in text
    assert "1. too much\n" in text


def test_the_table_is_that_of_the_recorded_outcomes(load: Import) -> None:
    run = load("run")
    assert (run.RESULTS / "table.md").read_text(encoding="utf-8") == run.table(run.recorded())
