from __future__ import annotations

from typing import Any

import pytest
import torch
from autopeft.methods.reparameterized.low_rank.compacter import PHMLinear
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, build, configured, counted, sites_of, toy_spec, toy_specs
from torch import Tensor
from transformers import LlamaConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.errors import CompositionError, MethodError
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.nn import ACTIVATIONS, Activation
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

T5_BASE = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)


def _recipe(at: Any = "all", **config: Any) -> Recipe:
    body = {"autopeft": 2, "name": "c", "layers": [{"at": at, "attach": [{"compacter": config}]}]}
    return Recipe.from_dict(body)


@settings(deadline=None)
@given(toy_specs, st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans())
def test_count_is_what_it_holds(spec: BackboneSpec, blocks: int, rank: int, norms: bool, two: bool) -> None:
    width = next(s.in_features for s in spec.sites if s.name == "ffn")
    variant = "compacter" if two else "compacter_plus_plus"
    config = {"phm_dim": width, "bottleneck": blocks * width, "rank": rank, "train_norms": norms}
    deployed, trained, held, held_trained = counted("compacter", spec, variant=variant, **config)
    assert deployed == trained == held == held_trained


def test_counts_of_the_paper() -> None:
    spec = spec_of(T5_BASE)

    def count(**config: Any) -> int:
        return build_graph(_recipe(**config), spec).parameter_count().deployed

    rules, adapter, norms = 4**3, 2 * (768 + 24) + 768 + 24, 62 * 768
    assert count(train_norms=False) == 48 * adapter + rules == 114_112
    assert count() == 114_112 + norms == 114_112 + 47_616
    assert count(variant="compacter_plus_plus") == 24 * adapter + rules + norms
    assert round(100 * count() / spec.parameters, 3) == 0.073
    assert round(100 * count(variant="compacter_plus_plus") / spec.parameters, 3) == 0.047


def test_rules_are_held_once_and_read_by_every_projection() -> None:
    module, sites = build("compacter", toy_spec(layers=3), phm_dim=2, bottleneck=4, train_norms=False)
    cubes = [p for p in module.parameters() if p.shape == (2, 2, 2)]
    assert len(cubes) == 1
    assert cubes[0] is module.rules
    randomise(module)
    y = torch.randn(2, 6)
    for site in sites:
        module.zero_grad()
        module.delta(site, y, y, CALL).sum().backward()
        assert module.rules.grad.abs().sum() > 0
    before = [module.delta(s, y, y, CALL).detach() for s in sites]
    with torch.no_grad():
        module.rules.add_(0.1)
    after = [module.delta(s, y, y, CALL) for s in sites]
    assert not any(torch.allclose(a, b) for a, b in zip(before, after, strict=True))


def _explicit(linear: PHMLinear, rules: Tensor) -> Tensor:
    terms = [torch.kron(rules[i], linear.left[i] @ linear.right[i]) for i in range(len(rules))]
    return torch.stack(terms).sum(0)


