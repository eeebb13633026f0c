"""Two masks on one tensor add: each keeps its own values, and each is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import randomise, tiny_model
from support.training import encoded_task, tiny_bert

from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.training.loop import train
from autopeft.training.plan import TrainingPlan

FIRST, SECOND = {"pafi": {"keep": 300}}, {"pafi": {"keep": 200}, "as": "second"}


def _recipe(*model: Any) -> Recipe:
    return Recipe.from_dict({"name": "t", "model": list(model), "training": {"learning_rate": 0.05}})


def _mask(hybrid: Hybrid, name: str) -> Any:
    return hybrid.modules[name].entries


def test_where_both_chose_one_entry_their_values_add() -> None:
    hybrid = attach(tiny_model("bert"), _recipe(FIRST, SECOND), seed=0)
    for module in hybrid.modules.values():
        randomise(module)
    first, second = _mask(hybrid, "pafi"), _mask(hybrid, "second")
    assert set(second.index.tolist()) < set(first.index.tolist()), "the smaller mask lies within the larger"
    before = {name: p.detach().clone() for name, p in tiny_model("bert").base_model.named_parameters()}
    expected = torch.cat([before[t.name].flatten() for t in first.tensors])
    expected.index_add_(0, first.index, first.values.detach())
    expected.index_add_(0, second.index, second.values.detach())
    merged = dict(hybrid.merge().base_model.named_parameters())
    found = torch.cat([merged[t.name].detach().flatten() for t in first.tensors])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("other", [SECOND, {"fish_mask": {"keep": 200, "samples": 4}}])
def test_each_is_counted_and_trains(other: dict[str, Any]) -> None:
    hybrid = attach(tiny_bert(), _recipe(FIRST, other), seed=0)
    assert hybrid.counts().deployed == 500
    train(hybrid, encoded_task(), TrainingPlan(steps=3, batch_size=16, device="cpu"))
    for name in hybrid.graph.entries:
        moved = _mask(hybrid, name).values != 0
        assert float(moved.float().mean()) > 0.5, name


def test_entries_that_did_not_move_are_counted_and_said() -> None:
    hybrid = attach(tiny_bert(), _recipe(FIRST, SECOND), seed=0)
    assert hybrid.remarks() == (
        "pafi: 300 of 300 chosen entries did not move.",
        "second: 200 of 200 chosen entries did not move.",
    )
    with torch.no_grad():
        _mask(hybrid, "pafi").values[:299] = 0.1
        _mask(hybrid, "second").values.fill_(0.1)
    assert hybrid.remarks() == ("pafi: 1 of 300 chosen entries did not move.",)
