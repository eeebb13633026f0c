from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import randomise
from support.toy import CALL, GATED, build, configured, counted, toy_spec, toy_specs

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
