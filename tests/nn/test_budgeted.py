"""Golden numbers of S³PET's gates, and what holds for any logits, sizes and budgets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import BudgetError
from autopeft.nn.budgeted import (
    Jacobian,
    binary_concrete,
    budgeted_sigmoid,
    chosen_within,
    expected_gate,
    shift_for,
)

ALPHA = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
SIZES = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)


def jacobian_of(kind: Jacobian) -> torch.Tensor:
    return torch.autograd.functional.jacobian(  # type: ignore[no-any-return]
        lambda a: budgeted_sigmoid(a, SIZES, 30.0, jacobian=kind), ALPHA
    )


def test_the_shift_keeps_the_expected_size_at_the_budget() -> None:
    assert shift_for(ALPHA, SIZES, 30.0) == pytest.approx(-0.352768, abs=1e-6)
    p = budgeted_sigmoid(ALPHA, SIZES, 30.0)
    torch.testing.assert_close(p, torch.tensor([0.794582, 0.587289, 0.343614]).double(), atol=1e-6, rtol=0)


def test_the_exact_jacobian_leaves_the_expected_size_alone() -> None:
    expected = [[0.14311, -0.05973, -0.08338], [-0.02987, 0.15368, -0.12381], [-0.02779, -0.08254, 0.11033]]
    found = jacobian_of("exact")
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(SIZES @ found, torch.zeros(3).double(), atol=1e-12, rtol=0)


def test_the_reference_jacobian_does_not() -> None:
    expected = [[0.08806, -0.11162, -0.10386], [-0.05555, 0.15988, -0.07677], [-0.03250, -0.04827, 0.18063]]
    found = jacobian_of("reference")
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-5, rtol=0)
    drift = torch.tensor([-1.206, 0.633, 2.845]).double()
    torch.testing.assert_close(SIZES @ found, drift, atol=1e-3, rtol=0)


def test_a_gradient_by_differences_is_the_exact_one() -> None:
    step = 1e-6
    for j in range(3):
        there = torch.zeros(3).double()
        there[j] = step
        ahead, behind = (budgeted_sigmoid(ALPHA + s * there, SIZES, 30.0) for s in (1, -1))
        column = (ahead - behind) / (2 * step)
        torch.testing.assert_close(column, jacobian_of("exact")[:, j], atol=1e-7, rtol=0)


def test_gates_follow_the_binary_concrete_distribution() -> None:
    z = binary_concrete(torch.tensor(0.05447), torch.tensor([0.2, 0.5, 0.9]))
    torch.testing.assert_close(z, torch.tensor([0.01420, 0.05447, 0.34144]), atol=1e-5, rtol=0)
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for p, mean in ((0.0545, 0.1241), (0.1158, 0.2018), (0.2, 0.2828)):
        drawn = binary_concrete(torch.tensor(p, dtype=torch.float64), u)
        assert expected_gate(p) == pytest.approx(mean, abs=5e-5)
        assert float(drawn.mean()) == pytest.approx(mean, abs=3e-3)
        assert float((drawn > 0.5).double().mean()) == pytest.approx(p, abs=3e-3)
    assert expected_gate(0.5) == 0.5


def test_blocks_are_kept_as_long_as_they_fit() -> None:
    assert chosen_within(torch.tensor([0.9, 0.8, 0.7, 0.6]), (5, 4, 3, 2), 8) == [0, 2]


LOGITS = st.lists(st.floats(-30, 30), min_size=1, max_size=40)


@given(LOGITS, st.data())
def test_any_budget_is_met_and_a_common_shift_of_all_logits_means_nothing(
    logits: list[float], data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5000), min_size=len(logits), max_size=len(logits)))
    budget = data.draw(st.floats(0.001, 0.999)) * sum(sizes)
    temperature = data.draw(st.floats(0.1, 3))
    alpha, n = torch.tensor(logits, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)
    p = budgeted_sigmoid(alpha, n, budget, temperature=temperature)
    assert float((n * p).sum()) == pytest.approx(budget, rel=1e-6)
    again = budgeted_sigmoid(alpha + 7.0, n, budget, temperature=temperature)
    torch.testing.assert_close(again, p, atol=1e-9, rtol=0)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=30), st.integers(1, 300))
def test_what_is_kept_fits_and_nothing_more_does(blocks: list[tuple[float, int]], budget: int) -> None:
    sizes = [n for _, n in blocks]
    kept = chosen_within(torch.tensor([p for p, _ in blocks]), sizes, budget)
    left = budget - sum(sizes[i] for i in kept)
    assert left >= 0
    assert all(sizes[i] > left for i in range(len(sizes)) if i not in kept)


@pytest.mark.parametrize("budget", [0.0, 60.0, 100.0])
def test_a_budget_that_leaves_no_choice_is_refused_with_both_numbers(budget: float) -> None:
    with pytest.raises(BudgetError, match=rf"{budget:,.0f} parameters.*have 60;"):
        shift_for(ALPHA, SIZES, budget)
