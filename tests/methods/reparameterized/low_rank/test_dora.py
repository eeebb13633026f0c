from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import randomise
from support.toy import build, counted, toy_spec, toy_specs
from torch import Tensor

from autopeft.method import WeightTarget, decay_targets
from autopeft.spec import BackboneSpec


def _initialised(**config: object) -> tuple[Any, WeightTarget, Tensor]:
    module, sites = build("dora", toy_spec(hidden=16, kv=8), rank=2, **config)
    target = module.weight_targets()[0]
    weight = torch.randn(sites[0].out_features, sites[0].in_features)
    module.initialise(target, weight)
    return module, target, weight


@given(toy_specs, st.integers(1, 8))
def test_count_is_what_it_holds(spec: BackboneSpec, rank: int) -> None:
    deployed, trained, held, held_trained = counted("dora", spec, rank=rank, sites=("q", "k", "up"))
    assert deployed == trained == held == held_trained


def test_identity_at_init_is_exact_also_for_a_transposed_weight() -> None:
    module, target, _ = _initialised()
    weight = torch.randn(16, 16).t()
    module.initialise(target, weight)
    assert torch.equal(module.weight(target, weight, weight), weight)


@pytest.mark.parametrize("detach", [True, False])
def test_a_row_of_zeros_stays_one(detach: bool) -> None:
    """Pruned and expanded models have such rows, which have no direction."""
    module, target, weight = _initialised(detach_norm=detach)
    weight[3] = 0
    module.initialise(target, weight)
    found = module.weight(target, weight, weight)
    torch.testing.assert_close(found, weight)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module[target.site].parameters())


def test_row_norms_are_the_magnitudes() -> None:
    module, target, weight = _initialised()
    randomise(module)
    changed = module.weight(target, weight, weight)
    torch.testing.assert_close(changed.norm(dim=1), module[target.site].magnitude.abs())


@pytest.mark.parametrize(("alpha", "scale"), [(5.0, 2.5), (None, 2.0)])
def test_it_computes_the_papers_formula(alpha: float | None, scale: float) -> None:
    """W' = m·V/‖V‖ with V = W₀ + (α/r)·B·A, r = 2."""
    module, target, weight = _initialised(alpha=alpha)
    randomise(module)
    pair = module[target.site]
    direction = weight + scale * pair.B @ pair.A
    expected = pair.magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(module.weight(target, weight, weight), expected)


def test_magnitudes_decay_towards_the_norms_of_the_pretrained_rows() -> None:
    module, target, weight = _initialised()
    randomise(module)
    pair, targets = module[target.site], decay_targets([module])
    found = targets.pop(id(pair.magnitude))
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, weight.norm(dim=1))
    assert set(targets) == {id(own.magnitude) for own in module.children_by_site() if own is not pair}


def test_other_deltas_are_added_past_the_normalisation() -> None:
    module, target, weight = _initialised()
    randomise(module)
    other = torch.randn_like(weight)
    alone = module.weight(target, weight, weight)
    torch.testing.assert_close(module.weight(target, weight, weight + other), alone + other)


def _up_gradient(module: Any, target: WeightTarget, weight: Tensor) -> Tensor:
    module.zero_grad()
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    (module.weight(target, weight, weight) * upstream).sum().backward()
    grad: Tensor = module[target.site].B.grad
    return grad.clone()


def test_the_norm_is_a_constant_in_the_gradient() -> None:
    module, target, weight = _initialised()
    randomise(module)
    pair = module[target.site]
    norms = (weight + module.scale * pair.product()).detach().norm(dim=1, keepdim=True)
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    by_hand = module.scale * (pair.magnitude.detach()[:, None] / norms * upstream) @ pair.A.detach().T
    torch.testing.assert_close(_up_gradient(module, target, weight), by_hand)
    module.detach_norm = False
    assert not torch.allclose(_up_gradient(module, target, weight), by_hand, rtol=1e-2)


def test_keeps_the_dtype_of_the_backbone_and_stays_the_identity() -> None:
    module, target, weight = _initialised()
    half = weight.to(torch.bfloat16)
    module.initialise(target, half)
    assert torch.equal(module.weight(target, half, half), half)
