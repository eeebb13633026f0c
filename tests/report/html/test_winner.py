"""The winner in the report: its graph, and the counts that its weights have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny import tiny_config

from autopeft.report.html import winner as module
from autopeft.report.html.winner import winner_of


def run_of(method: str, deployed: int | None) -> Any:
    recipe = {"autopeft": 2, "name": "x", "layers": [{"attach": [{method: {"rank": 8, "sites": ["q"]}}]}]}
    counts = SimpleNamespace(deployed=deployed, head=66)
    result = SimpleNamespace(counts=counts, number=None, origin=None)
    about = SimpleNamespace(model="x", backbone=SimpleNamespace(parameters=None))
    return SimpleNamespace(recipe=recipe, fixed=True, result=result, best=None, about=about)


def deployed(found: Any) -> str:
    return next(row[1] for row in found.sheets[1].rows if row[0] == "deployed")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "config_of", lambda model, notify: tiny_config("bert"))


def test_sizes_that_training_settled_are_those_of_the_weights() -> None:
    found = winner_of(run_of("sora", 128), None, None)
    assert deployed(found) == "128"
    assert "sora" in found.note


def test_other_sizes_are_those_of_the_recipe() -> None:
    whole = winner_of(run_of("lora", None), None, None)
    assert deployed(winner_of(run_of("lora", 1), None, None)) == deployed(whole) == "1,536"
    assert whole.note == ""
    assert winner_of(run_of("sora", None), None, None).note == ""
