"""Early stopping returns to no state from before a module had what training leaves of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.training import encoded_task, tiny_bert

from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan, TrainResult, train

STEPS = 12


def stopped(
    monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], patience: int
) -> tuple[Hybrid, TrainResult, list[dict[str, torch.Tensor]]]:
    """A training in which each score is worse than the one before; the modules' states after each step."""
    falling = iter(range(STEPS, 0, -1))
    monkeypatch.setattr("autopeft.training.loop.evaluate", lambda *_, **__: float(next(falling)))
    recipe = Recipe.from_dict(
        {"name": "r", "layers": [{"attach": [method]}], "training": {"learning_rate": 1e-2}}
    )
    hybrid = attach(tiny_bert(), recipe, seed=0)
    states: list[dict[str, torch.Tensor]] = []

    def on_step(step: int, loss: float) -> None:
        states.append({k: v.clone() for k, v in hybrid.root.state_dict().items()})

    plan = TrainingPlan(steps=STEPS, batch_size=8, device="cpu", eval_every=1, patience=patience)
    return hybrid, train(hybrid, encoded_task(), plan, on_step=on_step), states


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


def test_sora_is_returned_with_all_its_shrinkage(monkeypatch: pytest.MonkeyPatch) -> None:
    hybrid, result, states = stopped(monkeypatch, {"sora": {"rank": 4, "shrinkage": 0.6}}, patience=2)
    assert (result.stopped, result.steps) == ("done", STEPS)
    assert same(hybrid.root.state_dict(), states[-1])
    gates = [v for k, v in states[-1].items() if k.endswith("gate")]
    early = [v for k, v in states[0].items() if k.endswith("gate")]
    assert sum(int((g == 0).sum()) for g in gates) > sum(int((g == 0).sum()) for g in early)


@pytest.mark.parametrize("options", [{"threshold": 0.01}, {"shrinkage": 0.0}])
def test_sora_without_a_shrinkage_to_come_to_stops_early(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, float]
) -> None:
    hybrid, result, states = stopped(monkeypatch, {"sora": {"rank": 4, **options}}, patience=2)
    assert (result.stopped, result.steps) == ("patience", 3)
    assert same(hybrid.root.state_dict(), states[0])


def test_autolora_finds_its_ranks_in_all_the_steps_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    hybrid, result, states = stopped(monkeypatch, {"autolora": {"rank": 4}}, patience=2)
    search = STEPS // 2
    assert (result.stopped, result.steps) == ("patience", search + 3)
    assert all(any(k.endswith("selection") for k in state) for state in states[:search])
    assert same(hybrid.root.state_dict(), states[search])


def test_adalora_is_returned_with_its_last_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    method = {"adalora": {"rank": 1, "initial_rank": 3, "interval": 1, "final": 0.5}}
    hybrid, result, states = stopped(monkeypatch, method, patience=2)
    first = STEPS - STEPS // 2
    assert (result.stopped, result.steps) == ("patience", first + 2)
    assert same(hybrid.root.state_dict(), states[first - 1])
