from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.dropped import assert_dropped
from support.tiny import ARCHITECTURES, logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.toy import CALL, build, configured, counted, sites_of, toy_spec, toy_specs
from transformers import BertConfig, GPT2Config, LlamaConfig

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.errors import CompositionError
from autopeft.hybrid import attach
from autopeft.nn import ACTIVATIONS, Activation
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec


@given(toy_specs, st.integers(1, 9), st.booleans(), st.sampled_from(["houlsby", "pfeiffer", "bapna"]))
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
    assert _count(bert, bottleneck=48, variant="houlsby") == 12 * (2 * adapter + 2 * 2 * 768) + 2 * 768
    assert _count(bert, bottleneck=48, train_norms=True) == 12 * (adapter + 2 * 2 * 768) + 2 * 768
    assert _count(bert, bottleneck=48, variant="houlsby", train_norms=False) == 24 * adapter
    assert _count(spec_of(GPT2Config()), bottleneck=64, variant="bapna") == 1_208_064  # AdapterSoup
    llama = spec_of(LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=9))
    gains = 2 * 2 * 64  # RMSNorm has no bias
    houlsby = {"bottleneck": 3, "variant": "houlsby"}
    assert _count(llama, **houlsby) - _count(llama, **houlsby, train_norms=False) == gains


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_norm_of_the_embeddings_is_trained_where_there_is_one(name: str) -> None:
    model = tiny_model(name)
    base = model.base_model
    item = {"serial_adapter": {"variant": "houlsby", "bottleneck": 2}}
    hybrid = attach(model, Recipe.from_dict({"layers": [{"attach": [item]}]}), seed=0)
    module: Any = hybrid.modules["serial_adapter"]
    outside = {n for n in module.norms.names if not re.search(r"\.\d+\.", f".{n}")}
    norms = {
        **dict.fromkeys(("bert", "roberta", "distilbert", "mpnet", "electra"), ("embeddings.LayerNorm",)),
        "bart": ("encoder.layernorm_embedding", "decoder.layernorm_embedding"),
    }.get(name, ())
    assert outside == {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")}
    assert all(isinstance(base.get_parameter(n), torch.nn.Parameter) for n in outside)
    before = logits(model, tiny_inputs(name))
    for norm in norms:
        torch.nn.init.constant_(module.norms[f"{norm}.bias"], 0.3)
        assert not torch.allclose(logits(model, tiny_inputs(name)), before, atol=1e-4)
    hybrid.detach()


def test_several_entries_train_the_norm_of_the_embeddings_once() -> None:
    item: dict[str, Any] = {"serial_adapter": {"variant": "houlsby", "bottleneck": 2}}
    blocks = [{"at": at, "attach": [item]} for at in ("0-1", [2])]
    spec = spec_of(tiny_config("bert"))
    whole = count(Recipe.from_dict({"layers": [{"attach": [item]}]}), spec).deployed
    assert count(Recipe.from_dict({"layers": blocks}), spec).deployed == whole
    without = {"serial_adapter": {**item["serial_adapter"], "embeddings_norm": False}}
    assert count(Recipe.from_dict({"layers": [{"attach": [without]}]}), spec).deployed == whole - 2 * 32


def test_recipes_of_format_1_leave_the_norm_of_the_embeddings_alone() -> None:
    def read(form: int, body: str) -> Recipe:
        return Recipe.from_yaml(f"autopeft: {form}\nlayers:\n- attach:\n  - serial_adapter: {body}\n")

    spec = spec_of(tiny_config("bert"))
    for body, has_one in (
        ("{variant: houlsby}", True),
        ("{train_norms: true}", True),
        ("{variant: houlsby, train_norms: false}", False),
        ("{variant: pfeiffer}", False),
    ):
        old, new = read(1, body), read(2, body)
        assert count(new, spec).deployed - count(old, spec).deployed == (2 * 32 if has_one else 0)
        assert (old.hash() != new.hash()) == has_one
        (entry,) = old.entries()
        assert ("embeddings_norm" in entry.item.config) == has_one


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


def test_bapna_reads_the_output_through_a_norm_of_its_own() -> None:
    module, sites = build("serial_adapter", toy_spec(layers=1), variant="bapna", bottleneck=3)
    assert [s.name for s in sites] == ["ffn"]
    assert module.weight_targets() == []
    randomise(module)
    own, y = module[sites[0]], torch.randn(2, 6)
    normed = torch.nn.functional.layer_norm(y, (6,), own.norm.weight, own.norm.bias)
    expected = torch.relu(normed @ own.down.weight.T + own.down.bias) @ own.up.weight.T + own.up.bias
    call = replace(CALL, residual=torch.randn(2, 6), norm=torch.nn.LayerNorm(6))
    torch.testing.assert_close(module.delta(sites[0], torch.randn(2, 6), y, call), expected)
    assert set(module.parts()["norms"]) == set(own.norm.parameters())
    assert module.decays() == {own.norm.weight: 1.0}


def test_dropout_acts_behind_the_activation_while_it_trains() -> None:
    """Of maps that hand on what they are fed, which is positive."""
    module, sites = build(
        "serial_adapter",
        toy_spec(),
        bottleneck=6,
        dropout=0.25,
        scale=2.0,
        variant="houlsby",
        activation="relu",
    )
    own, x = module[sites[0]], 1 + torch.rand(2000, 6)
    with torch.no_grad():
        for linear in (own.down, own.up):
            linear.weight.copy_(torch.eye(6))
            linear.bias.zero_()
    torch.testing.assert_close(module.eval().delta(sites[0], x, x, CALL), 2 * x)
    assert_dropped(module.train().delta(sites[0], x, x, CALL), 2 * x, 0.25)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swish", "tanh"])
def test_the_activation_is_the_one_that_is_given(activation: Activation) -> None:
    module, _ = build("serial_adapter", toy_spec(), activation=activation, variant="houlsby")
    assert {child.activation for child in module.children_by_site()} == {ACTIVATIONS[activation]}


def test_pfeiffer_reads_the_output_as_the_layer_adds_it() -> None:
    """Granite multiplies it on its way into the residual stream."""
    module, sites = build("serial_adapter", toy_spec())
    randomise(module)
    x, y, residual = torch.randn(3, 2, 6).unbind()
    found = module.delta(replace(sites[0], multiplier=0.4), x, y, replace(CALL, residual=residual))
    torch.testing.assert_close(found, module[sites[0]](0.4 * y + residual))


def test_pfeiffer_needs_a_residual() -> None:
    module, sites = build("serial_adapter", toy_spec())
    with pytest.raises(CompositionError, match="houlsby"):
        module.delta(sites[0], torch.zeros(1, 6), torch.zeros(1, 6), CALL)


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "bapna"])
def test_with_a_zero_up_projection_it_is_the_identity(variant: str) -> None:
    module, sites = build("serial_adapter", toy_spec(), variant=variant)
    torch.nn.init.zeros_(module[sites[0]].up.weight)
    call = replace(CALL, residual=torch.randn(2, 6))
    assert not module.delta(sites[0], torch.randn(2, 6), torch.randn(2, 6), call).any()


@pytest.mark.parametrize("variant", ["pfeiffer", "bapna"])
def test_those_behind_the_ffn_refuse_other_sites(variant: str) -> None:
    with pytest.raises(ValidationError, match="'houlsby' takes them"):
        configured("serial_adapter", sites=("attention", "ffn"), variant=variant)


@pytest.mark.parametrize(
    ("variant", "sites", "activation", "trains_norms"),
    [
        ("houlsby", ("attention", "cross_attention", "ffn"), "gelu", True),  # adapter-bert, modeling.py
        ("pfeiffer", ("ffn",), "relu", False),  # adapters, SeqBnConfig
        ("bapna", ("ffn",), "relu", False),  # hierarchical-domain-adaptation, modeling_gpt2.py
    ],
)
def test_what_each_variant_has_by_default(
    variant: str, sites: tuple[str, ...], activation: Activation, trains_norms: bool
) -> None:
    method = configured("serial_adapter", variant=variant)
    assert (method.default_sites, "weight" in method.traits.ways) == (sites, trains_norms)
    module, _ = build("serial_adapter", toy_spec(), variant=variant)
    assert {child.activation for child in module.children_by_site()} == {ACTIVATIONS[activation]}
