"""What the comparison of systems of several tasks compares, and what it concludes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.search.space.space import Space

FOLDER = "several_tasks"
MINILM = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


@pytest.fixture(scope="module")
def ours(load: Callable[[str], Any]) -> SimpleNamespace:
    names: dict[str, Any] = {}
    for module in ("contenders", "run"):
        names |= {name: value for name, value in vars(load(module)).items() if not name.startswith("_")}
    return SimpleNamespace(**names)


def test_what_learns_all_tasks_is_no_larger_than_half_of_their_own_loras(ours: SimpleNamespace) -> None:
    spec = spec_of(MINILM)
    own = count(ours.options_of(ours.OWN)[0], spec).deployed
    assert len(ours.TASKS) * own == 2 * ours.BUDGET
    for name in ours.CONTENDERS:
        if name not in (ours.OWN, ours.FOUND):
            recipes = ours.options_of(name)
            assert len({recipe.training.learning_rate for recipe in recipes}) == len(recipes) == 3
            assert 0.85 * ours.BUDGET < count(recipes[0], spec).deployed <= 1.002 * ours.BUDGET, name


def test_the_space_offers_what_tasks_share_and_what_each_has(ours: SimpleNamespace) -> None:
    from pathlib import Path

    space = Space.from_file(Path(ours.RESULTS).parents[1] / "space.yaml").for_tasks(ours.TASKS)
    bound = space.bind(spec_of(MINILM))
    assert count(bound.materialize(bound.middle()), bound.spec).deployed > 0
    assert all(kind in space.text for kind in ("switch", "task_route", "hyperformer"))


def test_what_is_known_is_not_trained_again_and_differences_are_of_one_draw(ours: SimpleNamespace) -> None:
    everything = ours.missing([])
    assert len(everything) == len(ours.DRAWS) * len(ours.CONTENDERS)
    rows = [
        {"draw": draw, "contender": name, "deployed": 4, "test": dict.fromkeys(ours.TASKS, score)}
        for draw, level in zip(ours.DRAWS, (0.5, 0.6, 0.7), strict=True)
        for name, score in ((ours.OWN, level), ("switch", level + 0.01))
    ]
    assert len(ours.missing(rows)) == len(everything) - len(rows)
    (line,) = (line for line in ours.tables(rows).splitlines() if line.startswith("| switch"))
    assert "| 1.00 ± 0.00 |" in line
