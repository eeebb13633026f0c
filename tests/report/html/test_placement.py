"""Where parameters lie: the sum is what counting says, whatever the recipe."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.errors import AutoPEFTError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.report.html.heat import heat_of
from autopeft.report.html.placement import SHARED, place_parameters

FAMILIES = ("bert", "gpt2", "llama", "t5", "vit")


def graph_of(family: str, **recipe: Any) -> CompositionGraph:
    return build_graph(Recipe.from_dict(recipe), spec_of(tiny_config(family)))


def single(family: str, method: str) -> CompositionGraph | None:
    """A recipe of one entry, or `None` where the backbone does not take it."""
    level = get_method(method).traits.level
    if level == "training":
        return None
    where = {"layers": [{"attach": [method]}]} if level == "layers" else {"model": [method]}
    try:
        return graph_of(family, **where)
    except AutoPEFTError:
        return None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_is_placed_to_the_last_parameter(family: str) -> None:
    placed = 0
    for method in method_names():
        graph = single(family, method)
        if graph is None:
            continue
        found = place_parameters(graph)
        assert found.total == count(graph, graph.spec).deployed, method
        placed += found.total
    assert placed > 0


def test_lora_lies_where_it_sits() -> None:
    graph = graph_of(
        "bert",
        layers=[
            {"at": "all", "attach": [{"lora": {"sites": ["q"], "rank": 2}}]},
            {"at": [1], "attach": [{"lora": {"sites": ["up"], "rank": 1}}]},
        ],
    )
    found = place_parameters(graph)
    assert found.rows == ("q", "up")
    assert found.columns == (("encoder", 0), ("encoder", 1), ("encoder", 2))
    one = 2 * (32 + 32)
    assert found.values == {
        ("q", ("encoder", 0)): one,
        ("q", ("encoder", 1)): one,
        ("q", ("encoder", 2)): one,
        ("up", ("encoder", 1)): 32 + 64,
    }


def test_a_gates_own_parameters_are_placed_too() -> None:
    gated = graph_of("bert", layers=[{"attach": [{"gate": [{"lora": {"sites": ["q"], "rank": 1}}]}]}])
    alone = graph_of("bert", layers=[{"attach": [{"lora": {"sites": ["q"], "rank": 1}}]}])
    before, after = place_parameters(alone), place_parameters(gated)
    assert {p: after.values[p] - before.values[p] for p in before.values} == dict.fromkeys(
        before.values, 32 + 1
    )


def test_biases_are_placed_by_their_tensors_and_a_mask_is_not() -> None:
    bitfit = place_parameters(graph_of("bert", model=["bitfit"]))
    assert bitfit.values["up", ("encoder", 0)] == 64
    assert bitfit.values["ffn_norm", ("encoder", 2)] == 32
    mask = place_parameters(graph_of("bert", model=[{"fish_mask": {"keep": "1%"}}]))
    assert set(mask.values) == {(SHARED, (None, None))}


def test_a_method_with_shared_parameters_is_not_spread_out() -> None:
    """Counted one site at a time, a shared part would be counted once for each."""
    graph = graph_of("bert", layers=[{"attach": [{"lora": {"sites": ["q", "v"], "rank": 2}}]}])
    entry = graph.entries["lora"]
    shared = 5

    class Sharing:
        def __init__(self, method: Any) -> None:
            self.method = method

        def parameter_count(self, sites: Any, spec: Any) -> Any:
            found = self.method.parameter_count(sites, spec)
            return type(found)(found.deployed + shared, found.trained + shared)

    total = entry.method.parameter_count(entry.sites, graph.spec).deployed + shared
    object.__setattr__(entry, "count", type(entry.count)(total, total))
    object.__setattr__(entry, "method", Sharing(entry.method))
    found = place_parameters(graph)
    assert found.total == total
    assert set(found.values) == {(SHARED, (None, None))}


def test_the_heat_map_adds_up() -> None:
    graph = graph_of(
        "t5",
        layers=[{"at": [0, 1], "attach": [{"lora": {"rank": 2}}, {"parallel_adapter": {"bottleneck": 4}}]}],
        model=[{"prompt_tuning": {"length": 2}}],
    )
    heat = heat_of(graph)
    assert heat is not None
    total = count(graph, graph.spec).deployed
    assert heat.total == f"{total:,}"
    assert sum(int(all_.text.replace(",", "")) for _, _, all_ in heat.rows) == total
    assert [name for name, _ in heat.groups] == ["encoder layer", "decoder layer", ""]
    assert sum(span for _, span in heat.groups) == len(heat.columns)
    for _, cells, _ in heat.rows:
        assert len(cells) == len(heat.columns)
        # Colour never stands alone.
        assert all(cell.text for cell in cells if cell.strength)


def test_without_parameters_there_is_no_heat_map() -> None:
    assert heat_of(graph_of("bert", name="head")) is None
