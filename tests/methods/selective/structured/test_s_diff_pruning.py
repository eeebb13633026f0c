"""Diff pruning in groups: what a gate of each tensor adds (the stages are in test_u_diff_pruning)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.entries import recipe_of, trained
from support.steps import NO_STEP
from support.toy import configured, toy_spec
from torch import Tensor

from autopeft.method import WeightTarget
from autopeft.spec import BackboneSpec, StackSpec, TensorSpec

K = 60


def searching(method: str, **config: Any) -> Any:
    torch.manual_seed(0)  # gates are drawn from a seed of the process
    module = configured(method, keep=5, **config).build((), toy_spec(layers=1))
    module.begin_search()
    with torch.no_grad():
        for i, w in enumerate(module.dense.differences()):
            w.copy_(torch.randn(w.shape, generator=torch.Generator().manual_seed(i)))
    return module


def acting(module: Any) -> dict[str, Tensor]:
    zeros = {t.name: torch.zeros(t.shape) for t in module.entries.tensors}
    return {n: module.weight(WeightTarget(tensor=n), zero, zero).detach() for n, zero in zeros.items()}


def test_one_gate_for_each_tensor() -> None:
    module = searching("s_diff_pruning")
    assert len(module.dense.shared) == len(module.entries.tensors)
    assert not len(searching("u_diff_pruning").dense.shared)
    assert {float(a.detach()) for a in module.dense.shared.values()} == {5.0}


def test_a_closed_gate_takes_a_tensor_out() -> None:
    module = searching("s_diff_pruning")
    name = module.entries.tensors[1].name
    with torch.no_grad():
        module.dense.shared[module.dense._key(name)].fill_(-20.0)
    module.before_step(0, 1)
    for training in (True, False):
        module.train(training)
        changes = acting(module)
        assert not changes[name].any()
        assert all(change.any() for n, change in changes.items() if n != name)
    module.end_search()
    assert name not in module.entries.selected()


def test_with_open_gates_it_is_the_unstructured_one() -> None:
    groups, alone = searching("s_diff_pruning"), searching("u_diff_pruning")
    with torch.no_grad():
        for a in groups.dense.shared.values():
            a.fill_(30.0)
        for a, b in zip(groups.dense.locations.values(), alone.dense.locations.values(), strict=True):
            a.fill_(0.4)
            b.fill_(0.4)
    groups.before_step(0, 1)
    alone.dense._seeds = {key: seeds[:1] for key, seeds in groups.dense._seeds.items()}
    first, second = acting(groups), acting(alone)
    assert all(torch.equal(change, second[n]) for n, change in first.items())
    groups.end_search()
    alone.end_search()
    assert torch.equal(groups.entries.index, alone.entries.index)


@pytest.mark.parametrize("joint", ["sum", "product"])
def test_the_penalty(joint: str) -> None:
    module = searching("s_diff_pruning", joint=joint, penalty=0.01)
    entries = [torch.sigmoid(a).sum() for a in module.dense.locations.values()]
    tensors = [torch.sigmoid(a).sum() for a in module.dense.shared.values()]
    pairs = zip(entries, tensors, strict=True)
    expected = sum(e * t for e, t in pairs) if joint == "product" else sum(entries) + sum(tensors)
    torch.testing.assert_close(module.loss_terms(NO_STEP), 0.01 * expected)


# A planted structure
# ---------------------------------------------------------------------------------------------------

TENSORS = tuple(TensorSpec(f"t{i}", (40,), "weight") for i in range(8))


def _left_alone(method: str, seed: int, **config: Any) -> int:
    """How many tensors keep no entry, where half of them should move much and the others little."""
    stack = StackSpec("encoder", 1, 4, False)
    spec = BackboneSpec("toy", (stack,), (), TENSORS, sum(t.size for t in TENSORS))
    module = configured(method, keep=80, penalty=1e-2, **config).build((), spec)
    module.begin_search()
    generator = torch.Generator().manual_seed(seed)
    goals = [torch.randn(40, generator=generator) * (1.0 if i < 4 else 0.35) for i in range(8)]
    groups = [{**g, "lr": g.get("lr", 0.05)} for g in module.parameter_groups()]
    optimizer = torch.optim.AdamW(
        [{k: v for k, v in g.items() if k in ("params", "lr")} for g in groups], weight_decay=0.0
    )
    torch.manual_seed(seed)
    zero = torch.zeros(40)
    for step in range(300):
        module.before_step(step, 300)
        changes = [module.weight(WeightTarget(tensor=t.name), zero, zero) for t in TENSORS]
        noise = [torch.randn(40, generator=generator) for _ in TENSORS]
        pairs = zip(changes, goals, noise, strict=True)
        loss = sum(0.05 * (c - g - n).square().sum() for c, g, n in pairs)
        optimizer.zero_grad()
        (loss + module.loss_terms(NO_STEP)).backward()
        module.after_backward(step, 300)
        optimizer.step()
    module.end_search()
    return len(TENSORS) - len(module.entries.selected())


@pytest.mark.slow
def test_more_tensors_are_left_alone_than_without_groups() -> None:
    grouped = [_left_alone("s_diff_pruning", seed, joint="product") for seed in range(3)]
    alone = [_left_alone("u_diff_pruning", seed) for seed in range(3)]
    assert sum(grouped) > sum(alone)


def test_a_training_ends_with_k_entries() -> None:
    seen = trained(recipe_of("s_diff_pruning", keep=K, joint="product", penalty=1e-3))
    assert len(seen.module.entries.values) == K
    assert seen.module.entries.missing == 0
