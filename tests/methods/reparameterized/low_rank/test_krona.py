from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny import randomise, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, configured, counted, toy_spec, toy_specs
from torch.utils._python_dispatch import TorchDispatchMode

from autopeft.errors import MethodError, SiteError
from autopeft.hybrid import attach
from autopeft.method import get_method
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

VARIANTS = ("weight", "parallel", "parallel_residual")


@given(toy_specs, st.sampled_from(VARIANTS), st.sampled_from([2.0, "learned"]))
def test_count_is_what_it_holds(spec: BackboneSpec, variant: Any, scale: Any) -> None:
    deployed, trained, held, held_trained = counted("krona", spec, variant=variant, scale=scale)
    assert deployed == trained == held == held_trained


def test_a_square_site_has_twice_its_width_and_given_shapes_are_kept() -> None:
    spec = toy_spec(layers=1, hidden=768, ffn=3072, kv=768)
    assert counted("krona", spec, sites=("q",))[0] == 2 * 768
    assert counted("krona", spec, sites=("q",), scale="learned")[0] == 2 * 768 + 1
    assert counted("krona", spec, variant="parallel_residual", scale="learned")[0] == 2 * 768 + 2
    module, sites = build("krona", spec, sites=("up",), a1=8, a2=64)
    assert module[sites[0]].A.shape == (8, 64)
    assert module[sites[0]].B.shape == (384, 12)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_the_fast_product_is_the_kronecker_product(shape: tuple[int, ...]) -> None:
    module, sites = build("krona", toy_spec(hidden=12, ffn=20), sites=("up", "down"), a1=4, scale=3.0)
    randomise(module, std=1.0)
    for site in sites:
        pair = module[site]
        x = torch.randn(*shape, site.in_features)
        y = torch.zeros(*shape, site.out_features)
        expected = x @ torch.kron(pair.A, pair.B).T
        torch.testing.assert_close(module.delta(site, x, y, CALL), 3 * expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(module.delta(site, x, y, GATED), expected, atol=1e-4, rtol=1e-5)


class _Largest(TorchDispatchMode):
    """The size of the largest tensor that an operation yields."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_forward_and_backward_never_form_the_product() -> None:
    module, sites = build("krona", toy_spec(layers=1, hidden=1024), sites=("q",))
    x = torch.randn(3, 1024)
    with _Largest() as seen:
        module.delta(sites[0], x, x, CALL).sum().backward()
    assert 0 < seen.size <= 4 * 1024


def test_the_rank_is_the_product_of_the_factors_ranks() -> None:
    module, sites = build("krona", toy_spec(hidden=16), sites=("q",))
    site = sites[0]
    pair = module[site]
    randomise(module, std=1.0)
    zero = torch.zeros(16, 16)
    assert torch.linalg.matrix_rank(module.merged(site, zero, None)[0]) == 16
    with torch.no_grad():
        pair.A.copy_(torch.outer(torch.randn(4), torch.randn(4)))
    assert torch.linalg.matrix_rank(module.merged(site, zero, None)[0]) == 4


def test_init_is_the_identity() -> None:
    for variant in VARIANTS:
        module, sites = build("krona", toy_spec(), variant=variant, scale="learned")
        x = torch.randn(5, sites[0].in_features)
        assert not module.delta(sites[0], x, x, CALL).any()


def test_merged_weight_equals_the_delta() -> None:
    for scale in (2.0, "learned"):
        module, sites = build("krona", toy_spec(), sites=("up",), scale=scale)
        randomise(module, std=0.5)
        site = sites[0]
        weight, x = torch.randn(site.out_features, site.in_features), torch.randn(5, site.in_features)
        merged, bias = module.merged(site, weight, None)
        y = x @ weight.T
        torch.testing.assert_close(x @ merged.T, y + module.delta(site, x, y, CALL), atol=1e-5, rtol=1e-5)
        assert bias is None


def test_a_gate_takes_the_place_of_a_constant_scale_and_not_of_a_learned_one() -> None:
    x = torch.randn(2, 3, 6)
    for scale in (3.0, "learned"):
        module, sites = build("krona", toy_spec(), scale=scale)
        randomise(module)
        pair = module[sites[0]]
        if pair.scale is not None:
            torch.nn.init.constant_(pair.scale, 3.0)
        product = x @ torch.kron(pair.A, pair.B).T
        torch.testing.assert_close(module.delta(sites[0], x, x, CALL), 3 * product)
        gated = product if pair.scale is None else 3 * product
        torch.testing.assert_close(module.delta(sites[0], x, x, GATED), gated)


def test_the_residual_variant_adds_a_learned_multiple_of_x() -> None:
    plain, sites = build("krona", toy_spec(), variant="parallel", scale=4.0)
    module, _ = build("krona", toy_spec(), variant="parallel_residual", scale=4.0)
    randomise(plain)
    missing, unexpected = module.load_state_dict(plain.state_dict(), strict=False)
    assert {k.rsplit(".", 1)[-1] for k in missing} == {"residual"}
    assert not unexpected
    x, y = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    for call in (CALL, GATED):
        before = plain.delta(sites[0], x, y, call)
        assert torch.equal(module.delta(sites[0], x, y, call), before)
        torch.nn.init.constant_(module[sites[0]].residual, 0.7)
        torch.testing.assert_close(module.delta(sites[0], x, y, call), before + 0.7 * x)
        torch.nn.init.zeros_(module[sites[0]].residual)
    module.delta(sites[0], x, y, CALL).sum().backward()
    torch.testing.assert_close(module[sites[0]].residual.grad, x.sum().reshape(1))


def test_parallel_stands_beside_the_ffn_and_reads_what_the_ffn_reads() -> None:
    """On BERT the FFN's input is the attention's normed output."""
    model = tiny_model("bert")
    recipe = Recipe.from_dict(
        {"name": "k", "layers": [{"at": [0], "attach": [{"krona": {"variant": "parallel", "scale": 3}}]}]}
    )
    seen: dict[str, torch.Tensor] = {}
    layer = model.bert.encoder.layer[0]
    layer.attention.output.register_forward_hook(lambda m, a, out: seen.update(x=out))
    layer.output.LayerNorm.register_forward_pre_hook(lambda m, args: seen.update(summed=args[0]))
    hybrid = attach(model, recipe, seed=0)
    randomise(hybrid.root)
    model(**tiny_inputs("bert"))
    module: Any = hybrid.modules["krona"]
    (pair,) = module.children_by_site()
    x, up, down = seen["x"], layer.intermediate.dense, layer.output.dense
    ffn = down(torch.nn.functional.gelu(up(x)))
    beside = 3 * x @ torch.kron(pair.A, pair.B).T
    assert beside.abs().max() > 0.05
    torch.testing.assert_close(seen["summed"], x + ffn + beside, atol=1e-5, rtol=1e-5)


def test_each_variant_has_its_own_sites_and_only_the_weight_can_be_merged() -> None:
    traits = {v: configured("krona", variant=v).traits for v in VARIANTS}
    assert [traits[v].mergeable for v in VARIANTS] == [True, False, False]
    assert traits["weight"].default_sites == ("q", "v")
    assert traits["parallel"].default_sites == ("ffn",)
    assert get_method("krona").traits.mergeable, "the class stays as it is"
    for variant, site in (("weight", "ffn"), ("parallel", "q"), ("parallel_residual", "up")):
        item = {"krona": {"variant": variant, "sites": [site]}}
        with pytest.raises(SiteError, match=f"krona cannot sit at '{site}'"):
            attach(tiny_model("bert"), Recipe.from_dict({"name": "k", "layers": [{"attach": [item]}]}))


@given(st.integers(1, 5000))
def test_default_shapes_are_the_divisors_nearest_to_the_root(width: int) -> None:
    spec = toy_spec(layers=1, hidden=width, kv=1)
    method = configured("krona", sites=("q",))
    (site,) = (s for s in spec.sites if s.name == "q")
    (a1, a2), (b1, b2) = method._shapes(site)
    assert a1 * b1 == a2 * b2 == width
    assert a2 <= math.sqrt(width) <= a1
    assert not any(width % k == 0 for k in range(a2 + 1, math.isqrt(width) + 1))


def test_refuses_what_does_not_divide() -> None:
    with pytest.raises(MethodError, match=r"a2=5 does not fit encoder\.0\.q.*divisors are 1, 2, 3, 6"):
        counted("krona", toy_spec(), a2=5)
    with pytest.raises(MethodError, match="a1=3 does not fit encoder"):
        counted("krona", toy_spec(), a1=3)


@pytest.mark.parametrize("bad", [0, -1, 101, "lerned"])
def test_refuses_a_bad_scale(bad: Any) -> None:
    with pytest.raises(ValidationError, match="learned"):
        configured("krona", scale=bad)
