from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, counted, toy_spec, toy_specs
from transformers import ViTConfig

from autopeft.backbones import spec_of
from autopeft.errors import MethodError
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

SMALL: dict[str, Any] = {"phm_dim": 2, "scale": 3.0, "dropout": 0.0}


def _recipe(**config: Any) -> Recipe:
    body = {"autopeft": 2, "name": "k", "layers": [{"attach": [{"kadaptation": config}]}]}
    return Recipe.from_dict(body)


@settings(deadline=None)
@given(toy_specs, st.integers(1, 3), st.sampled_from(["rank_one", "full"]))
def test_count_is_what_it_holds(spec: BackboneSpec, rank: int, rules: str) -> None:
    sites = ("q", "v", "down")
    config = {"phm_dim": 1, "rank": rank, "rules": rules, "sites": sites}
    deployed, trained, held, held_trained = counted("kadaptation", spec, **config)
    assert deployed == trained == held == held_trained


@pytest.mark.parametrize(("rules", "slow"), [("rank_one", 2 * 32**2), ("full", 32**3)])
def test_counts_of_the_catalogue(rules: str, slow: int) -> None:
    graph = build_graph(_recipe(rules=rules), spec_of(ViTConfig()))
    n = graph.parameter_count().deployed
    assert n == 12 * (2 * 2 * 768 + 768) + 2 * slow
    assert (n == 50_176) == (rules == "rank_one")


@pytest.mark.parametrize("rules", ["rank_one", "full"])
def test_rules_of_either_form_start_as_products_of_small_factors(rules: str) -> None:
    """The variance of a product of two U(−0.01, 0.01): (0.01² / 3)²."""
    module, _ = build("kadaptation", toy_spec(hidden=64, kv=64), rules=rules, phm_dim=32)
    slow = module.slow["q"]()
    assert float(slow.std()) == pytest.approx(0.01**2 / 3, rel=0.1)
    assert float(slow.abs().max()) <= 0.01**2
    assert torch.linalg.matrix_rank(slow[0], rtol=1e-4) == 1


@pytest.mark.parametrize("rules", ["rank_one", "full"])
def test_change_is_the_explicit_kronecker_sum(rules: str) -> None:
    module, sites = build("kadaptation", toy_spec(hidden=6, kv=4), rank=2, rules=rules, **SMALL)
    randomise(module, std=0.5)
    for site in sites:
        factors = module.slow[site.name].factors
        slow = factors[0] if rules == "full" else torch.stack([a @ b for a, b in zip(*factors, strict=True)])
        fast = module[site]
        terms = [torch.kron(slow[i], fast.left[i] @ fast.right[i]) for i in range(2)]
        change = torch.stack(terms).sum(0)
        assert change.shape == (site.out_features, 6)
        torch.testing.assert_close(module.change(site), change)
        x, y = torch.randn(2, 5, 6), torch.randn(2, 5, site.out_features)
        offset = module.offset(site)
        delta = module.delta(site, x, y, CALL)
        torch.testing.assert_close(delta, 3 * x @ change.T + offset)
        torch.testing.assert_close(module.delta(site, x, y, GATED), x @ change.T + offset)


def test_slow_weights_are_one_set_for_q_and_one_for_v_in_all_layers() -> None:
    module, sites = build("kadaptation", toy_spec(layers=3), **SMALL)
    assert set(module.slow) == {"q", "v"}
    randomise(module)
    before = {s: module.change(s).detach() for s in sites}
    with torch.no_grad():
        for factor in module.slow["q"].factors:
            factor.add_(1.0)
    moved = {s.key for s in sites if not torch.allclose(module.change(s), before[s])}
    assert moved == {f"encoder-{i}-q" for i in range(3)}
    with torch.no_grad():
        module[sites[0]].left.add_(1.0)
        module[sites[0]].right.add_(1.0)
    others = [s for s in sites[1:] if s.name == "v"]
    assert all(torch.equal(module.change(s), before[s]) for s in others)


def test_an_offset_is_shared_by_q_and_v_of_a_layer_where_their_widths_agree() -> None:
    even, sites = build("kadaptation", toy_spec(hidden=6, kv=6), **SMALL)
    assert len(even.offsets) == 2
    assert even.offset(sites[0]) is even.offset(sites[1])
    assert even.offset(sites[0]) is not even.offset(sites[2])
    grouped, sites = build("kadaptation", toy_spec(hidden=6, kv=4), **SMALL)
    assert [len(grouped.offset(s)) for s in sites] == [6, 4, 6, 4]


def test_everything_learns_from_the_second_step_on() -> None:
    """With u zero as well, as in the authors' code, only the offset would ever move."""
    module, sites = build("kadaptation", toy_spec(), **SMALL)
    x = torch.randn(8, 6)
    assert not any(module.delta(s, x, torch.empty(0), CALL).any() for s in sites)
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    moved: list[set[str]] = []
    for _ in range(2):
        optimizer.zero_grad()
        sum((module.delta(s, x, torch.empty(0), CALL) - 1).pow(2).sum() for s in sites).backward()
        optimizer.step()
        moved.append({n for n, p in module.named_parameters() if not torch.equal(p, start[n])})
    assert moved[0] == {n for n in start if n.endswith("right") or n.startswith("offsets")}
    assert moved[1] == set(start)


def test_dropout_acts_on_the_entries_of_the_change_while_training() -> None:
    module, sites = build("kadaptation", toy_spec(), phm_dim=2, dropout=0.5, scale=1.0)
    randomise(module, std=0.5)
    x = torch.eye(6)
    offset, change = module.offset(sites[0]).detach(), module.change(sites[0]).detach()
    module.train()
    twice = module.delta(sites[0], torch.stack([x, x]), x, CALL).detach()
    assert torch.equal(twice[0], twice[1]), "one draw for all rows"
    rows = (twice[0] - offset).T
    kept = rows.abs() > 1e-6
    torch.testing.assert_close(rows[kept], 2 * change[kept], atol=1e-5, rtol=1e-4)
    assert 0 < int(kept.sum()) < change.numel()
    module.eval()
    torch.testing.assert_close((module.delta(sites[0], x, x, CALL) - offset).T, change, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_merged_weight_and_bias_equal_the_delta(bias: bool) -> None:
    module, sites = build("kadaptation", toy_spec(), rank=2, **SMALL)
    randomise(module, std=0.5)
    site = sites[1]
    layer = torch.nn.Linear(site.in_features, site.out_features, bias=bias)
    x = torch.randn(5, site.in_features)
    merged = module.merged(site, layer.weight, layer.bias)
    y = layer(x)
    torch.testing.assert_close(torch.nn.functional.linear(x, *merged), y + module.delta(site, x, y, CALL))


def test_merges_into_a_backbone_without_biases_and_with_grouped_queries() -> None:
    model, inputs = tiny_model("llama"), tiny_inputs("llama")
    hybrid = attach(model, _recipe(phm_dim=4, scale=4.0), seed=0)
    randomise(hybrid.root)
    expected = logits(model, inputs)
    merged = hybrid.merge()
    assert {n for n, _ in merged.named_parameters() if n.endswith("q_proj.bias")}
    torch.testing.assert_close(logits(merged, inputs), expected, atol=1e-5, rtol=1e-5)


def test_widths_that_n_does_not_divide_are_refused() -> None:
    with pytest.raises(
        MethodError, match=r"decoder\.0\.v is 32 wide at its input and 16.*may be 1, 2, 4, 8, 16\."
    ):
        attach(tiny_model("llama"), _recipe())
