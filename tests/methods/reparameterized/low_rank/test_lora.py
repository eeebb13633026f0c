from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import randomise
from support.toy import CALL, GATED, build, configured, counted, sites_of, toy_spec, toy_specs

from autopeft.spec import BackboneSpec


@given(toy_specs, st.integers(1, 8))
def test_count_is_what_it_holds(spec: BackboneSpec, rank: int) -> None:
    deployed, trained, held, held_trained = counted("lora", spec, rank=rank, sites=("q", "v", "down"))
    assert deployed == trained == held == held_trained


def test_delta_is_scaled_and_a_gate_takes_the_scales_place() -> None:
    module, sites = build("lora", toy_spec(), rank=2, alpha=6.0)
    x = torch.randn(2, 3, 6)
    y = torch.randn(2, 3, sites[0].out_features)
    assert not module.delta(sites[0], x, y, CALL).any()
    randomise(module)
    bare = x @ module[sites[0]].product().T
    torch.testing.assert_close(module.delta(sites[0], x, y, CALL), 3 * bare)
    torch.testing.assert_close(module.delta(sites[0], x, y, GATED), bare)


def test_merged_weight_equals_the_delta() -> None:
    module, sites = build("lora", toy_spec(), rank=2)
    randomise(module)
    site = sites[0]
    weight, x = torch.randn(site.out_features, site.in_features), torch.randn(5, site.in_features)
    merged, bias = module.merged(site, weight, None)
    y = x @ weight.T
    torch.testing.assert_close(x @ merged.T, y + module.delta(site, x, y, CALL))
    assert bias is None
    assert torch.linalg.matrix_rank(merged - weight) <= 2


def test_rank_stabilized_scale() -> None:
    assert configured("lora", rank=16, alpha=8.0, rank_stabilized=True).config.scale == pytest.approx(2.0)
    assert configured("lora", rank=16, alpha=8.0).config.scale == pytest.approx(0.5)


def test_alpha_may_follow_the_rank() -> None:
    """As NOAH has it, whose update is B·A without a factor."""
    assert {configured("lora", rank=rank, alpha="rank").config.scale for rank in (1, 5, 10)} == {1.0}
    assert configured("lora", rank=16, alpha="rank", rank_stabilized=True).config.scale == pytest.approx(4.0)


def test_a_lora_on_one_map_of_q_k_and_v_is_that_of_the_three_with_one_a() -> None:
    """NOAH's, whose A is (r × d) and B (3d × r): 3,072 parameters for each rank where d is 768."""
    spec = toy_spec(hidden=768, kv=768)
    method = configured("lora", rank=5, sites=("q", "k", "v"), shared_down=True)
    sites = [site for site in sites_of(method, spec) if site.layer == 0]
    assert method.parameter_count(sites, spec).deployed == 3072 * 5
    assert configured("lora", rank=5, sites=("q", "k", "v")).parameter_count(sites, spec).deployed == 4608 * 5
    module = method.build(sites, spec)
    randomise(module)
    x = torch.randn(2, 768)
    fused = torch.cat([module[site].B for site in sites]) @ next(iter(module.downs.values())).A
    found = [module.delta(site, x, torch.zeros(2, 768), GATED) for site in sites]
    torch.testing.assert_close(torch.cat(found, dim=-1), x @ fused.T)
    assert sum(p.numel() for p in module.parameters()) == 3072 * 5


def test_each_layer_has_its_a_and_maps_that_read_something_else_theirs() -> None:
    spec = toy_spec(layers=3, hidden=8, kv=8)
    method = configured("lora", rank=2, sites=("q", "k", "v", "o"), shared_down=True)
    sites = sites_of(method, spec)
    module = method.build(sites, spec)
    assert len(module.downs) == 3 * 2
    assert method.parameter_count(sites, spec).deployed == 3 * 2 * (8 + 3 * 8 + 2 * 8)


def test_dropout_acts_in_front_of_an_a_that_is_shared() -> None:
    module, (site, *_) = build("lora", toy_spec(), rank=2, sites=("q", "v"), shared_down=True, dropout=0.5)
    randomise(module)
    x, y = torch.ones(50, 6), torch.zeros(50, site.out_features)
    assert len(set(map(tuple, module.eval().delta(site, x, y, CALL).tolist()))) == 1
    assert len(set(map(tuple, module.train().delta(site, x, y, CALL).tolist()))) > 1


@given(toy_specs, st.integers(1, 8))
def test_the_count_with_one_a_is_what_it_holds(spec: BackboneSpec, rank: int) -> None:
    sites = ("q", "k", "v", "o", "down")
    deployed, trained, held, held_trained = counted("lora", spec, rank=rank, sites=sites, shared_down=True)
    assert deployed == trained == held == held_trained
