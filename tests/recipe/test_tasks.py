"""The tasks of a set in recipes."""

from __future__ import annotations

from typing import Any

import pytest
from support.projecting import TINY

from autopeft.counting import count, further_task
from autopeft.recipe import Recipe
from autopeft.recipe.tasks import for_tasks, tasks_of, with_further_task

LORA = {"lora": {"rank": 2, "sites": ["q"]}}


def of(*items: Any) -> Recipe:
    return for_tasks(Recipe.from_dict({"name": "r", "layers": [{"attach": list(items)}]}), ["a", "b"])


def test_one_more_task() -> None:
    recipe = of({"switch": [LORA]}, {"ia3": {"sites": ["k"]}})
    further = with_further_task(recipe)
    assert len(tasks_of(further)) == 3
    assert tasks_of(further)[:2] == tasks_of(recipe)
    assert with_further_task(of(LORA)) == of(LORA)


@pytest.mark.parametrize(
    ("items", "times"),
    [
        ([{"switch": [LORA]}], 1),
        ([{"switch": [{**LORA, "as": "one"}, {**LORA, "as": "two"}]}], 1),
        ([{"switch": [LORA]}, {"serial_adapter": {"bottleneck": 4}}], 1),
        ([LORA], 0),
    ],
)
def test_what_it_adds_is_what_acts_by_the_task(items: list[Any], times: int) -> None:
    spec = TINY
    assert further_task(of(*items), spec) == times * count(of(LORA), spec).deployed
