from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, build, counted, toy_spec, toy_specs
from torch import Tensor
from transformers import AutoConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.errors import AutoPEFTError, MethodError
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.method import decay_targets
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec, Site


def _recipe(*items: Any) -> Recipe:
    return Recipe.from_dict({"autopeft": 2, "name": "m", "layers": [{"at": "all", "attach": list(items)}]})


def _site(sites: Any, name: str) -> Site:
    return next(s for s in sites if s.name == name)


@given(toy_specs, st.integers(1, 4))
def test_count_is_what_it_holds(spec: BackboneSpec, experts: int) -> None:
    deployed, trained, held, held_trained = counted("mov", spec, experts=experts)
    assert deployed == trained == held == held_trained


def test_counts_of_the_paper_on_t5() -> None:
    config = T5Config(d_model=64, d_kv=16, num_heads=4, d_ff=96, num_layers=2, num_decoder_layers=3)
    a, d_h, d_ff, e = 64, 16, 96, 30
    encoder = 2 * (e * a + e * d_h) + 2 * e * d_ff
    decoder = 4 * (e * a + e * d_h) + 2 * e * d_ff
    graph = build_graph(_recipe({"mov": {"experts": e}}), spec_of(config))
    assert graph.parameter_count().deployed == 2 * encoder + 3 * decoder


def test_identity_at_init_is_exact_when_soft() -> None:
    torch.manual_seed(0)
    module, sites = build("mov", toy_spec(kv=8), experts=7)
    for name in ("k", "v", "down"):
        site = _site(sites, name)
        y = torch.randn(2, 5, site.in_features if name == "down" else site.out_features)
        assert not module.delta(site, y, y, CALL).any()


@pytest.mark.parametrize("name", ["k", "down"])
def test_one_vector_is_ia3_without_a_router(name: str) -> None:
    spec = toy_spec(kv=8)
    module, sites = build("mov", spec, experts=1)
    scales, _ = build("ia3", spec)
    site = _site(sites, name)
    randomise(module)
    factors = module[site].factors.flatten()
    scales[site].factors.data.copy_(factors)
    y = torch.randn(2, 5, len(factors))
    torch.testing.assert_close(module.delta(site, y, y, CALL), scales.delta(site, y, y, CALL))
    assert module[site].router is None
    assert module.side(site) == scales.side(site)


def test_every_head_of_a_token_is_routed_by_itself_with_one_router() -> None:
    module, sites = build("mov", toy_spec(kv=8), experts=3)
    site = _site(sites, "k")
    randomise(module)
    vectors = module[site]
    assert vectors.router.weight.shape == (3, 4)
    assert vectors.factors.shape == (3, 2, 4)

    y = torch.randn(2, 5, 8)
    p = vectors.probabilities(y.unflatten(-1, (2, 4)))
    assert p.shape == (2, 5, 2, 3)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 5, 2))

    expected = torch.empty_like(y)
    for b in range(2):
        for n in range(5):
            for h in range(2):
                head = y[b, n, 4 * h : 4 * h + 4]
                weights = torch.softmax(vectors.router.weight @ head, dim=0)
                factors = sum(weights[e] * vectors.factors[e, h] for e in range(3))
                expected[b, n, 4 * h : 4 * h + 4] = factors * head
    torch.testing.assert_close(y + module.delta(site, y, y, CALL), expected, atol=1e-5, rtol=1e-5)


def test_down_reads_and_scales_the_whole_activation_as_a_route_over_ia3_does() -> None:
    """Equality of the models, since at `down` the composition's router reads the same tensor."""
    torch.manual_seed(0)
    inputs = tiny_inputs("bert")
    mixed = tiny_model("bert")
    mov = attach(mixed, _recipe({"mov": {"experts": 3, "sites": ["down"]}}))
    composed = tiny_model("bert")
    route = attach(composed, _recipe({"route": {"children": [{"ia3": {"sites": ["down"]}}], "copies": 3}}))
    (module,) = mov.modules.values()
    randomise(module)
    experts = [m for m in route.modules.values() if hasattr(m, "at") and "factors" in str(m.state_dict())]
    (router,) = [m for m in route.modules.values() if hasattr(m, "routers")]
    for key, vectors in module.at.items():
        router.routers.at[key].weight.data.copy_(vectors.router.weight)
        for expert, factors in zip(experts, vectors.factors, strict=True):
            expert.at[key].factors.data.copy_(factors[0])
    torch.testing.assert_close(logits(mixed, inputs), logits(composed, inputs), atol=1e-5, rtol=1e-5)


def test_top_k_keeps_exactly_k_weights_as_they_are() -> None:
    module, sites = build("mov", toy_spec(kv=8), experts=5, top_k=2)
    site = _site(sites, "v")
    randomise(module)
    vectors, y = module[site], torch.randn(3, 4, 8)
    slices = y.unflatten(-1, (2, 4))
    p = vectors.probabilities(slices)
    assert (p.count_nonzero(dim=-1) == 2).all()
    soft = torch.softmax(slices @ vectors.router.weight.T, dim=-1)
    torch.testing.assert_close(p[p > 0], soft[p > 0])
    assert (p.sum(-1) < 1).all()
    factors = torch.einsum("bnhe,ehd->bnhd", p, vectors.factors)
    torch.testing.assert_close(
        y + module.delta(site, y, y, CALL), (factors * slices).flatten(-2), atol=1e-5, rtol=1e-5
    )


def test_vectors_and_router_learn() -> None:
    module, sites = build("mov", toy_spec(kv=8), experts=3)
    randomise(module)
    total = torch.zeros(())
    for site in sites:
        y = torch.randn(2, 5, site.in_features if site.name == "down" else site.out_features)
        out: Tensor = module.delta(site, y, y, CALL)
        total = total + out.square().sum()
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_vectors_decay_towards_one_and_routers_towards_zero() -> None:
    module, _ = build("mov", toy_spec(kv=8), experts=3)
    assert decay_targets([module]) == {id(own.factors): 1.0 for own in module.children_by_site()}


def test_sixteen_bits_are_routed_in_thirty_two() -> None:
    module, sites = build("mov", toy_spec(kv=8), experts=3)
    randomise(module)
    site, y = _site(sites, "k"), torch.randn(2, 5, 8).bfloat16()
    out = module.delta(site, y, y, CALL)
    assert out.dtype == torch.bfloat16
    assert module[site].probabilities(y.unflatten(-1, (2, 4))).dtype == torch.float32
    torch.testing.assert_close(
        out.float(), module.delta(site, y.float(), y.float(), CALL), atol=0.05, rtol=0.05
    )


def test_a_choice_of_all_vectors_is_refused() -> None:
    with pytest.raises(AutoPEFTError, match="chooses nothing"):
        build_graph(_recipe({"mov": {"experts": 2, "top_k": 2}}), toy_spec())


def test_a_backbone_of_unknown_heads_may_have_it_in_the_ffn() -> None:
    spec = toy_spec(kv=8)
    (stack,) = spec.stacks
    blind = replace(spec, stacks=(replace(stack, head_dim=None),))
    with pytest.raises(MethodError, match="how wide a head"):
        build("mov", blind)
    module, sites = build("mov", blind, sites=("down",))
    assert {s.name for s in sites} == {"down"}
    assert module[sites[0]].factors.shape[1] == 1


def test_grouped_heads_share_the_width_of_a_head() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1,
        intermediate_size=40, vocab_size=11,
    )  # fmt: skip
    graph = build_graph(_recipe({"mov": {"experts": 3, "sites": ["k"]}}), spec_of(config))
    assert graph.parameter_count().deployed == 3 * 16 + 3 * 8