def test_delta_is_a_bottleneck_of_kronecker_sums_and_reads_y() -> None:
    module, sites = build("compacter", toy_spec(), phm_dim=3, bottleneck=6, rank=2, train_norms=False)
    randomise(module, std=0.5)
    x, y = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    own = module[sites[0]]
    down, up = _explicit(own.down, module.rules), _explicit(own.up, module.rules)
    assert down.shape == up.shape == (6, 6)
    inner = torch.nn.functional.gelu(y @ down + own.down.bias)
    delta = module.delta(sites[0], x, y, CALL)
    expected = inner @ up + own.up.bias
    torch.testing.assert_close(delta, expected)
    upstream = torch.randn_like(delta)
    grads = [
        torch.autograd.grad((out * upstream).sum(), [*own.parameters(), module.rules])
        for out in (delta, expected)
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert torch.equal(module.reads(sites[0], x, y, CALL), y)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swish", "tanh"])
def test_the_activation_is_the_one_that_is_given(activation: Activation) -> None:
    module, _ = build("compacter", toy_spec(), phm_dim=3, bottleneck=6, activation=activation)
    assert {child.activation for child in module.children_by_site()} == {ACTIVATIONS[activation]}


def test_projection_equals_that_of_adapters() -> None:
    """Numbers of `adapters` 1.3.0: `PHMLayer(6 → 4, phm_dim=2, phm_rank=2)`, filled with sines."""

    def sines(shape: tuple[int, ...], start: float) -> Tensor:
        return torch.sin(torch.arange(torch.Size(shape).numel()) + start).reshape(shape)

    linear, rules = PHMLinear(2, 6, 4, 2), sines((2, 2, 2), 1.0).requires_grad_()
    with torch.no_grad():
        for i, parameter in enumerate((linear.left, linear.right, linear.bias)):
            parameter.copy_(sines(tuple(parameter.shape), 2.0 + i))
    y = linear(sines((2, 6), 5.0), rules)
    expected = [
        [-0.16532075, 1.3285096, -0.6258072, 2.8803587],
        [-0.5525534, 0.9277282, -0.971684, 2.3173714],
    ]
    torch.testing.assert_close(y, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    (y * sines((2, 4), 6.0)).sum().backward()
    of_rules = [0.59880257, 0.04738092, -0.65519124, 0.06491391, 0.72741354, -1.3798254, -0.569396, 1.2767651]
    of_right = [-0.39597067, -0.88447684, 0.02230358, 0.6683123, -0.47132385, 0.7697632, 0.3379666, 0.0259144]
    assert rules.grad is not None
    assert linear.right.grad is not None
    torch.testing.assert_close(rules.grad.flatten(), torch.tensor(of_rules), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(linear.right.grad.flatten(), torch.tensor(of_right), atol=1e-6, rtol=1e-5)


def test_it_hardly_changes_the_output_at_the_start() -> None:
    spec = spec_of(T5_BASE)
    method = configured("compacter", train_norms=False)
    site = sites_of(method, spec)[0]
    module: Any = method.build([site], spec)
    y = torch.randn(8, 768)
    assert 0 < float(module.delta(site, y, y, CALL).detach().abs().max()) < 1e-3
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    before = logits(model, inputs)
    attach(model, _recipe(bottleneck=8), seed=0)
    torch.testing.assert_close(logits(model, inputs), before, atol=1e-3, rtol=0)


def test_the_plus_plus_variant_sits_after_the_ffn_only() -> None:
    spec = toy_spec()
    places = {v: {s.name for s in sites_of(configured("compacter", variant=v), spec)} for v in VARIANTS}
    assert places == {"compacter": {"attention", "ffn"}, "compacter_plus_plus": {"ffn"}}
    with pytest.raises(ValidationError, match="'compacter' takes them"):
        configured("compacter", variant="compacter_plus_plus", sites=("attention",))


VARIANTS = ("compacter", "compacter_plus_plus")


def test_norms_are_those_of_its_layers_and_of_the_whole_model_where_it_covers_all() -> None:
    spec = spec_of(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    )

    def norms(at: Any) -> set[str]:
        graph = build_graph(_recipe(at, bottleneck=4), spec)
        entry = graph.entries["compacter"]
        return {t.tensor for t in entry.method.build(entry.sites, spec).weight_targets()}

    inside = {f"layers.0.{n}_layernorm.weight" for n in ("input", "post_attention")}
    assert norms([0]) == inside
    assert norms("all") == inside | {n.replace("0", "1") for n in inside} | {"norm.weight"}


def test_trained_norms_start_at_their_pretrained_values_and_move() -> None:
    model = tiny_model("bert")
    hybrid = attach(model, _recipe(bottleneck=8), seed=0)
    module: Any = hybrid.modules["compacter"]
    assert all(not p.any() for p in module.norms.parameters())
    before = logits(model, tiny_inputs("bert")).detach()
    with torch.no_grad():
        module.norms["encoder.layer.2.output.LayerNorm.bias"].add_(1.0)
    assert not torch.allclose(logits(model, tiny_inputs("bert")), before, atol=1e-2)


def test_widths_that_n_does_not_divide_are_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of phm_dim"):
        configured("compacter", bottleneck=10)
    with pytest.raises(MethodError, match=r"compacter with phm_dim=12.*may be 1, 2, 4, 8, 16, 32"):
        attach(tiny_model("bert"), _recipe(phm_dim=12))


def test_behind_a_gate_norms_stay_frozen() -> None:
    def gated(**config: Any) -> Recipe:
        item = {"gate": [{"compacter": {"bottleneck": 8, **config}}, {"lora": {"rank": 1}}]}
        return Recipe.from_dict({"autopeft": 2, "name": "g", "layers": [{"attach": [item]}]})

    model = tiny_model("bert")
    with pytest.raises(CompositionError, match="compacter alters weights"):
        attach(model, gated())
    before = logits(model, tiny_inputs("bert"))
    hybrid = attach(model, gated(train_norms=False))
    randomise(hybrid.root)
    assert not torch.allclose(logits(model, tiny_inputs("bert")), before, atol=1e-3)
