"""Hard-concrete gates, dense deltas behind them, and the penalty that closes them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from autopeft.nn import GatedDeltas, HardConcrete, gated_deltas
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


def test_u_stays_a_ten_thousandth_away_from_either_end() -> None:
    """As in the authors' code, so that no draw moves a gate by more than log 9,999."""
    torch.manual_seed(0)
    noise = HardConcrete().noise(torch.empty(DRAWS))
    assert [float(noise.min()), float(noise.max())] == pytest.approx(
        [-math.log(9999), math.log(9999)], rel=1e-3
    )


def test_without_noise_they_are_those_of_one_half() -> None:
    gate, a = HardConcrete(), torch.linspace(-8, 8, 50)
    half = torch.full_like(a, 0.5)
    torch.testing.assert_close(gate(a), gate(a, half.log() - (1 - half).log()))
    torch.testing.assert_close(gate(a), (torch.sigmoid(a) * 3 - 1.5).clamp(0, 1))


def noise_of(deltas: GatedDeltas, name: str, i: int = 0) -> Tensor | None:
    """Noise of the latest draw: of a tensor's entries, or of the gate that it has itself; none without a
    draw."""
    gates, locations = deltas._of(name, drawn=True)
    parts = [noise[i] for _, noise in gates.noise(locations)]
    if i:
        return parts[0]
    return torch.cat(parts).view(deltas[name].shape) if gates.seeds else None


def plain(deltas: GatedDeltas, name: str, current: Tensor, *, drawn: bool) -> Tensor:
    """θ + z·w as autograd has it."""
    key = deltas._key(name)
    held = [h[key] for h in (deltas.locations, deltas.shared) if key in h]
    z = [deltas.gate(a, noise_of(deltas, name, i) if drawn else None) for i, a in enumerate(held)]
    gates = z[0] if len(z) == 1 else z[0] * z[1]
    return current + (gates * deltas[name]).to(current.dtype)


def drawn_change(deltas: GatedDeltas, name: str) -> Tensor:
    return deltas.added_to(name, torch.zeros_like(deltas[name]), drawn=True)


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which a tensor has several, the last one shorter."""
    monkeypatch.setattr(gated_deltas, "_PIECE", 5)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_autograd(grouped: bool, drawn: bool, dtype: torch.dtype) -> None:
    deltas = gated(grouped=grouped)
    torch.manual_seed(6)
    deltas.draw()
    for tensor in TENSORS:
        current, upstream = torch.randn(tensor.shape, dtype=dtype), torch.randn(tensor.shape, dtype=dtype)
        found = []
        for act in (deltas.added_to, partial(plain, deltas)):
            deltas.zero_grad()
            own = current.clone().requires_grad_()
            changed = act(tensor.name, own, drawn=drawn)
            (changed * upstream).sum().backward()
            if act == deltas.added_to:
                _complete(deltas, drawn=drawn)
            found.append([changed, own.grad, *(p.grad for p in deltas.parameters() if p.grad is not None)])
        assert len(found[0]) == 4 + grouped
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a.numel() > 1)
        torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)


def _complete(deltas: GatedDeltas, *, drawn: bool) -> None:
    seeds = deltas._seeds
    deltas._seeds = seeds if drawn else {}
    deltas.complete_gradients()
    deltas._seeds = seeds


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("joint", ["sum", "product"])
def test_the_gradient_of_the_expected_number_is_that_of_autograd(joint: Any) -> None:
    deltas, gate = gated(grouped=True), HardConcrete()
    deltas.complete_gradients(0.3, joint)
    found = [a.grad.clone() for a in deltas.all_locations()]
    assert all(w.grad is None for w in deltas.differences()), "no backward has reached them"
    deltas.zero_grad()
    pairs = [(gate.open(deltas.locations[k]).sum(), gate.open(deltas.shared[k]).sum()) for k in "ab"]
    (0.3 * sum(e * t if joint == "product" else e + t for e, t in pairs)).backward()
    torch.testing.assert_close(found, [a.grad for a in deltas.all_locations()], rtol=1e-6, atol=1e-8)


def test_without_a_backward_and_a_penalty_there_is_no_gradient() -> None:
    deltas = gated(grouped=True)
    deltas.complete_gradients()
    assert all(p.grad is None for p in deltas.parameters())


def test_nothing_of_a_tensor_s_size_is_kept_for_the_backward() -> None:
    deltas = gated(grouped=True)
    own = {p.data_ptr() for p in deltas.parameters()}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own and tensor.numel() > 1:
            kept.append(tensor)
        return tensor

    deltas.draw()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = deltas.added_to("a", torch.zeros(3, 4), drawn=True).sum() + deltas.expected("product")
        assert not kept
        plain(deltas, "a", torch.zeros(3, 4), drawn=True).sum()
    assert [k for k in kept if k.numel() == 12], "autograd's own way does"
    loss.backward()
    assert torch.equal(deltas["a"].grad, torch.ones(3, 4)), "it is that of what acts"
    assert all(a.grad is None for a in deltas.all_locations())


def test_frozen_ones_get_no_gradient() -> None:
    deltas = gated().requires_grad_(False)
    current = torch.zeros(5, requires_grad=True)
    deltas.added_to("b", current).sum().backward()
    assert torch.equal(current.grad, torch.ones(5))
    assert all(p.grad is None for p in deltas.parameters())


def test_the_gradient_of_a_location() -> None:
    """∂L/∂a = ∂L/∂θ·w·(r − l)·s·(1 − s) where 0 < s' < 1, and nothing elsewhere."""
    deltas, upstream = gated(), torch.randn(3, 4)
    torch.manual_seed(4)
    deltas.draw()
    (drawn_change(deltas, "a") * upstream).sum().backward()
    deltas.complete_gradients()
    key = "a"
    noise, a = noise_of(deltas, "a"), deltas.locations[key].detach()
    s = torch.sigmoid(noise + a)
    inside = ((s * 3 - 1.5 > 0) & (s * 3 - 1.5 < 1)).float()
    w = deltas["a"].detach()
    torch.testing.assert_close(deltas.locations[key].grad, upstream * w * 3 * s * (1 - s) * inside)
    torch.testing.assert_close(deltas["a"].grad, upstream * (s * 3 - 1.5).clamp(0, 1))
    assert 0 < inside.sum() < 12


