"""A search in dense deltas, the choice of its best entries, and the training of these alone."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from support.entries import recipe_of, trained
from torch import Tensor

from autopeft.method import WeightTarget
from autopeft.nn import SearchedEntries
from autopeft.spec import TensorSpec

TENSORS = (TensorSpec("a", (3, 4), "weight"), TensorSpec("b", (5,), "bias"))
TARGETS = [WeightTarget(tensor=t.name) for t in TENSORS]
TOTAL = 17


def searching(k: int = 4, *, rewinds: bool = True) -> SearchedEntries:
    module = SearchedEntries(TENSORS, k, 0.25, rewinds=rewinds)
    module.begin_search()
    assert module.dense is not None
    with torch.no_grad():
        for i, delta in enumerate(module.dense.parameters()):
            delta.copy_(torch.randn(delta.shape, generator=torch.Generator().manual_seed(i)))
    return module


def changed(module: SearchedEntries) -> Tensor:
    zeros = [torch.zeros(t.shape) for t in TENSORS]
    pairs = zip(TARGETS, zeros, strict=True)
    return torch.cat([module.weight(target, zero, zero).flatten() for target, zero in pairs]).detach()


def test_it_acts_by_what_it_has() -> None:
    module = SearchedEntries(TENSORS, 4, 0.5, rewinds=True)
    assert [str(t.tensor) for t in module.weight_targets()] == ["a", "b"]
    assert not changed(module).any()
    module = searching()
    assert bool(changed(module).all())
    dense = changed(module)
    module.end_search()
    best = dense.abs().topk(4).indices.sort().values
    assert torch.equal(module.entries.index, best)
    assert not changed(module).any(), "the chosen ones start from zero"
    with torch.no_grad():
        module.entries.values.fill_(2.0)
    assert changed(module).nonzero()[:, 0].tolist() == best.tolist()


def test_what_trains_is_dense_or_sparse() -> None:
    module = searching()
    (group,) = module.parameter_groups()
    assert [p.numel() for p in group["params"]] == [12, 5]
    (changed(module) * 0).sum()
    module.end_search()
    (group,) = module.parameter_groups()
    assert group["params"] == [module.entries.values]
    assert [n for n, _ in module.named_parameters()] == ["entries.values"]


def test_the_phases() -> None:
    module = SearchedEntries(TENSORS, 4, 0.25, rewinds=False)
    search, sparse = module.phases()
    assert (search.name, search.share, search.anew) == ("search", 0.25, False)
    assert (sparse.name, sparse.share, sparse.anew) == ("sparse", 0.75, False)
    assert SearchedEntries(TENSORS, 4, 0.25, rewinds=True).phases()[1].anew is True
    assert not module.settled(3, 9)
    assert not searching().settled(3, 9)
    done = searching()
    done.end_search()
    assert done.settled(3, 9)
    assert [p.name for p in done.phases()] == ["train"]


def test_some_may_be_chosen_first_and_others_later() -> None:
    module = searching(5)
    dense = changed(module)
    module.end_search(2)
    assert module.entries.missing == 3
    first = set(module.entries.index.tolist()) - {-1}
    assert first == set(dense.abs().topk(2).indices.tolist())
    with torch.no_grad():
        module.entries.values[3:] = 9.0
    module.begin_search()
    assert changed(module).nonzero()[:, 0].tolist() == sorted(first)
    assert set(changed(module)[sorted(first)].tolist()) == {9.0}
    module.end_search()
    assert first < set(module.entries.index.tolist())
    assert [float(v) for v in module.entries.values.detach()].count(9.0) == 2


@pytest.mark.parametrize("event", ["finish", "deploy"])
def test_of_an_interrupted_search_the_largest_changes_stay(event: str) -> None:
    module = searching()
    dense = changed(module)
    deployed = copy.deepcopy(module)
    getattr(deployed, event)()
    assert module.dense is not None
    assert deployed.dense is None
    best = dense.abs().topk(4).indices
    expected = torch.zeros(TOTAL)
    expected[best] = dense[best]
    assert torch.equal(changed(deployed), expected)


def test_dense_deltas_have_the_precision_and_the_device_of_the_values() -> None:
    module = searching()
    assert module.dense is not None
    assert {(p.dtype, p.device) for p in module.dense.parameters()} == {(torch.float32, torch.device("cpu"))}
    weight = torch.zeros(5, dtype=torch.bfloat16)
    assert module.weight(TARGETS[1], weight, weight).dtype is torch.bfloat16


@pytest.mark.parametrize("method", ["lt_sft", "u_diff_pruning", "s_diff_pruning", "u_bitfit", "s_bitfit"])
def test_what_the_search_needs_is_gone_when_the_next_phase_takes_its_first_step(method: str) -> None:
    """Without a collector of garbage: on a GPU the memory is there at once."""
    dense: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def count(seen: Any) -> bool:
        if dense:
            left.append(sum(p() is not None for p in dense))
        return False

    gc.disable()
    try:
        trained(
            recipe_of(method, keep=60),
            look=lambda module: dense.extend(weakref.ref(p) for p in module.dense.parameters()),
            should_stop=count,
        )
    finally:
        gc.enable()
    assert len(dense) > 10
    assert left == [0, 0, 0, 0]
