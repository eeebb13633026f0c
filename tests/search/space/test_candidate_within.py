"""Repair into limits beside the parameter budget."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from support.tiny import tiny_model

from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.graph import SERVED, CompositionGraph, build_graph, first_layer, on_sharded, unservable
from autopeft.resources import Limits, Resources
from autopeft.search.space.candidate import ResourceBudget, candidate, check_within, share_within
from autopeft.search.space.repair import Infeasible
from autopeft.search.space.space import Space

SPEC = spec_of(tiny_model("bert").config)
SPACE = """
autopeft: 2
name: small
vars:
  first: {int: [0, last]}
layers:
  - at: {from: $first}
    attach:
      - lora: {rank: {choice: [0, 1, 2, 4, 8]}}
      - parallel_adapter: {bottleneck: {choice: [0, 2, 4, 8]}}
      - optional: ia3
"""
BOUND = Space.from_yaml(SPACE).bind(SPEC)
BUDGET = Budget.parse("50%")
WAY = "merged"


def predict(graph: CompositionGraph) -> Resources:
    """A step takes a second for each layer that is differentiated, and the file four bytes a parameter."""
    deployed = graph.parameter_count().deployed
    layers = SPEC.stacks[0].layers - first_layer(graph)
    return Resources(
        step_time=float(layers),
        file=4 * deployed,
        memory=100.0 * layers + deployed,
        unservable=unservable(graph, WAY, head=False),
    )


def with_limits(
    budget: Budget, within: Limits, predict: Callable[[CompositionGraph], Resources]
) -> ResourceBudget:
    return ResourceBudget(budget.upper, budget.lower, within, predict)


def within(**limits: float | str) -> ResourceBudget:
    return with_limits(BUDGET, Limits(**limits), predict)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "limits",
    [
        {"step_time": 1.0},
        {"file": 4000},
        {"memory": 400},
        {"serve": "merged"},
        {"step_time": 2.0, "file": 3000, "serve": "merged"},
    ],
)
def test_every_candidate_is_inside(limits: dict[str, float | str]) -> None:
    budget, rng = within(**limits), random.Random(0)
    for _ in range(25):
        values = BOUND.sample(rng)
        found = candidate(BOUND, values, budget)
        graph = build_graph(found.recipe, SPEC)
        assert budget.within.excess(predict(graph)) == 0
        assert BUDGET.admits(found.counts.deployed, SPEC)
        assert candidate(BOUND, values, budget).hash == found.hash


def test_a_range_keeps_its_lower_end_where_the_file_is_with_limits() -> None:
    least, most = 700, 2_000
    budget = with_limits(Budget.parse(f"{least}..{most}"), Limits(file=4 * 1_100), predict)
    rng = random.Random(0)
    for _ in range(25):
        deployed = candidate(BOUND, BOUND.sample(rng), budget).counts.deployed
        assert least <= deployed <= 1_100
    none = with_limits(Budget.parse(f"{least}..{most}"), Limits(file=4 * (least - 1)), predict)
    with pytest.raises(Infeasible, match=r"'small'.* limits"):
        check_within(BOUND, none)


def test_what_is_inside_already_is_left_as_it_is() -> None:
    budget, rng, same = within(step_time=2.0), random.Random(1), 0
    for _ in range(25):
        values = BOUND.sample(rng)
        plain = candidate(BOUND, values, BUDGET)
        if budget.within.excess(predict(build_graph(plain.recipe, SPEC))) == 0:
            same += 1
            assert candidate(BOUND, values, budget).hash == plain.hash
    assert same > 3


def test_what_does_not_merge_leaves_and_what_merges_stays() -> None:
    values = {**BOUND.middle(), "first": 0}
    names = {p.name: p for p in BOUND.parameters}
    for name, parameter in names.items():
        if parameter.kind == "categorical":
            values[name] = parameter.choices[-1]
    methods = {e.method for e in candidate(BOUND, values, within(serve="merged")).recipe.entries()}
    assert methods
    assert "parallel_adapter" not in methods


@pytest.mark.parametrize(
    "way", [pytest.param(w, marks=pytest.mark.slow) if w == "peft" else w for w in SERVED]
)
def test_candidates_can_be_served(way: str) -> None:
    """From any point of a mixed space, on a decoder; whether one can be is known from the graph."""
    spec = spec_of(tiny_model("llama").config)
    bound = Space.named("default").bind(spec)

    def predicted(graph: CompositionGraph) -> Resources:
        return Resources(unservable=unservable(graph, way, head=False))

    budget = with_limits(BUDGET, Limits(serve=way), predicted)
    check_within(bound, budget)
    rng, without = random.Random(0), 0
    for _ in range(8):
        values = bound.sample(rng)
        graph = build_graph(candidate(bound, values, budget).recipe, spec)
        assert unservable(graph, way, head=False) is None
        without += (
            predicted(build_graph(candidate(bound, values, BUDGET).recipe, spec)).unservable is not None
        )
    assert without > 2, "some needed it"


def test_candidates_can_be_trained_by_several_processes() -> None:
    """From any point of a space that has a method which is calibrated."""
    bound = Space.named("default").bind(SPEC)
    budget = with_limits(BUDGET, Limits(processes=2), lambda graph: Resources(on_sharded=on_sharded(graph)))
    check_within(bound, budget)
    rng, other = random.Random(0), 0
    for _ in range(24):
        values = bound.sample(rng)
        found = candidate(bound, values, budget)
        assert on_sharded(build_graph(found.recipe, SPEC)) is None
        other += on_sharded(build_graph(candidate(bound, values, BUDGET).recipe, SPEC)) is not None
    assert other > 1, "some needed it"


@pytest.mark.parametrize("first", [True, False])
def test_a_training_with_dropout_takes_more_and_leaves_where_that_is_too_much(first: bool) -> None:
    """Whichever was asked about first."""
    body = (
        "layers: [{attach: [{lora: {rank: {choice: [1, 2]}}}]}]\ntraining: {dropout: {choice: [true, false]}}"
    )
    space = Space.from_yaml(f"autopeft: 2\nname: s\n{body}", "s").bind(spec_of(tiny_model("bert").config))
    limited = with_limits(
        Budget.parse("50%"),
        Limits(step_time=1.0),
        lambda graph: Resources(step_time=2.0 if graph.recipe.training.dropout else 0.5),
    )
    for asked in (first, not first):
        found = candidate(space, {**space.middle(), "dropout": asked}, limited)
        assert found.recipe.training.dropout is False


def test_where_nothing_can_be_served_it_is_said() -> None:
    budget = with_limits(
        BUDGET,
        Limits(serve="vllm"),
        lambda graph: Resources(unservable=unservable(graph, "vllm", head=False)),
    )
    with pytest.raises(Infeasible, match=r"to be served as vllm\).*vLLM has no LoRA for 'bert'"):
        check_within(BOUND, budget)


def test_a_limit_that_nothing_meets_is_refused_with_what_is_near() -> None:
    check_within(BOUND, within(step_time=1.0))
    with pytest.raises(Infeasible, match=r"time of a training step at most 500ms.*1s \(at most 500ms\)"):
        check_within(BOUND, within(step_time=0.5))


def test_the_share_that_needs_no_repair() -> None:
    free = share_within(BOUND, BUDGET, n=60, seed=0)
    assert 0 < share_within(BOUND, within(step_time=1.0), n=60, seed=0) < free
    assert share_within(BOUND, with_limits(BUDGET, Limits(), predict), n=60, seed=0) == free