def test_the_gradient_of_a_tensor_s_location_is_a_sum_over_its_entries() -> None:
    deltas, upstream = gated(grouped=True), torch.randn(3, 4)
    deltas.draw()
    z = deltas.gate(deltas.locations["a"], noise_of(deltas, "a")).detach()
    noise = noise_of(deltas, "a", 1)
    with torch.no_grad():
        deltas.shared["a"].copy_(0.1 - noise)
    (drawn_change(deltas, "a") * upstream).sum().backward()
    deltas.complete_gradients()
    s = torch.sigmoid(torch.tensor(0.1))
    expected = (upstream * deltas["a"].detach() * z).sum() * 3 * s * (1 - s)
    torch.testing.assert_close(deltas.shared["a"].grad, expected.reshape(1))


def test_a_closed_tensor_does_not_change_and_an_open_one_is_as_without_its_gate() -> None:
    grouped, alone = gated(grouped=True), gated()
    alone.load_state_dict({k: v for k, v in grouped.state_dict().items() if "shared" not in k})
    with torch.no_grad():
        grouped.shared["a"].fill_(-20.0)
        grouped.shared["b"].fill_(20.0)
    torch.manual_seed(1)
    grouped.draw()
    alone._seeds = {key: seeds[:1] for key, seeds in grouped._seeds.items()}
    for change in (GatedDeltas.change, drawn_change):
        assert not change(grouped, "a").any()
        assert torch.equal(change(grouped, "b"), change(alone, "b"))


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


@pytest.mark.usefixtures("_small_pieces")
def test_every_gate_is_drawn_by_itself_and_anew() -> None:
    deltas = gated(grouped=True)

    def noise() -> Tensor:
        return torch.cat([noise_of(deltas, n, i).flatten() for n in "ab" for i in (0, 1)])

    deltas.draw()
    first = noise()
    assert len(first.unique()) == len(first) == 19
    assert torch.equal(noise(), first), "it stays until the next one"
    deltas.draw()
    assert not bool((noise() == first).any())


def test_draws_follow_the_global_generator() -> None:
    deltas, found = gated(), []
    for _ in range(2):
        torch.manual_seed(3)
        deltas.draw()
        found.append(noise_of(deltas, "a"))
    assert torch.equal(*found)
