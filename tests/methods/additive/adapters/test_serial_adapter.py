from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny import randomise
from support.toy import CALL, build, configured, counted, sites_of, toy_spec, toy_specs
from transformers import BertConfig, LlamaConfig

from autopeft.backbones import spec_of
from autopeft.errors import CompositionError
from autopeft.nn import ACTIVATIONS, Activation
from autopeft.spec import BackboneSpec


@given(toy_specs, st.integers(1, 9), st.booleans(), st.sampled_from(["houlsby", "pfeiffer"]))
def test_count_is_what_it_holds(spec: BackboneSpec, bottleneck: int, bias: bool, variant: str) -> None:
    config = {"bottleneck": bottleneck, "bias": bias, "variant": variant}
    deployed, trained, held, held_trained = counted("serial_adapter", spec, **config)
    assert deployed == trained == held == held_trained


def _count(spec: BackboneSpec, **config: Any) -> int:
    method = configured("serial_adapter", **config)
    return int(method.parameter_count(sites_of(method, spec), spec).deployed)


def test_counts_of_the_papers() -> None:
    bert, adapter = spec_of(BertConfig()), 2 * 768 * 48 + 48 + 768
    assert _count(bert, bottleneck=48) == 12 * adapter == 894_528
    assert _count(bert, bottleneck=48, variant="houlsby") == 12 * (2 * adapter + 2 * 2 * 768)
    assert _count(bert, bottleneck=48, variant="houlsby", train_norms=False) == 24 * adapter
    llama = spec_of(LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=9))
    gains = 2 * 2 * 64  # RMSNorm has no bias
    houlsby = {"bottleneck": 3, "variant": "houlsby"}
    assert _count(llama, **houlsby) - _count(llama, **houlsby, train_norms=False) == gains


def test_houlsby_sits_twice_in_a_layer_reads_y_and_trains_its_norms() -> None:
    spec = toy_spec(layers=1)
    module, sites = build("serial_adapter", spec, variant="houlsby", bottleneck=3)
    assert [s.name for s in sites] == ["attention", "ffn"]
    x, y = torch.randn(2, 6), torch.randn(2, 6)
    assert torch.equal(module.reads(sites[0], x, y, CALL), y)
    randomise(module)
    delta = module.delta(sites[0], x, y, CALL)
    assert torch.equal(delta, module[sites[0]](y))
    assert torch.equal(delta, module.delta(sites[0], x + 1, y, CALL))
    names = {str(t.tensor) for t in module.weight_targets()}
    assert names == {t.name for t in spec.tensors if t.role in {"norm_weight", "norm_bias"}}
    target = module.weight_targets()[0]
    gain = torch.randn(6)
    torch.testing.assert_close(module.weight(target, gain, gain), gain + module.norms[str(target.tensor)])


def test_pfeiffer_reads_the_normed_residual_stream_and_leaves_norms_alone() -> None:
    module, sites = build("serial_adapter", toy_spec(), variant="pfeiffer", bottleneck=3, scale=2.0)
    assert {s.name for s in sites} == {"ffn"}
    assert module.weight_targets() == []
    randomise(module)
    norm = torch.nn.LayerNorm(6)
    x, y, residual = torch.randn(3, 2, 6).unbind()
    post = replace(CALL, residual=residual, norm=norm)
    torch.testing.assert_close(module.delta(sites[0], x, y, post), 2 * module[sites[0]](norm(y + residual)))
    pre = replace(CALL, residual=residual)
    torch.testing.assert_close(module.delta(sites[0], x, y, pre), 2 * module[sites[0]](y + residual))
    gated = replace(post, gated=True)
    torch.testing.assert_close(module.delta(sites[0], x, y, gated), module[sites[0]](norm(y + residual)))


def test_pfeiffer_needs_a_residual() -> None:
    module, sites = build("serial_adapter", toy_spec())
    with pytest.raises(CompositionError, match="houlsby"):
        module.delta(sites[0], torch.zeros(1, 6), torch.zeros(1, 6), CALL)


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer"])
def test_with_a_zero_up_projection_it_is_the_identity(variant: str) -> None:
    module, sites = build("serial_adapter", toy_spec(), variant=variant)
    torch.nn.init.zeros_(module[sites[0]].up.weight)
    call = replace(CALL, residual=torch.randn(2, 6))
    assert not module.delta(sites[0], torch.randn(2, 6), torch.randn(2, 6), call).any()


def test_pfeiffer_refuses_other_sites() -> None:
    with pytest.raises(ValidationError, match="'houlsby' takes them"):
        configured("serial_adapter", sites=("attention", "ffn"))


@pytest.mark.parametrize(
    ("variant", "sites", "activation", "trains_norms"),
    [
        ("houlsby", ("attention", "cross_attention", "ffn"), "gelu", True),  # adapter-bert, modeling.py
        ("pfeiffer", ("ffn",), "relu", False),  # adapters, SeqBnConfig
    ],
)
def test_what_each_variant_has_by_default(
    variant: str, sites: tuple[str, ...], activation: Activation, trains_norms: bool
) -> None:
    method = configured("serial_adapter", variant=variant)
    assert (method.default_sites, method.also_weights) == (sites, trains_norms)
    module, _ = build("serial_adapter", toy_spec(), variant=variant)
    assert {child.activation for child in module.children_by_site()} == {ACTIVATIONS[activation]}
