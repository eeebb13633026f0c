"""What of a graph costs memory while it trains, in closed form."""

from __future__ import annotations

from typing import Any

import pytest
from support.entries import recipe_of
from support.training import tiny_bert

from autopeft.backbones import spec_of_model
from autopeft.graph import CompositionGraph, build_graph
from autopeft.recipe import Recipe
from autopeft.resources.features import Shape, features_of, training_state
from autopeft.spec import BackboneSpec

HEAD, BYTES = 34, 16  # of a parameter that trains: itself, its gradient and two moments


@pytest.fixture(scope="module")
def spec() -> BackboneSpec:
    return spec_of_model(tiny_bert())[0]


def state(spec: BackboneSpec, *items: Any) -> int:
    """Bytes beyond those of the head."""
    recipe = Recipe.from_dict({"name": "x", "model": list(items)})
    return training_state(build_graph(recipe, spec), HEAD) - BYTES * HEAD


def test_what_trains_is_there_with_its_gradient_and_two_moments(spec: BackboneSpec) -> None:
    biases = sum(t.size for t in spec.tensors if t.role in ("bias", "norm_bias"))
    assert state(spec, "bitfit") == BYTES * biases
    assert state(spec, {"pafi": {"keep": 40}}) == BYTES * 40


@pytest.mark.parametrize("keep", [60, 200])
def test_a_search_is_there_in_the_place_of_what_it_finds(spec: BackboneSpec, keep: int) -> None:
    entries, biases = spec.parameters, sum(t.size for t in spec.tensors if t.role.endswith("bias"))
    assert state(spec, {"lt_sft": {"keep": keep}}) == BYTES * entries
    assert state(spec, {"u_diff_pruning": {"keep": keep}}) == BYTES * 2 * entries
    assert state(spec, {"s_diff_pruning": {"keep": keep}}) == BYTES * (2 * entries + len(spec.tensors))
    assert state(spec, {"u_bitfit": {"keep": keep}}) == (BYTES + 4) * biases


def test_a_calibration_is_over_before_what_it_finds_trains(spec: BackboneSpec) -> None:
    entries = spec.parameters
    assert state(spec, {"fish_mask": {"keep": 60}}) == 4 * 2 * entries
    assert state(spec, {"sam": {"keep": 60, "score": "g2_over_h"}}) == 4 * 5 * entries
    most = entries - 1
    assert state(spec, {"fish_mask": {"keep": most}}) == BYTES * most, "then training is the larger part"


def test_entries_search_in_turn_beside_what_the_others_train(spec: BackboneSpec) -> None:
    searches = [{"lt_sft": {"keep": 60}}, {"u_diff_pruning": {"keep": 80}}]
    together = state(spec, *searches, {"pafi": {"keep": 40}})
    assert together == state(spec, searches[1]) + BYTES * (60 + 40)


def test_a_frozen_entry_has_its_values_and_no_state(spec: BackboneSpec) -> None:
    item = {"lora": {"rank": 2}}
    inputs = {"a": "x"}

    def of(**more: Any) -> CompositionGraph:
        tree = {"inputs": inputs, "layers": [{"attach": [{**item, "from": "a", **more}, "ia3"]}]}
        return build_graph(Recipe.from_dict(tree), spec)

    trains, stays = of(), of(frozen=True)
    size = trains.entries["lora"].count.deployed
    assert trains.parameter_count().deployed == stays.parameter_count().deployed
    assert training_state(trains, 0) - training_state(stays, 0) == (BYTES - 4) * size
    batch = Shape(8, 16, 8)
    steps = [features_of(graph, batch) for graph in (trains, stays)]
    assert steps[0].pop("trained") - steps[1].pop("trained") == size
    assert steps[0] == steps[1]


def test_each_source_that_is_averaged_is_there_beside_the_average(spec: BackboneSpec) -> None:
    for names in (["a"], ["a", "b", "c"]):
        item = {"lorahub": {"rank": 2}, "from": names}
        body = {"name": "x", "inputs": {name: name for name in names}, "layers": [{"attach": [item]}]}
        graph = build_graph(Recipe.from_dict(body), spec)
        size = graph.parameter_count().deployed
        assert training_state(graph, HEAD) - BYTES * HEAD == 4 * size * (1 + len(names))


def test_priming_trains_all_nodes(spec: BackboneSpec) -> None:
    graph = build_graph(recipe_of("pafi", {"far": {"retention": 0.1}}, keep=1), spec)
    maps = [s for s in spec.sites if s.name in ("up", "down")]
    nodes = sum(s.out_features * (s.in_features + 1) for s in maps)
    assert training_state(graph, 0) == BYTES * (nodes + 1)
