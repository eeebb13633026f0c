from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny import randomise
from support.toy import CALL, GATED, build, configured, counted, sites_of, toy_spec, toy_specs

from autopeft.errors import MethodError
from autopeft.spec import BackboneSpec


def _masks(spec: BackboneSpec, **config: Any) -> list[torch.Tensor]:
    """All masks of a method on a spec, (copies, rows, columns) for each factor and site."""
    method = configured("capaboost", **config)
    return [m.draw() for site in sites_of(method, spec) for m in method._masks(site)]


@given(toy_specs, st.integers(2, 6), st.integers(1, 4), st.sampled_from([0.5, 0.8, 1.0]))
def test_count_is_the_union_of_the_masks_and_what_it_holds(
    spec: BackboneSpec, rank: int, copies: int, density: float
) -> None:
    config = {"rank": rank, "copies": copies, "density": density, "sites": ("q", "up")}
    deployed, trained, held, held_trained = counted("capaboost", spec, **config)
    assert deployed == trained == held == held_trained
    assert deployed == sum(int((m.sum(0) > 0).sum()) for m in _masks(spec, **config))
    assert deployed <= counted("lora", spec, rank=rank, sites=("q", "up"))[0]


def test_three_quarters_of_the_entries_are_used_by_two_halves() -> None:
    spec = toy_spec(hidden=400, kv=400)
    share = counted("capaboost", spec)[0] / counted("lora", spec)[0]
    assert share == pytest.approx(0.75, abs=0.01)
    assert counted("capaboost", spec, pattern="2:4")[0] / counted("lora", spec)[0] == pytest.approx(
        0.75, abs=0.01
    )
    assert counted("capaboost", spec, copies=1)[0] / counted("lora", spec)[0] == 0.5


def test_each_mask_has_exactly_its_share_of_ones() -> None:
    for mask in _masks(toy_spec(), rank=3, copies=4, density=0.37):
        assert mask.sum(dim=(1, 2)).tolist() == [int(0.37 * mask[0].numel())] * 4


def test_two_in_each_four_of_a_row() -> None:
    spec = toy_spec(hidden=8, kv=12)
    for mask in _masks(spec, rank=4, pattern="2:4", sites=("q", "k")):
        assert (mask.unflatten(-1, (-1, 4)).sum(-1) == 2).all()
        assert not torch.equal(mask[0], mask[1])


