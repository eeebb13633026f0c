"""Hard-concrete gates, dense deltas behind them, and the penalty that closes them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from autopeft.nn import GatedDeltas, HardConcrete
from autopeft.spec import TensorSpec

TENSORS = (TensorSpec("a", (3, 4), "weight"), TensorSpec("b", (5,), "bias"))
DRAWS = 200_000


def gated(*, grouped: bool = False, location: float = 0.3) -> GatedDeltas:
    deltas = GatedDeltas(TENSORS, HardConcrete(), location, grouped=grouped)
    with torch.no_grad():
        for i, p in enumerate(deltas.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return deltas


@pytest.mark.parametrize(("low", "high"), [(-1.5, 1.5), (-0.1, 1.1), (-0.5, 2.0)])
@pytest.mark.parametrize("location", [-2.0, 0.0, 1.5])
def test_gates_are_closed_and_open_as_often_as_the_formula_says(
    low: float, high: float, location: float
) -> None:
    gate, a = HardConcrete(low, high), torch.full((DRAWS,), location)
    torch.manual_seed(0)
    z = gate(a, gate.noise(a))

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    closed = sigmoid(math.log(-low / high) - location)
    whole = 1 - sigmoid(math.log((1 - low) / (high - 1)) - location)
    assert float((z == 0).double().mean()) == pytest.approx(closed, abs=0.006)
    assert float((z == 1).double().mean()) == pytest.approx(whole, abs=0.006)
    assert float(gate.open(a)[0]) == pytest.approx(1 - closed, rel=1e-5)
    assert 0 <= float(z.min()) <= float(z.max()) <= 1


def test_without_noise_they_are_those_of_one_half() -> None:
    gate, a = HardConcrete(), torch.linspace(-8, 8, 50)
    half = torch.full_like(a, 0.5)
    torch.testing.assert_close(gate(a), gate(a, half.log() - (1 - half).log()))
    torch.testing.assert_close(gate(a), (torch.sigmoid(a) * 3 - 1.5).clamp(0, 1))


def test_the_gradient_of_a_location() -> None:
    """∂L/∂a = ∂L/∂θ·w·(r − l)·s·(1 − s) where 0 < s' < 1, and nothing elsewhere."""
    deltas, upstream = gated(), torch.randn(3, 4)
    torch.manual_seed(4)
    deltas.draw()
    (deltas.change("a", drawn=True) * upstream).sum().backward()
    key = "a"
    noise, a = deltas._noise[0, key], deltas.locations[key].detach()
    s = torch.sigmoid(noise + a)
    inside = ((s * 3 - 1.5 > 0) & (s * 3 - 1.5 < 1)).float()
    w = deltas["a"].detach()
    torch.testing.assert_close(deltas.locations[key].grad, upstream * w * 3 * s * (1 - s) * inside)
    torch.testing.assert_close(deltas["a"].grad, upstream * (s * 3 - 1.5).clamp(0, 1))
    assert 0 < inside.sum() < 12


def test_the_gradient_of_a_tensor_s_location_is_a_sum_over_its_entries() -> None:
    deltas, upstream = gated(grouped=True), torch.randn(3, 4)
    deltas.draw()
    z = deltas.gate(deltas.locations["a"], deltas._noise[0, "a"]).detach()
    with torch.no_grad():
        deltas.shared["a"].fill_(-0.2)
        deltas._noise[1, "a"].fill_(0.3)
    (deltas.change("a", drawn=True) * upstream).sum().backward()
    s = torch.sigmoid(torch.tensor(0.1))
    expected = (upstream * deltas["a"].detach() * z).sum() * 3 * s * (1 - s)
    torch.testing.assert_close(deltas.shared["a"].grad, expected.reshape(1))


def test_a_closed_tensor_does_not_change_and_an_open_one_is_as_without_its_gate() -> None:
    grouped, alone = gated(grouped=True), gated()
    alone.load_state_dict({k: v for k, v in grouped.state_dict().items() if "shared" not in k})
    with torch.no_grad():
        grouped.shared["a"].fill_(-20.0)
        grouped.shared["b"].fill_(20.0)
    for drawn in (False, True):
        torch.manual_seed(1)
        grouped.draw()
        alone._noise = {key: noise for key, noise in grouped._noise.items() if key[0] == 0}
        assert not grouped.change("a", drawn=drawn).any()
        assert torch.equal(grouped.change("b", drawn=drawn), alone.change("b", drawn=drawn))


def _open(a: Tensor) -> Tensor:
    return torch.sigmoid(a)


def test_the_expected_numbers() -> None:
    deltas = gated(grouped=True)
    a, b = deltas.locations["a"], deltas.locations["b"]
    entries, tensors = [_open(a).sum(), _open(b).sum()], [_open(deltas.shared[k])[0] for k in "ab"]
    torch.testing.assert_close(deltas.expected(), sum(entries) + sum(tensors))
    product = entries[0] * tensors[0] + entries[1] * tensors[1]
    torch.testing.assert_close(deltas.expected("product"), product)
    alone = gated()
    for joint in ("sum", "product"):
        torch.testing.assert_close(
            alone.expected(joint), sum(_open(a).sum() for a in alone.locations.values())
        )


def test_every_gate_is_drawn_by_itself_and_anew() -> None:
    deltas = gated(grouped=True)
    deltas.draw()
    first = {key: noise.clone() for key, noise in deltas._noise.items()}
    flat = torch.cat([noise.flatten() for noise in first.values()])
    assert len(flat.unique()) == len(flat) == 19
    deltas.draw()
    assert not any(torch.equal(first[key], deltas._noise[key]) for key in first)
