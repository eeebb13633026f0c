"""What the comparison of systems of several tasks compares, and what it concludes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertConfig, LlamaConfig

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.search.space.space import Space

FOLDER = "several_tasks"
CONFIGS = {
    "minilm": BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "smollm2": LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, vocab_size=49152,
    ),
}  # fmt: skip
PARTS = pytest.mark.parametrize("part", CONFIGS)


@pytest.fixture(scope="module")
def ours(load: Callable[[str], Any]) -> SimpleNamespace:
    names: dict[str, Any] = {}
    for module in ("contenders", "run"):
        names |= {name: value for name, value in vars(load(module)).items() if not name.startswith("_")}
    return SimpleNamespace(**names)


@pytest.mark.parametrize("part", ["minilm", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_what_learns_all_tasks_is_no_larger_than_half_of_their_own_loras(
    ours: SimpleNamespace, part: str
) -> None:
    spec, how = spec_of(CONFIGS[part]), ours.PARTS[part]
    own = count(ours.options_of(part, ours.OWN)[0], spec).deployed
    assert len(how.tasks) * own == 2 * how.budget
    for name in how.items:
        if name != ours.OWN:
            recipes = ours.options_of(part, name)
            assert len({recipe.training.learning_rate for recipe in recipes}) == len(recipes) == 3
            assert 0.75 * how.budget < count(recipes[0], spec).deployed <= 1.002 * how.budget, name


@PARTS
def test_the_space_offers_what_tasks_share_and_what_each_has(ours: SimpleNamespace, part: str) -> None:
    from pathlib import Path

    space = Space.from_file(Path(ours.RESULTS).parents[1] / "space.yaml").for_tasks(ours.PARTS[part].tasks)
    bound = space.bind(spec_of(CONFIGS[part]))
    assert count(bound.materialize(bound.middle()), bound.spec).deployed > 0
    assert all(kind in space.text for kind in ("switch", "task_route", "hyperformer"))


def test_what_is_known_is_not_trained_again_and_differences_are_of_one_draw(ours: SimpleNamespace) -> None:
    everything = ours.missing([], ours.PARTS)
    assert len(everything) == len(ours.DRAWS) * sum(len(part.contenders) for part in ours.PARTS.values())
    tasks = ours.PARTS["minilm"].tasks
    rows = [
        {
            "part": "minilm",
            "draw": draw,
            "contender": name,
            "deployed": 4,
            "cpu_seconds": 60.0,
            "test": dict.fromkeys(tasks, score),
        }
        for draw, level in zip(ours.DRAWS, (0.5, 0.6, 0.7), strict=True)
        for name, score in ((ours.OWN, level), ("switch", level + 0.01))
    ]
    assert len(ours.missing(rows, ours.PARTS)) == len(everything) - len(rows)
    (line,) = (line for line in ours.table("minilm", rows).splitlines() if line.startswith("| switch"))
    assert "| 1.00 ± 0.00 |" in line