def test_masks_are_independent_fixed_and_drawn_from_the_seed() -> None:
    spec = toy_spec(layers=3, hidden=16, kv=16)
    masks = _masks(spec, rank=4)
    flat = [m.flatten() for mask in masks for m in mask]
    for i, mask in enumerate(flat):
        assert not any(torch.equal(mask, other) for other in flat[:i])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(masks, _masks(spec, rank=4), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(torch.equal(a, b) for a, b in zip(masks, _masks(spec, rank=4, seed=1), strict=True))


def test_neither_masks_nor_places_are_saved() -> None:
    module, _ = build("capaboost", toy_spec(), rank=4)
    assert {k.split(".", 2)[-1] for k in module.state_dict()} == {"A.values", "B.values"}
    again, sites = build("capaboost", toy_spec(), rank=4)
    randomise(module)
    again.load_state_dict(module.state_dict())
    x, y = torch.randn(3, 6), torch.zeros(3, 6)
    assert torch.equal(module.delta(sites[0], x, y, CALL), again.delta(sites[0], x, y, CALL))


def test_one_copy_under_a_full_mask_is_lora() -> None:
    torch.manual_seed(3)
    boosted, sites = build("capaboost", toy_spec(), rank=3, alpha=5.0, copies=1, density=1.0)
    torch.manual_seed(3)
    lora, _ = build("lora", toy_spec(), rank=3, alpha=5.0)
    for site in sites:
        assert torch.equal(boosted[site].A()[0], lora[site].A)
        assert not boosted[site].B().any()
    randomise(boosted)
    with torch.no_grad():
        for site in sites:
            lora[site].A.copy_(boosted[site].A()[0])
            lora[site].B.copy_(boosted[site].B()[0])
    for call in (CALL, GATED):
        x, y = torch.randn(2, 4, 6), torch.zeros(2, 4, 6)
        torch.testing.assert_close(boosted.delta(sites[0], x, y, call), lora.delta(sites[0], x, y, call))


def _dense(copies: Any) -> torch.Tensor:
    """The shared matrix behind the copies, zero where no mask has a one."""
    flat = torch.zeros(copies.shape.numel())
    flat[copies.index] = copies.values.detach()
    return flat.view(copies.shape)


def test_delta_and_gradients_are_those_of_masked_copies_of_shared_factors() -> None:
    module, sites = build("capaboost", toy_spec(hidden=8), rank=4, copies=3, alpha=12.0, sites=("q",))
    randomise(module, std=0.5)
    site, pair = sites[0], module[sites[0]]
    masks_a, masks_b = _masks(toy_spec(hidden=8), rank=4, copies=3, sites=("q",))[:2]
    a, b = _dense(pair.A).requires_grad_(), _dense(pair.B).requires_grad_()
    x, y = torch.randn(2, 5, 8), torch.zeros(2, 5, 8)
    expected = 3 * sum(x @ ((b * mb) @ (a * ma)).T for ma, mb in zip(masks_a, masks_b, strict=True))  # type: ignore[union-attr]
    got = module.delta(site, x, y, CALL)
    torch.testing.assert_close(got, expected)
    upstream = torch.randn(got.shape)
    (got * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for copies, shared, masks in ((pair.A, a, masks_a), (pair.B, b, masks_b)):
        assert shared.grad is not None
        assert not shared.grad[~masks.any(0)].any()
        torch.testing.assert_close(copies.values.grad, shared.grad.flatten()[copies.index])


def test_copies_hold_the_same_weights_also_after_training() -> None:
    module, sites = build("capaboost", toy_spec(hidden=8), rank=4, copies=3, sites=("q",))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    x, y = torch.randn(5, 8), torch.zeros(5, 8)
    for _ in range(3):
        optimizer.zero_grad()
        (module.delta(sites[0], x, y, CALL) - 1).pow(2).sum().backward()
        optimizer.step()
    pair = module[sites[0]]
    drawn = _masks(toy_spec(hidden=8), rank=4, copies=3, sites=("q",))[:2]
    for copies, masks in zip((pair.A, pair.B), drawn, strict=True):
        made = copies()
        assert made.shape == masks.shape
        assert torch.equal(made, _dense(copies) * masks)


def test_the_rank_grows_with_the_copies_and_the_count_does_not() -> None:
    spec = toy_spec(layers=1, hidden=32)
    zero = torch.zeros(32, 32)
    for copies in (1, 2, 4):
        module, sites = build("capaboost", spec, rank=3, copies=copies, sites=("q",))
        randomise(module, std=1.0)
        rank = torch.linalg.matrix_rank(module.merged(sites[0], zero, None)[0])
        assert rank == 3 * copies
        assert counted("capaboost", spec, rank=3, copies=copies, sites=("q",))[0] <= 3 * 64


def test_merged_weight_equals_the_delta() -> None:
    module, sites = build("capaboost", toy_spec(), rank=3, sites=("up",))
    randomise(module, std=0.5)
    site = sites[0]
    weight, x = torch.randn(site.out_features, site.in_features), torch.randn(5, site.in_features)
    merged, bias = module.merged(site, weight, None)
    y = x @ weight.T
    torch.testing.assert_close(x @ merged.T, y + module.delta(site, x, y, CALL), atol=1e-5, rtol=1e-5)
    assert bias is None


def test_dropout_only_while_training() -> None:
    module, sites = build("capaboost", toy_spec(hidden=64), rank=3, dropout=0.5)
    randomise(module)
    x, y = torch.randn(4, 64), torch.zeros(4, 64)
    assert torch.equal(module.eval().delta(sites[0], x, y, CALL), module.delta(sites[0], x, y, CALL))
    module.train()
    assert not torch.equal(module.delta(sites[0], x, y, CALL), module.delta(sites[0], x, y, CALL))


def test_refuses_masks_that_cannot_be() -> None:
    with pytest.raises(MethodError, match=r"density=0.1 keep no entry of A at encoder.0.q \(1 × 6\)"):
        counted("capaboost", toy_spec(), rank=1, density=0.1)
    with pytest.raises(MethodError, match=r"two of each four columns, but A at encoder.0.q is \(4 × 6\)"):
        counted("capaboost", toy_spec(), rank=4, pattern="2:4")
    with pytest.raises(MethodError, match=r"B at encoder.0.q is \(8 × 3\); take a rank"):
        counted("capaboost", toy_spec(hidden=8), rank=3, pattern="2:4")
    with pytest.raises(ValidationError, match="has density"):
        configured("capaboost", pattern="2:4", density=0.4)
