"""A large module that is cut is the small one with the leading slices of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import configured
from torch import Tensor
from torch.func import functional_call

from autopeft.errors import MethodError
from autopeft.hybrid import Hybrid, attach
from autopeft.method import get_method, method_names, narrowed
from autopeft.recipe import Recipe

LARGE, SMALL = 5, 2
# Options beside the one that is narrowed; where a method has several kinds of tensors, once with each.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "lora": [
        {},
        {"alpha": 8, "rank_stabilized": True, "sites": ["q", "up", "down"]},
        {"alpha": "rank", "shared_down": True, "sites": ["q", "k", "v", "o"]},
    ],
    "serial_adapter": [{}, {"variant": "houlsby"}, {"bias": False}],
    "parallel_adapter": [{"scale": "learned"}, {"sites": ["attention"]}],
    "linear_adapter": [{"bias": True}, {"variant": "input", "sites": ["up"]}],
    "prefix_tuning": [{"reparameterization": 6}, {"reparameterization": None}],
    "apt": [{}, {"token_gate": False, "reparameterization": 6}],
}
CUTS = [
    (name, field, options)
    for name in method_names()
    for field in getattr(get_method(name), "narrow", {})
    for options in OPTIONS.get(name, [{}])
]


def hybrid_of(name: str, options: Mapping[str, Any], arch: str = "bert") -> Hybrid:
    item = [{name: dict(options)}]
    where = {"layers": [{"attach": item}]} if get_method(name).traits.level == "layers" else {"model": item}
    return attach(tiny_model(arch), Recipe.from_dict({"name": "x", **where}), seed=0)


def both(name: str, field: str, options: Mapping[str, Any]) -> tuple[Hybrid, Hybrid, dict[str, Tensor]]:
    """The large hybrid, the small one, and the large one's parameters cut to the small one's."""
    large, small = (hybrid_of(name, {**options, field: size}) for size in (LARGE, SMALL))
    randomise(large.root)
    tensors = dict(large.modules[name].named_parameters())
    return large, small, narrowed(large.graph.entries[name].method, config_of(small, name), tensors)


def config_of(hybrid: Hybrid, name: str) -> Any:
    return hybrid.graph.entries[name].method.config


def run_with(hybrid: Hybrid, name: str, parameters: Mapping[str, Tensor]) -> Tensor:
    """Logits of the model with these in place of the module's parameters."""
    own = {id(p): n for n, p in hybrid.modules[name].named_parameters()}
    given = {n: parameters[own[id(p)]] for n, p in hybrid.model.named_parameters() if id(p) in own}
    assert len(given) == len(own)
    inputs = {k: v for k, v in tiny_inputs("bert", pad=2).items() if k != "labels"}
    out: Tensor = functional_call(hybrid.model, given, kwargs=inputs).logits
    return out


def test_what_supernets_are_built_of_can_be_narrowed() -> None:
    """The modules of NOAH and of the hybrids beside it: low rank, bottlenecks, prefixes, prompts."""
    named = {name for name, _, _ in CUTS}
    assert named >= {"lora", "dylora", "serial_adapter", "parallel_adapter", "prefix_tuning", "p_tuning_v2"}
    assert named >= {"prompt_tuning", "aprompt"}


@pytest.mark.parametrize(("name", "field", "options"), CUTS)
def test_cut_tensors_are_a_small_module_s_and_as_many_as_are_counted(
    name: str, field: str, options: dict[str, Any]
) -> None:
    large, small, cut = both(name, field, options)
    expected = {n: tuple(p.shape) for n, p in small.modules[name].named_parameters()}
    assert {n: tuple(t.shape) for n, t in cut.items()} == expected
    whole = dict(large.modules[name].named_parameters())
    for key, tensor in cut.items():
        assert torch.equal(tensor, whole[key][tuple(slice(n) for n in tensor.shape)])
    entry = small.graph.entries[name]
    counted = entry.method.parameter_count(entry.sites, small.spec).trained
    assert sum(t.numel() for t in cut.values()) == counted < sum(t.numel() for t in whole.values())

    inputs = tiny_inputs("bert", pad=2)
    by_views = run_with(small, name, cut)
    small.modules[name].load_state_dict(cut, strict=False)
    small.model.eval()
    assert torch.equal(logits(small.model, inputs), by_views)
    assert not torch.allclose(logits(large.model, inputs), by_views)


