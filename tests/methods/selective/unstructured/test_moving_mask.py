"""A mask that moves: what it leaves stays stored and rests, and the union is bounded."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from autopeft.methods.selective.unstructured.fish_dip import MovingMask
from hypothesis import given
from hypothesis import strategies as st

from autopeft.spec import TensorSpec

TENSORS = [TensorSpec("a", (12,), "weight"), TensorSpec("b", (4, 2), "weight")]
TOTAL = 20


def made(k: int, bound: int, *masks: list[int]) -> MovingMask:
    module = MovingMask(TENSORS, k, bound, "mine")
    for mask in masks:
        module.move(torch.tensor(mask))
    return module


def mask_of(module: MovingMask) -> list[int]:
    assert module.active is not None
    found: list[int] = module.entries.index[module.active].tolist()
    return found


@given(st.lists(st.sets(st.integers(0, TOTAL - 1), min_size=3, max_size=3), min_size=1, max_size=5))
def test_it_stores_the_union_and_the_present_mask_is_active(masks: list[set[int]]) -> None:
    module = made(3, 15)
    values: dict[int, float] = {}
    for mask in masks:
        module.move(torch.tensor(list(mask)))
        assert mask_of(module) == sorted(mask)
        found = dict(zip(module.entries.index.tolist(), module.entries.values.tolist(), strict=True))
        assert {i: v for i, v in found.items() if i >= 0} == {
            i: values.get(i, 0.0) for i in values.keys() | mask
        }
        torch.nn.init.normal_(module.entries.values)
        found = dict(zip(module.entries.index.tolist(), module.entries.values.tolist(), strict=True))
        values = {i: v for i, v in found.items() if i >= 0}
    union = sorted(set().union(*masks))
    assert module.entries.held.tolist() == union
    assert module.entries.selected() == [
        n for n, low, high in (("a", 0, 12), ("b", 12, 20)) if any(low <= i < high for i in union)
    ]


@given(
    held=st.sets(st.integers(0, TOTAL - 1), min_size=4, max_size=8),
    bound=st.integers(8, 12),
    levels=st.integers(1, 30),
    seed=st.integers(0, 50),
)
def test_the_best_that_fit(held: set[int], bound: int, levels: int, seed: int) -> None:
    module = made(4, bound, sorted(held)[:4], sorted(held)[-4:])
    held = set(module.entries.held.tolist())
    scores = torch.randint(0, levels, (TOTAL,), generator=torch.Generator().manual_seed(seed)).float()
    order = scores.argsort(descending=True, stable=True).tolist()
    new = [i for i in order[:4] if i not in held][: bound - len(held)]
    expected = [i for i in order if i in held or i in new][:4]
    assert sorted(module.best(scores).tolist()) == sorted(expected)
    module.move(module.best(scores))
    assert len(module.entries.held) <= bound


def test_the_bound_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    module = made(2, 2, [0, 1])
    with caplog.at_level(logging.WARNING, "autopeft"):
        for _ in range(3):
            assert sorted(module.best(torch.arange(20.0)).tolist()) == [0, 1]
    assert [r.getMessage() for r in caplog.records] == [
        "mine stores 2 entries at most and has no room for a whole new mask: it takes the best of those that "
        "it stores; raise `stored` for more."
    ]
    assert module.bounded
    module.clear()
    assert not module.bounded
    assert module.entries.selected() == []


def test_a_step_moves_the_present_mask_alone() -> None:
    module = made(2, 6, [0, 1])
    values = module.entries.values
    optimizer = torch.optim.AdamW([values], lr=0.1, weight_decay=0.5)
    for mask in ([0, 1], [1, 13], [13, 14]):
        module.move(torch.tensor(mask))
        before = values.detach().clone()
        values.grad = torch.ones_like(values)
        module.after_backward(0, 3)
        assert values.grad.tolist() == [float(i in mask) for i in module.entries.index.tolist()]
        module.before_update(0, 3)
        optimizer.step()
        module.after_step(0, 3)
        moved = module.entries.index[values.detach() != before].tolist()
        assert moved == mask
    assert int((values != 0).sum()) == 4


def test_a_deployed_form_has_the_union_alone_and_trains_on() -> None:
    module = made(2, 6, [0, 1], [1, 13])
    torch.nn.init.normal_(module.entries.values)
    deployed = copy.deepcopy(module)
    deployed.deploy()
    assert set(deployed.state_dict()) == {"entries.values", "entries.index"}
    assert deployed.entries.index.tolist() == [0, 1, 13]
    for name, size in (("a", (12,)), ("b", (4, 2))):
        zero = torch.zeros(size)
        assert torch.equal(deployed.entries.apply_to(name, zero), module.entries.apply_to(name, zero))
    fresh = made(2, 6)
    fresh.deploy()
    assert len(fresh.entries.values) == 0
    fresh.resize({"entries.index": (3,), "entries.values": (3,)})
    fresh.load_state_dict(deployed.state_dict())
    assert fresh.entries.selected() == ["a", "b"]
    fresh.resize({"entries.index": (99,), "entries.values": (99,)})
    assert len(fresh.entries.values) == 6, "no more than the bound"
    deployed.begin()
    assert len(deployed.entries.values) == 6
    assert mask_of(deployed) == [0, 1, 13]
    deployed.move(torch.tensor([5, 6]))
    assert deployed.entries.held.tolist() == [0, 1, 5, 6, 13]
