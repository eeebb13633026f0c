from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.dropped import assert_dropped
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, configured, counted, toy_spec, toy_specs
from torch import Tensor
from transformers import PersimmonConfig, PersimmonForSequenceClassification

from autopeft.backbones import layout_of, spec_of
from autopeft.errors import CompositionError
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.nn import ACTIVATIONS, Activation
from autopeft.recipe import Recipe
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


def test_dropout_acts_behind_the_activation_while_it_trains() -> None:
    """Of maps that hand on what they are fed, which is positive."""
    module, sites = build("parallel_adapter", toy_spec(), bottleneck=6, dropout=0.25, scale=2.0)
    own, x = module[sites[0]], 1 + torch.rand(2000, 6)
    with torch.no_grad():
        for linear in (own.down, own.up):
            linear.weight.copy_(torch.eye(6))
            linear.bias.zero_()
    torch.testing.assert_close(module.eval().delta(sites[0], x, x, CALL), 2 * x)
    assert_dropped(module.train().delta(sites[0], x, x, CALL), 2 * x, 0.25)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swish", "tanh"])
def test_the_activation_is_the_one_that_is_given(activation: Activation) -> None:
    module, _ = build("parallel_adapter", toy_spec(), activation=activation)
    assert {child.activation for child in module.children_by_site()} == {ACTIVATIONS[activation]}


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


def _recipe(form: int = 2, at: str = "all", **options: Any) -> Recipe:
    item = {"parallel_adapter": {"bottleneck": 3, **options}}
    return Recipe.from_dict({"autopeft": form, "layers": [{"at": at, "attach": [item]}]})


def _seen_at(model: Any, place: Any, name: str) -> dict[str, Tensor]:
    """Of a forward: the stream in front of a region's norm, what the region reads, and what leaves it."""
    seen: dict[str, Tensor] = {}
    base = model.base_model

    def entering(key: str) -> Any:
        return lambda module, args, kwargs: seen.__setitem__(
            key, args[0] if args else kwargs["hidden_states"]
        )

    def leaving(module: Any, args: Any, output: Any) -> None:
        seen["y"] = output[0] if isinstance(output, tuple) else output

    handles = [
        base.get_submodule(place.norm).register_forward_pre_hook(entering("residual"), with_kwargs=True),
        base.get_submodule(place.entry).register_forward_pre_hook(entering("normed"), with_kwargs=True),
        base.get_submodule(place.exit).register_forward_hook(leaving),
    ]
    with torch.no_grad():
        model(**tiny_inputs(name))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "vit"])
@pytest.mark.parametrize("region", ["ffn", "attention"])
@pytest.mark.parametrize("given", [None, "residual", "normed"])
def test_what_it_reads_in_a_pre_norm_layer(name: str, region: str, given: str | None) -> None:
    model = tiny_model(name)
    place = next(p for p in layout_of(model.base_model).places() if p.site.name == region)
    bare = _seen_at(model, place, name)
    options = {} if given is None else {"input": given}
    with attach(model, _recipe(at="first 1", sites=[region], **options), seed=0) as hybrid:
        randomise(hybrid.root)
        module: Any = hybrid.modules["parallel_adapter"]
        added = _seen_at(model, place, name)["y"] - bare["y"]
        default = "residual" if region == "ffn" else "normed"
        expected = {key: 4 * module[place.site](bare[key]) for key in ("residual", "normed")}
        torch.testing.assert_close(added, expected[given or default], atol=1e-5, rtol=1e-4)
        other = expected["normed" if (given or default) == "residual" else "residual"]
        assert not torch.allclose(added, other, atol=1e-2)


def test_in_a_post_norm_layer_both_are_the_same() -> None:
    found = []
    for options in ({}, {"input": "residual"}, {"input": "normed"}):
        model = tiny_model("bert")
        randomise(attach(model, _recipe(sites=["attention", "ffn"], **options), seed=0).root)
        found.append(logits(model, tiny_inputs("bert")))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_gate_in_front_reads_what_the_adapter_reads() -> None:
    module, sites = build("parallel_adapter", toy_spec(post_norm=False), bottleneck=3)
    x, y, stream = torch.randn(3, 2, 6).unbind()
    assert torch.equal(module.reads(sites[0], x, y, replace(CALL, residual=stream)), stream)
    with pytest.raises(CompositionError, match="input: normed"):
        module.reads(sites[0], x, y, CALL)


def test_without_a_site_map_the_stream_is_refused_and_the_default_reads_x() -> None:
    config = PersimmonConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
        pad_token_id=0,
    )  # fmt: skip
    spec = spec_of(config)
    with pytest.raises(CompositionError, match=r"residual stream.*'persimmon'.*input: normed"):
        build_graph(_recipe(input="residual"), spec)
    found = []
    for options in ({}, {"input": "normed"}):
        torch.manual_seed(0)
        model = PersimmonForSequenceClassification(config).eval()
        randomise(attach(model, _recipe(**options), seed=0).root)
        found.append(model(input_ids=torch.tensor([[4, 5, 6]])).logits)
    assert torch.equal(found[0], found[1])


def test_recipes_of_format_1_read_the_normed_input() -> None:
    found = {}
    for form in (1, 2):
        model = tiny_model("gpt2")
        randomise(attach(model, _recipe(form), seed=0).root)
        found[form] = logits(model, tiny_inputs("gpt2"))
    model = tiny_model("gpt2")
    randomise(attach(model, _recipe(input="normed"), seed=0).root)
    assert torch.equal(found[1], logits(model, tiny_inputs("gpt2")))
    assert not torch.allclose(found[2], found[1], atol=1e-3)


def test_hashes_tell_what_is_read_where_that_makes_a_difference() -> None:
    spec = spec_of(tiny_config("gpt2"))

    def hashed(form: int = 2, **options: Any) -> str:
        return build_graph(_recipe(form, **options), spec).hash()

    attention = {"sites": ["attention"]}
    assert hashed(1) == hashed(input="normed") != hashed()
    assert hashed(1, **attention) == hashed(**attention) == hashed(input="normed", **attention)
    assert hashed(**attention) != hashed(input="residual", **attention)
