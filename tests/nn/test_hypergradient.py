from __future__ import annotations

import pytest
import torch
from support.bilevel import ToyStep
from torch import Tensor, nn

from autopeft.method import OuterStep
from autopeft.nn import hypergradient


def toy_problem(rates: tuple[float, float]) -> tuple[ToyStep, list[nn.Parameter]]:
    """Two parameters and c in fp64, both losses smooth and of all three."""
    generator = torch.Generator().manual_seed(4)
    a, b, c = (nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64)) for n in (3, (3, 2), 3))
    x1, x2 = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def lower() -> Tensor:
        return ((x1 * (a * c.softmax(0))).tanh() @ b).square().mean() + (c * a).sin().sum()

    def upper() -> Tensor:
        return ((x2 * a).tanh() @ (b * c.softmax(0)[:, None])).sub(1).square().mean()

    return ToyStep([a, b], rates, lower, upper), [c]


def unrolled(step: ToyStep) -> float:
    """L₂(θ − η∇L₁(θ, c), c) at the present c."""
    start = [p.detach().clone() for p in step.parameters]
    gradient = step.lower(step.parameters)
    with torch.no_grad():
        for parameter, rate, g in zip(step.parameters, step.rates, gradient, strict=True):
            parameter -= rate * g
        value = float(step.losses["upper"]())
        for parameter, begin in zip(step.parameters, start, strict=True):
            parameter.copy_(begin)
    return value


@pytest.mark.parametrize("rates", [(0.5, 0.5), (0.3, 1.5), (1e-5, 1e-5)])
def test_it_equals_finite_differences_of_the_unrolled_loss(rates: tuple[float, float]) -> None:
    step, (c,) = toy_problem(rates)
    (found,) = hypergradient(step, [c])
    expected = torch.zeros_like(c)
    for i in range(len(c)):
        values = []
        for side in (1e-5, -1e-5):
            with torch.no_grad():
                c[i] += side
                values.append(unrolled(step))
                c[i] -= side
        expected[i] = (values[0] - values[1]) / 2e-5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    if rates[0] > 0.1:
        # The part that goes through the step on the training rows counts.
        start = [p.detach().clone() for p in step.parameters]
        with torch.no_grad():
            for parameter, rate, g in zip(step.parameters, rates, step.lower(step.parameters), strict=True):
                parameter -= rate * g
        (direct,) = step.upper([c])
        with torch.no_grad():
            for parameter, begin in zip(step.parameters, start, strict=True):
                parameter.copy_(begin)
        assert not torch.allclose(direct, expected, rtol=1e-2)


def test_it_asks_for_three_lower_gradients_and_an_upper_one() -> None:
    step, selection = toy_problem((0.1, 0.1))
    hypergradient(step, selection)
    assert step.asked == [("lower", 2), ("upper", 3), ("lower", 1), ("lower", 1)]


def test_the_parameters_are_bitwise_the_same_afterwards_also_after_an_error() -> None:
    step, selection = toy_problem((0.7, 0.2))
    before = [p.detach().clone() for p in (*step.parameters, *selection)]
    hypergradient(step, selection)
    assert all(torch.equal(p, b) for p, b in zip((*step.parameters, *selection), before, strict=True))

    def fail() -> Tensor:
        raise KeyboardInterrupt

    step.losses["upper"] = fail
    with pytest.raises(KeyboardInterrupt):
        hypergradient(step, selection)
    assert all(torch.equal(p, b) for p, b in zip((*step.parameters, *selection), before, strict=True))


def test_without_a_way_through_the_parameters_the_direct_part_is_left() -> None:
    step, (c,) = toy_problem((0.0, 0.0))
    (direct,) = step.upper([c])
    assert torch.equal(hypergradient(step, [c])[0], direct)
    step.losses["upper"] = lambda: c.square().sum()
    step.rates = (0.5, 0.5)
    torch.testing.assert_close(hypergradient(step, [c])[0], 2 * c.detach())


def test_the_step_is_what_the_contract_says() -> None:
    step: OuterStep = toy_problem((0.1, 0.1))[0]
    assert len(step.parameters) == len(step.rates)
