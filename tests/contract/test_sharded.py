"""Every method that may be trained over two processes comes to what one process comes to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.sharding import spec_of_classifier, trained

from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph, on_sharded
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.training.processes import Processes

pytestmark = pytest.mark.slow

PLAN = {"steps": 3, "head_start": "random"}


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2) as processes:
        yield processes


def alone(name: str) -> dict[str, Any] | None:
    """A recipe with the method by itself, where it can be trained over several processes."""
    for place in ({"layers": [{"attach": [name]}]}, {"model": [name]}):
        made = {"name": "r", "training": {"learning_rate": 1e-2}, **place}
        try:
            graph = build_graph(Recipe.from_dict(made), spec_of_classifier())
        except AutoPEFTError:
            continue
        return made if on_sharded(graph) is None else None
    return None


@pytest.mark.parametrize("name", method_names())
def test_it_comes_to_the_same(two: Processes, name: str) -> None:
    recipe = alone(name)
    if recipe is None:
        pytest.skip("it does not stand alone on this backbone, or is refused")
    try:
        one = trained(None, recipe, PLAN)
    except AutoPEFTError as refusal:  # of this backbone: biases that are zero, too few positions
        with pytest.raises(type(refusal), match=re.escape(str(refusal))):
            two.run(trained, None, recipe, PLAN)
        return
    both = two.run(trained, None, recipe, PLAN)  # which has compared what the processes came to
    if get_method(name).traits.stochastic:
        return
    assert both.losses == pytest.approx(one.losses, abs=1e-5)
    for key, expected in one.parameters.items():
        torch.testing.assert_close(both.parameters[key], expected, atol=1e-4, rtol=0, msg=key)
