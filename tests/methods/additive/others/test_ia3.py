from __future__ import annotations

import pytest
import torch
from hypothesis import given
from support.tiny import randomise
from support.toy import CALL, build, counted, toy_spec, toy_specs
from transformers import T5Config

from autopeft.backbones import spec_of
from autopeft.method import decay_targets
from autopeft.spec import BackboneSpec


@given(toy_specs)
def test_count_is_what_it_holds(spec: BackboneSpec) -> None:
    deployed, trained, held, held_trained = counted("ia3", spec)
    layer = {s.name: s for s in spec.sites if s.layer == 0}
    closed = spec.stacks[0].layers * (2 * layer["k"].out_features + layer["down"].in_features)
    assert deployed == trained == held == held_trained == closed


@pytest.mark.parametrize("name", ["k", "v", "down"])
def test_scales_what_the_side_says_and_merges_exactly(name: str) -> None:
    module, sites = build("ia3", toy_spec())
    site = next(s for s in sites if s.name == name)
    layer = torch.nn.Linear(site.in_features, site.out_features)
    x = torch.randn(4, site.in_features)
    moved = x if module.side(site) == "input" else layer(x)
    assert module.side(site) == ("input" if name == "down" else "output")
    assert not module.delta(site, moved, moved, CALL).any()

    randomise(module)
    scaled = moved + module.delta(site, moved, moved, CALL)
    torch.testing.assert_close(scaled, moved * module[site].factors)
    out = layer(scaled) if name == "down" else scaled
    weight, bias = module.merged(site, layer.weight, layer.bias)
    torch.testing.assert_close(torch.nn.functional.linear(x, weight, bias), out, atol=1e-5, rtol=1e-5)
    assert module.merged(site, layer.weight, None)[1] is None


def test_sits_at_keys_values_and_the_ffns_last_map_and_decays_towards_one() -> None:
    spec = spec_of(T5Config(d_model=8, d_kv=4, num_heads=2, d_ff=12, num_layers=1, vocab_size=9))
    module, sites = build("ia3", spec)
    names = {"encoder": {"k", "v", "down"}, "decoder": {"k", "v", "cross_k", "cross_v", "down"}}
    assert {stack: {s.name for s in sites if s.stack == stack} for stack in names} == names
    assert decay_targets([module]) == {id(p): 1.0 for p in module.parameters()}


@pytest.mark.parametrize("name", ["k", "down"])
def test_small_factors_are_not_lost_in_16_bits(name: str) -> None:
    """Factors that are rounded themselves would be off for a whole row or column."""
    module, sites = build("ia3", toy_spec(hidden=64, kv=64))
    site = next(s for s in sites if s.name == name)
    weight = torch.randn(site.out_features, site.in_features).bfloat16()
    with torch.no_grad():
        module[site].factors.fill_(1.003)
    merged, _ = module.merged(site, weight, None)
    assert float((merged.double() / weight.double()).mean()) == pytest.approx(1.003, abs=1e-4)
