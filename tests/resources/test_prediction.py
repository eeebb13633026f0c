from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support.searching import lora
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.errors import UsageError
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.resources import Limits, Predictor, StepCost

SPEC = spec_of(BertConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64))

WIDE = spec_of(
    BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
)


def test_a_step_costs_what_is_predicted_beside_the_reference() -> None:
    """Here a step takes a millisecond for each layer that has something."""

    def predicted(graph: Any) -> float:
        return 1e-3 * len({site.layer for entry in graph.entries.values() for site in entry.sites})

    calibration: Any = SimpleNamespace(predict_step=predicted)
    cost = StepCost(calibration, SPEC, lora(4), "LoRA rank 4")
    assert (cost.name, cost.seconds) == ("LoRA rank 4", pytest.approx(4e-3))
    assert cost(lora(8)) == pytest.approx(1.0)
    upper = Recipe.from_dict({"layers": [{"at": "last 1", "attach": [{"lora": {"rank": 4}}]}]})
    assert cost(upper) == pytest.approx(0.25)
    with pytest.raises(UsageError):
        cost(Recipe.from_dict({"layers": [{"at": [9], "attach": ["lora"]}]}))


@pytest.mark.parametrize("order", [1, -1])
def test_a_file_is_predicted_alike_whatever_was_asked_about_before(order: int) -> None:
    """What Laplace-LoRA keeps beside its parameters is as wide as its sites."""
    graphs = [
        build_graph(
            Recipe.from_dict(
                {"layers": [{"at": at, "attach": [{"laplace_lora": {"rank": 2, "sites": sites}}]}]}
            ),
            WIDE,
        )
        for sites, at in ((["q"], [0]), (["up", "down"], "all"), (["q", "up"], [1, 2]))
    ]
    sizes = [Predictor(Limits(), {})(graph, everything=True).file for graph in graphs]
    predict = Predictor(Limits(file=10**9), {})  # far from it nothing is counted exactly
    found = {i: predict(graphs[i]).file for i in (0, 1, 2)[::order]}
    for i, size in enumerate(sizes):
        assert found[i] == pytest.approx(size, rel=0.03)


def test_no_file_that_is_too_large_passes_for_one_inside() -> None:
    """Laplace-LoRA keeps more beside its parameters in a layer than adapters do, and it was seen in one."""
    graphs = [
        build_graph(
            Recipe.from_dict({"layers": [{"at": at, "attach": [{"laplace_lora": {"rank": 2}}]}]}), SPEC
        )
        for at in ([3], [2, 3], "all")
    ]
    sizes = [Predictor(Limits(), {})(graph, everything=True).file or 0.0 for graph in graphs]
    for limit in range(int(sizes[0]), int(sizes[-1]) + 2000, 500):
        limits = Limits(file=limit)
        predict = Predictor(limits, {})
        inside = [limits.excess(predict(graph)) == 0 for graph in graphs]
        assert not any(ok and size > limit for ok, size in zip(inside, sizes, strict=True)), limit
