from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny import randomise
from support.toy import CALL, GATED, build, configured, counted, toy_spec, toy_specs

from autopeft.spec import BackboneSpec


@given(toy_specs, st.integers(1, 9), st.booleans(), st.sampled_from([2.0, "learned"]))
def test_count_is_what_it_holds(spec: BackboneSpec, bottleneck: int, bias: bool, scale: Any) -> None:
    config = {"bottleneck": bottleneck, "bias": bias, "scale": scale, "sites": ("ffn", "attention")}
    deployed, trained, held, held_trained = counted("parallel_adapter", spec, **config)
    assert deployed == trained == held == held_trained


def test_exact_identity_at_init_then_scales_and_reads_x_alone() -> None:
    module, sites = build("parallel_adapter", toy_spec(), bottleneck=3, scale=2.0)
    double, _ = build("parallel_adapter", toy_spec(), bottleneck=3, scale=4.0)
    x, y = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    assert not module.delta(sites[0], x, y, CALL).any()
    randomise(module)
    double.load_state_dict(module.state_dict())
    delta = module.delta(sites[0], x, y, CALL)
    assert torch.equal(delta, module.delta(sites[0], x, y + 1, CALL))
    torch.testing.assert_close(double.delta(sites[0], x, y, CALL), 2 * delta)
    torch.testing.assert_close(module.delta(sites[0], x, y, GATED), delta / 2)


def test_a_relu_ffn_widened_by_the_adapter_computes_the_same() -> None:
    module, sites = build("parallel_adapter", toy_spec(), bottleneck=3, scale=4.0)
    randomise(module, std=0.5)
    adapter = module[sites[0]]
    up, down = torch.nn.Linear(6, 10), torch.nn.Linear(10, 6)
    x = torch.randn(7, 6)
    y = down(torch.relu(up(x)))
    wide_up, wide_down = torch.nn.Linear(6, 13), torch.nn.Linear(13, 6)
    with torch.no_grad():
        wide_up.weight.copy_(torch.cat([up.weight, adapter.down.weight]))
        wide_up.bias.copy_(torch.cat([up.bias, adapter.down.bias]))
        wide_down.weight.copy_(torch.cat([down.weight, 4 * adapter.up.weight], dim=1))
        wide_down.bias.copy_(down.bias + 4 * adapter.up.bias)
    expected = y + module.delta(sites[0], x, y, CALL)
    torch.testing.assert_close(wide_down(torch.relu(wide_up(x))), expected, atol=1e-5, rtol=1e-5)


def test_a_learned_scale_starts_at_one_and_stays_behind_a_gate() -> None:
    module, sites = build("parallel_adapter", toy_spec(), bottleneck=3, scale="learned")
    randomise(module)
    scale = module[sites[0]].scale
    x = torch.randn(2, 6)
    torch.nn.init.ones_(scale)
    one = module.delta(sites[0], x, x, CALL).detach().clone()
    torch.nn.init.constant_(scale, 3.0)
    torch.testing.assert_close(module.delta(sites[0], x, x, CALL), 3 * one)
    torch.testing.assert_close(module.delta(sites[0], x, x, GATED), 3 * one)


@pytest.mark.parametrize("scale", [0, -1, 101, "lerned"])
def test_refuses_a_bad_scale(scale: Any) -> None:
    with pytest.raises(ValidationError, match="learned"):
        configured("parallel_adapter", scale=scale)
