from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import CALL, GATED, build, counted, toy_spec, toy_specs

from autopeft.hybrid import attach, load
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec

PAIR = (
    [[-0.012968, 0.929148], [-1.425556, -1.274684]],
    [[-0.667107, 0.464462], [-0.034317, 1.373325]],
)
MIXED = ("q", "k", "up", "down")


def _recipe(**config: Any) -> Recipe:
    return Recipe.from_dict({"name": "v", "layers": [{"attach": [{"vera": {"rank": 4, **config}}]}]})


@given(toy_specs, st.integers(1, 8))
def test_count_is_out_plus_rank_and_what_it_holds(spec: BackboneSpec, rank: int) -> None:
    deployed, trained, held, held_trained = counted("vera", spec, rank=rank, sites=MIXED)
    assert deployed == trained == held == held_trained
    assert deployed == sum(s.out_features + rank for s in spec.sites if s.name in MIXED)


def test_roberta_base_counts_as_in_the_paper() -> None:
    deployed, *_ = counted("vera", toy_spec(layers=12, hidden=768, kv=768), rank=1024)
    assert deployed == 43_008


def test_one_frozen_pair_as_wide_as_the_widest_site_serves_all() -> None:
    module, sites = build("vera", toy_spec(hidden=6, ffn=10, kv=4), rank=3, sites=MIXED)
    assert {n.rsplit(".", 1)[-1] for n, _ in module.named_parameters()} == {"d", "b"}
    assert not module.A.requires_grad
    assert not module.B.requires_grad
    assert module.A.shape == (3, 10)
    assert module.B.shape == (10, 3)
    for site in sites:
        for part, whole in zip(module.pair(site), (module.A, module.B), strict=True):
            assert part.data_ptr() == whole.data_ptr()


def test_delta_is_the_formula_with_the_sites_slice_of_the_pair() -> None:
    module, sites = build("vera", toy_spec(hidden=6, ffn=10, kv=4), rank=3, sites=MIXED)
    randomise(module)
    for site in sites:
        x, y = torch.randn(2, 5, site.in_features), torch.zeros(2, 5, site.out_features)
        a, b = module.A[:, : site.in_features], module.B[: site.out_features]
        expected = x @ (torch.diag(module[site].b) @ b @ torch.diag(module[site].d) @ a).T
        torch.testing.assert_close(module.delta(site, x, y, CALL), expected)
        assert torch.equal(module.delta(site, x, y, CALL), module.delta(site, x, y, GATED))
        weight = torch.randn(site.out_features, site.in_features)
        merged, _ = module.merged(site, weight, None)
        torch.testing.assert_close(x @ merged.T, x @ weight.T + expected, atol=1e-5, rtol=1e-5)


def test_d_starts_where_the_recipe_says() -> None:
    module, sites = build("vera", toy_spec(), rank=64, d_initial=0.25)
    assert all(torch.equal(module[s].d, torch.full((64,), 0.25)) for s in sites)


def test_the_seed_alone_decides_the_pair() -> None:
    before = torch.get_rng_state()
    first, _ = build("vera", toy_spec(), rank=3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = (build("vera", toy_spec(), rank=3, seed=s)[0] for s in (5, 6))
    assert torch.equal(first.A, again.A)
    assert torch.equal(first.B, again.B)
    assert not torch.equal(first.A, other.A)


def test_the_pair_is_that_of_earlier_versions() -> None:
    """It is drawn instead of saved: if torch's stream changes, saved hybrids are lost."""
    module, _ = build("vera", toy_spec(hidden=2, kv=2), rank=2)
    torch.testing.assert_close(module.A, torch.tensor(PAIR[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(module.B, torch.tensor(PAIR[1]), atol=1e-5, rtol=0)


def test_vectors_and_seed_reproduce_the_outputs(tmp_path: Path) -> None:
    model = tiny_model("bert")
    hybrid = attach(model, _recipe(sites=["q", "up", "down"], seed=7), seed=0)
    randomise(hybrid.root, std=0.5)
    inputs = tiny_inputs("bert")
    expected = logits(model, inputs)
    hybrid.save(tmp_path)
    keys = {k for k in load_file(tmp_path / "weights.safetensors") if not k.startswith("head.")}
    assert {k.rsplit(".", 1)[-1] for k in keys} == {"d", "b"}
    torch.manual_seed(1234)
    fresh = tiny_model("bert")
    load(fresh, tmp_path)
    assert torch.equal(logits(fresh, inputs), expected)
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("seed: 7", "seed: 8"))
    other = tiny_model("bert")
    load(other, tmp_path)
    assert not torch.allclose(logits(other, inputs), expected, atol=1e-3)


def test_the_pair_moves_with_the_module() -> None:
    module, sites = build("vera", toy_spec(), rank=3)
    randomise(module)
    x, y = torch.randn(4, 6), torch.zeros(4, sites[0].out_features)
    expected = module.delta(sites[0], x, y, CALL)
    module.double()
    assert module.A.dtype == torch.float64
    torch.testing.assert_close(module.delta(sites[0], x.double(), y, CALL), expected.double())


def test_dropout_only_while_training() -> None:
    module, sites = build("vera", toy_spec(hidden=32), rank=3, dropout=0.5)
    randomise(module)
    x = torch.randn(4, 32)
    y = torch.zeros(4, sites[0].out_features)
    assert torch.equal(module.eval().delta(sites[0], x, y, CALL), module.delta(sites[0], x, y, CALL))
    module.train()
    assert not torch.equal(module.delta(sites[0], x, y, CALL), module.delta(sites[0], x, y, CALL))


@pytest.mark.parametrize("bad", [{"rank": 0}, {"d_initial": 0.0}, {"seed": -1}, {"alpha": 2.0}])
def test_refuses_what_is_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        build("vera", toy_spec(), **bad)


def test_torchs_default_dtype_and_device_do_not_matter_to_the_pair() -> None:
    module, _ = build("vera", toy_spec(), rank=3)
    torch.set_default_dtype(torch.float64)
    try:
        other, _ = build("vera", toy_spec(), rank=3)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        elsewhere, _ = build("vera", toy_spec(), rank=3)
    assert torch.equal(module.A, other.A)
    assert torch.equal(module.B, elsewhere.B)