@pytest.mark.parametrize(("name", "field", "options"), CUTS)
def test_a_small_module_s_gradients_reach_the_leading_slices_alone(
    name: str, field: str, options: dict[str, Any]
) -> None:
    large, small, cut = both(name, field, options)
    run_with(small, name, cut).square().sum().backward()
    reached = 0.0
    for key, whole in large.modules[name].named_parameters():
        if key not in cut:
            assert whole.grad is None
            continue
        assert whole.grad is not None, key
        beyond = whole.grad.clone()
        beyond[tuple(slice(n) for n in cut[key].shape)] = 0
        assert not beyond.any()
        reached += float(whole.grad.abs().sum())
    assert reached > 0


@pytest.mark.parametrize(
    ("name", "field", "off"),
    [
        ("lora", "rank", {"B": 1}),
        ("moslora", "rank", {"A": 0, "B": 1}),
        ("dora", "rank", {"B": 1}),
        ("serial_adapter", "bottleneck", {"up.weight": 1}),
        ("parallel_adapter", "bottleneck", {"up.weight": 1}),
        ("linear_adapter", "bottleneck", {"up.weight": 1}),
    ],
)
def test_a_narrowed_module_is_the_large_one_with_the_rest_at_zero(
    name: str, field: str, off: dict[str, int]
) -> None:
    """An outside measure of what is kept: the first ranks, or the first neurons of a bottleneck."""
    large, small, cut = both(name, field, {})
    with torch.no_grad():
        for key, tensor in large.modules[name].named_parameters():
            for end, dimension in off.items():
                if key.endswith(f".{end}"):
                    tensor.narrow(dimension, SMALL, LARGE - SMALL).zero_()
    expected = logits(large.model, tiny_inputs("bert", pad=2))
    torch.testing.assert_close(run_with(small, name, cut), expected, atol=1e-5, rtol=1e-5)


def test_noahs_slices_are_the_leading_ones() -> None:
    """The numbers of its weight entanglement: each rank more adds a column of B, and the scale stays."""
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    b, x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), torch.tensor([1.0, 2.0])
    found = []
    for rank in (1, 2, 3):
        large, small = (configured("lora", rank=size, alpha="rank") for size in (3, rank))
        cut = narrowed(large, small.config, {"at.x.A": a, "at.x.B": b})
        found.append((small.config.scale * (cut["at.x.B"] @ (cut["at.x.A"] @ x))).tolist())
    assert found == [[1.0, 0.0], [5.0, 2.0], [14.0, 2.0]]


@pytest.mark.parametrize("mid", [None, 6])
def test_a_narrowed_prefix_has_the_first_keys_and_values(mid: int | None) -> None:
    large, small, cut = both("prefix_tuning", "length", {"reparameterization": mid})
    small.modules["prefix_tuning"].load_state_dict(cut)
    for site in small.graph.entries["prefix_tuning"].sites:
        one, other = (
            torch.cat(h.modules["prefix_tuning"].key_value(site, torch.empty(0), None), dim=-1)
            for h in (small, large)
        )
        assert one.shape[1] == SMALL
        torch.testing.assert_close(one, other[:, :SMALL])


@pytest.mark.parametrize(
    ("options", "small", "message"),
    [
        ({"rank": 4}, {"rank": 6}, "rank=4 .* rank=6.* 1 to 4"),
        ({"rank": 4}, {"rank": 2, "dropout": 0.1}, "cut by rank; keep dropout"),
        ({"rank": 4}, {"rank": 2, "sites": ["q"]}, "keep sites"),
    ],
)
def test_what_is_no_smaller_config_is_refused(
    options: dict[str, Any], small: dict[str, Any], message: str
) -> None:
    method = get_method("lora")(get_method("lora").Config(**options))
    with pytest.raises(MethodError, match=message):
        narrowed(method, method.Config(**small), {"at.x.A": torch.zeros(4, 3)})


def test_tensors_that_are_not_as_declared_are_refused() -> None:
    method = get_method("lora")(get_method("lora").Config(rank=4))
    small = method.Config(rank=2)
    with pytest.raises(MethodError, match=r"'B' has rank=4 .*'at.x.B' is of shape \(4, 3\)"):
        narrowed(method, small, {"at.x.B": torch.zeros(4, 3)})
    with pytest.raises(MethodError, match="no such tensors, only"):
        narrowed(method, small, {"at.x.C": torch.zeros(4, 3)})
    other = get_method("ia3")(get_method("ia3").Config())
    with pytest.raises(MethodError, match="ia3 can be cut by nothing"):
        narrowed(other, other.Config(sites=("k",)), {})
