"""sum, chain and gate against explicit arithmetic on one site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import tiny_inputs, tiny_model
from torch import Tensor

from autopeft.composition import Chain, ChildSpec, Gate, Sum
from autopeft.errors import CompositionError
from autopeft.hybrid import attach
from autopeft.method import Call, Context, ParameterCount, WeightTarget
from autopeft.recipe import Recipe
from autopeft.spec import Site

SITE = Site("encoder", 0, "ffn", "region", 4, 4)
CALL = Call(Context())


class Scale:
    """δ = a·y + b·x; weight → current + a·original; one key row of ones times a."""

    def __init__(self, name: str, a: float, b: float = 0.0) -> None:
        self.name, self.a, self.b = name, a, b
        self.gated: list[bool] = []

    def delta(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        self.gated.append(call.gated)
        return self.a * y + self.b * x

    def reads(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return x

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        return current + self.a * original

    def key_value(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        rows = torch.full((1, 1, 4), self.a)
        return rows, 2 * rows


class Factor:
    """Merged it is a times the weight, and it adds a to the bias."""

    def __init__(self, a: float) -> None:
        self.a = a

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.a * weight, None if bias is None else bias + self.a


def _specs(*names: str) -> list[ChildSpec]:
    return [ChildSpec(n, n, frozenset({"hook"}), (SITE,)) for n in names]


X, Y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)


def test_sum_reads_the_same_y() -> None:
    delta = Sum().delta(SITE, [Scale("a", 2.0), Scale("b", 3.0, 1.0)], X, Y, CALL)
    torch.testing.assert_close(delta, 5 * Y + X)


def test_chain_reads_what_the_one_before_left() -> None:
    delta = Chain().delta(SITE, [Scale("a", 2.0), Scale("b", 3.0)], X, Y, CALL)
    torch.testing.assert_close(delta, (1 + 2) * (1 + 3) * Y - Y)


def test_weights_add_in_a_sum_and_compound_in_a_chain() -> None:
    target = WeightTarget(site=SITE)
    w0, current = torch.randn(4, 4), torch.randn(4, 4)
    children: list[Any] = [Scale("a", 2.0), Scale("b", 3.0)]
    torch.testing.assert_close(Sum().weight(target, children, w0, current), current + 5 * w0)
    torch.testing.assert_close(Chain().weight(target, children, w0, current), current + 11 * w0)


def test_merged_changes_add_in_a_sum_and_compound_in_a_chain() -> None:
    weight, bias, children = torch.randn(4, 4), torch.randn(4), list[Any]([Factor(2.0), Factor(3.0)])
    for kind, factor in ((Sum, 1 + 1 + 2), (Chain, 2 * 3)):
        merged, shifted = kind().merged(SITE, children, weight, bias)
        torch.testing.assert_close(merged, factor * weight)
        assert shifted is not None
        torch.testing.assert_close(shifted, bias + 5)


def test_prefixes_follow_each_other() -> None:
    keys, values = Sum().key_value(SITE, [Scale("a", 2.0), Scale("b", 3.0)], X, CALL)
    assert keys[0, :, 0].tolist() == [2.0, 3.0]
    assert values[0, :, 0].tolist() == [4.0, 6.0]


def test_gate_is_the_masked_mean_of_a_sigmoid_and_replaces_the_childs_scale() -> None:
    gate = Gate.build(_specs("a", "b"), {"masked": True})
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    children: list[Any] = [Scale("a", 2.0), Scale("b", 3.0)]
    delta = gate.delta(SITE, children, X, Y, Call(Context(mask=mask)))
    expected = torch.zeros_like(Y)
    for child in children:
        linear: Any = gate.gates[child.name].at[SITE.key]  # type: ignore[union-attr, operator]
        for b, n in ((0, 3), (1, 1)):
            g = torch.sigmoid(X[b, :n] @ linear.weight[0] + linear.bias).mean()
            expected[b] += g * child.a * Y[b]
    torch.testing.assert_close(delta, expected)
    assert all(c.gated == [True] for c in children)


def test_a_gate_that_is_not_masked_counts_padding() -> None:
    gate = Gate.build(_specs("a"), {"masked": False})
    call = Call(Context(mask=torch.tensor([[1, 1, 1], [1, 0, 0]])))
    linear: Any = gate.gates["a"].at[SITE.key]  # type: ignore[union-attr, operator]
    expected = torch.sigmoid(X @ linear.weight[0] + linear.bias).mean(1)[:, None, None]
    torch.testing.assert_close(gate.delta(SITE, [Scale("a", 2.0)], X, Y, call), expected * 2 * Y)


def test_gate_scales_keys_and_values_of_each_example() -> None:
    gate = Gate.build(_specs("a"), {"masked": True})
    keys, values = gate.key_value(SITE, [Scale("a", 2.0)], X, CALL)
    assert keys.shape == (2, 1, 4)
    torch.testing.assert_close(values, 2 * keys)
    assert not torch.equal(keys[0], keys[1])


def test_a_gate_counts_width_plus_one_for_each_child_and_site() -> None:
    assert Gate.parameter_count(_specs("a", "b"), {}) == ParameterCount(10, 10)
    assert sum(p.numel() for p in Gate.build(_specs("a", "b"), {}).parameters()) == 10
    assert (
        Sum.parameter_count(_specs("a"), {}) == Chain.parameter_count(_specs("a"), {}) == ParameterCount(0, 0)
    )


def _weight(name: str, *, pretrained: bool = False) -> ChildSpec:
    return ChildSpec(name, name, frozenset({"weight"}), (SITE,), pretrained)


def test_what_reads_pretrained_tensors_comes_first_in_a_chain() -> None:
    Chain.check([_weight("hiwi", pretrained=True), _weight("dora")], {})
    with pytest.raises(CompositionError, match="put hiwi first"):
        Chain.check([_weight("dora"), _weight("hiwi", pretrained=True)], {})


@pytest.mark.parametrize("variant", ["series", "input", "parallel"])
@pytest.mark.parametrize("site", ["up", "down", "q"])
def test_a_gate_is_as_wide_as_what_its_child_reads(site: str, variant: str) -> None:
    """Behind a map that is its output, where the two widths differ."""
    options = {"bottleneck": 4, "sites": [site], "variant": variant}
    model = tiny_model("bert")
    hybrid = attach(
        model, Recipe.from_dict({"layers": [{"attach": [{"gate": [{"linear_adapter": options}]}]}]})
    )
    assert torch.isfinite(model(**tiny_inputs("bert")).logits).all()
    assert sum(p.numel() for p in hybrid.root.parameters()) == hybrid.counts().deployed
