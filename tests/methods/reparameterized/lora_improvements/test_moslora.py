from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import randomise
from support.toy import CALL, GATED, build, configured, counted, toy_spec, toy_specs

from autopeft.spec import BackboneSpec


@given(toy_specs, st.integers(1, 8))
def test_count_is_loras_and_the_mixers(spec: BackboneSpec, rank: int) -> None:
    sites = ("q", "v", "down")
    deployed, trained, held, held_trained = counted("moslora", spec, rank=rank, sites=sites)
    assert deployed == trained == held == held_trained
    places = sum(s.name in sites for s in spec.sites)
    assert deployed == counted("lora", spec, rank=rank, sites=sites)[0] + places * rank**2


def _with_mixer(module: Any, mixer: torch.Tensor) -> None:
    with torch.no_grad():
        for pair in module.children_by_site():
            pair.M.copy_(mixer)


def test_an_identity_mixer_is_lora() -> None:
    mixed, sites = build("moslora", toy_spec(), rank=3, alpha=5.0)
    lora, _ = build("lora", toy_spec(), rank=3, alpha=5.0)
    randomise(mixed)
    _with_mixer(mixed, torch.eye(3))
    lora.load_state_dict(mixed.state_dict(), strict=False)
    for call in (CALL, GATED):
        for site in sites:
            x, y = torch.randn(2, 4, site.in_features), torch.zeros(2, 4, site.out_features)
            torch.testing.assert_close(mixed.delta(site, x, y, call), lora.delta(site, x, y, call))


def test_a_diagonal_mixer_is_a_gate_on_each_rank() -> None:
    module, sites = build("moslora", toy_spec(), rank=3, alpha=3.0)
    randomise(module)
    gates = torch.tensor([0.5, 0.0, -2.0])
    _with_mixer(module, torch.diag(gates))
    pair, site = module[sites[0]], sites[0]
    x, y = torch.randn(5, site.in_features), torch.zeros(5, site.out_features)
    expected = (x @ pair.A.T * gates) @ pair.B.T
    torch.testing.assert_close(module.delta(site, x, y, CALL), expected)


def test_a_full_mixer_mixes_and_folds_into_a() -> None:
    module, sites = build("moslora", toy_spec(), rank=3)
    lora, _ = build("lora", toy_spec(), rank=3)
    randomise(module, std=0.5)
    for mine, folded in zip(module.children_by_site(), lora.children_by_site(), strict=True):
        with torch.no_grad():
            folded.A.copy_(mine.M @ mine.A)
            folded.B.copy_(mine.B)
    site = sites[0]
    x, weight = torch.randn(5, site.in_features), torch.randn(site.out_features, site.in_features)
    y = x @ weight.T
    delta = module.delta(site, x, y, CALL)
    torch.testing.assert_close(delta, lora.delta(site, x, y, CALL))
    merged, bias = module.merged(site, weight, None)
    torch.testing.assert_close(x @ merged.T, y + delta, atol=1e-5, rtol=1e-5)
    assert bias is None
    _with_mixer(module, torch.eye(3))
    assert not torch.allclose(module.delta(site, x, y, CALL), delta)


def test_the_mixer_gets_a_gradient_only_after_b_has_left_zero() -> None:
    torch.manual_seed(0)
    module, sites = build("moslora", toy_spec(layers=1), rank=3, sites=("q",))
    pair, site = module[sites[0]], sites[0]
    x = torch.randn(8, 6)
    y = torch.zeros(8, 6)
    assert not module.delta(site, x, y, CALL).any()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        (module.delta(site, x, y, CALL) - 1).pow(2).sum().backward()
        assert pair.B.grad.abs().sum() > 0
        assert bool(pair.M.grad.any()) == bool(pair.A.grad.any()) == (step == 1)
        optimizer.step()


def test_scale_and_dropout_are_loras() -> None:
    assert configured("moslora", rank=16).config.scale == 2.0
    assert configured("moslora", rank=16, alpha=8.0).config.scale == pytest.approx(0.5)
    module, sites = build("moslora", toy_spec(hidden=64), rank=3, dropout=0.5)
    randomise(module)
    x, y = torch.randn(4, 64), torch.zeros(4, 64)
    assert torch.equal(module.eval().delta(sites[0], x, y, CALL), module.delta(sites[0], x, y, CALL))
    module.train()
    assert not torch.equal(module.delta(sites[0], x, y, CALL), module.delta(sites[0], x, y, CALL))
