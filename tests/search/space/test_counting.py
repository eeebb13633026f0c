"""Points of a space are counted and hashed as their recipes are, errors included."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference import reference
from support.tiny import tiny_config, tiny_model
from transformers import BertConfig, T5Config

from autopeft import attach
from autopeft.backbones import spec_of
from autopeft.counting import Measure
from autopeft.errors import RecipeError, UsageError
from autopeft.graph import build_graph
from autopeft.recipe.yaml_text import dump_yaml
from autopeft.search.space import counting
from autopeft.search.space.counting import PointCounter
from autopeft.search.space.space import BoundSpace, Space, space_names
from autopeft.spec import BackboneSpec

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
TINY = spec_of(tiny_config("bert"))
DEEP = spec_of(BertConfig(**SMALL, num_hidden_layers=24))
T5 = spec_of(
    T5Config(vocab_size=50, d_model=32, num_layers=4, num_decoder_layers=2, d_ff=64, d_kv=8, num_heads=4)
)
GPT2, VIT = spec_of(tiny_config("gpt2")), spec_of(tiny_config("vit"))
SPECS = {"bert": TINY, "deep": DEEP, "t5": T5, "gpt2": GPT2, "vit": VIT}


def outcome(call: Any) -> Any:
    try:
        return call()
    except UsageError as error:
        return type(error), str(error)


def by_recipe(bound: BoundSpace, values: dict[str, Any]) -> Measure:
    recipe = bound.materialize(values)
    graph = build_graph(recipe, bound.spec)
    total = graph.parameter_count()
    measure = Measure(total.deployed, total.trained, graph.hash())
    assert reference(recipe, bound.spec) == measure
    return measure


def assert_equal(bound: BoundSpace, points: list[dict[str, Any]]) -> int:
    """Compare every point twice, cold and warm; returns how many were no recipe."""
    counter, bad = PointCounter(bound), 0
    expected = [outcome(lambda p=p: by_recipe(bound, p)) for p in points]
    for _ in range(2):
        bad = 0
        for point, wanted in zip(points, expected, strict=True):
            assert outcome(lambda p=point: counter.measure(p)) == wanted
            counts = outcome(lambda p=point: counter.count(p, head=3))
            if isinstance(wanted, Measure):
                assert (counts.deployed, counts.trained, counts.head) == (wanted[0], wanted[1], 3)
                assert counts.backbone == bound.spec.parameters
                assert counter.measure(point).hash == wanted.hash
            else:
                bad += 1
                assert counts == wanted
    return bad


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", space_names())
def test_points_of_the_built_in_spaces(name: str, spec: str) -> None:
    bound, rng = Space.named(name).bind(SPECS[spec]), random.Random(0)
    assert assert_equal(bound, [bound.sample(rng) for _ in range(150)]) < 100


MADE = """
name: made
vars:
  size: {choice: [0, 1, 2]}
layers:
  - at: {from: {int: [0, last]}, switch: {choice: [true, false]}}
    each_layer:
      - optional: {lora: {rank: $size, sites: {choice: [[q], [q, v], [cross_q, up]]}}, as: low}
      - choice: [{sum: [ia3, {serial_adapter: {bottleneck: $size, variant: pfeiffer}}], as: both}, null]
  - at: {choice: [all, "first 2", [1], "0-1"]}
    stack: {choice: [all, encoder, decoder]}
    attach:
      - gate: [{lora: {rank: {int: [1, 6]}}}, {optional: {prefix_tuning: {length: $size}}}]
      - parallel_adapter: {bottleneck: hidden/8, scale: {float: [0.5, 4.0]}}
  - at: all
    attach:
      - choice: [{dora: {sites: [q]}}, {dora: {sites: [v]}}, {chain: [{dora: {sites: [v]}}, lora]}, null]
      - optional: {dora: {sites: [q, k], rank: $size}}
model: [{optional: bitfit}, {prompt_tuning: {length: $size}}]
training:
  learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
  groups: {low: {learning_rate: {choice: [1.0e-3, 1.0e-2]}}, ia3: {weight_decay: 0.1}}
"""


@pytest.mark.parametrize("spec", SPECS)
def test_points_of_a_space_with_everything(spec: str) -> None:
    bound, rng = Space.from_yaml(MADE).bind(SPECS[spec]), random.Random(1)
    points = [bound.sample(rng) for _ in range(20 if spec == "deep" else 120)]
    bad = assert_equal(bound, points)
    assert bad < len(points)
    if spec == "bert":
        assert bad > 10, "directions that clash should be among the points"


SIZE = st.sampled_from([{"choice": [0, 1, 3]}, {"int": [0, 2]}, {"int": [1, 5]}, 2])
LEAF = st.one_of(
    st.builds(
        lambda m, r, s: {m: {"rank": r, "sites": s}},
        st.sampled_from(["lora", "lora", "dora"]),
        SIZE,
        st.sampled_from([["q"], {"choice": [["q"], ["k", "v", "up"], ["qkv", "v"]]}]),
    ),
    st.builds(
        lambda b, v: {"serial_adapter": {"bottleneck": b, "variant": v}},
        SIZE,
        st.sampled_from(["pfeiffer", "houlsby", {"choice": ["pfeiffer", "houlsby"]}]),
    ),
    st.builds(
        lambda n, m: {"prefix_tuning": {"length": n, "reparameterization": m}},
        SIZE,
        st.sampled_from([4, {"choice": [2, 5]}]),
    ),
    st.just("ia3"),
)
NAMED = st.builds(
    lambda tree, name: {**({tree: {}} if isinstance(tree, str) else tree), "as": name},
    LEAF,
    st.sampled_from(["mine", "other", "lora_2", "mine_1"]),
)
TREE = st.recursive(
    st.one_of(LEAF, LEAF, NAMED),
    lambda inner: st.builds(
        lambda kind, children: {kind: children},
        st.sampled_from(["sum", "gate", "chain"]),
        st.lists(st.one_of(inner, inner.map(lambda i: {"optional": i})), min_size=1, max_size=2),
    ),
    max_leaves=3,
)
OFFER = st.one_of(
    TREE,
    TREE.map(lambda i: {"optional": i}),
    st.lists(TREE, min_size=1, max_size=2, unique_by=str).map(lambda items: {"choice": [*items, None]}),
)
AT = st.sampled_from(
    [
        "all",
        "first 2",
        {"switch": {"choice": [True, False]}},
        {"from": {"int": [0, "last"]}, "switch": {"choice": [False, True]}},
        {"of": {"choice": ["all", [0, 1]]}, "from": {"choice": [0, "last"]}},
        {"choice": ["all", [1], "last 1"]},
    ]
)
BLOCK = st.builds(
    lambda at, stack, key, items: {"at": at, "stack": stack, key: items},
    AT,
    st.sampled_from(["all", "all", "encoder", "decoder", {"choice": ["encoder", "decoder"]}]),
    st.sampled_from(["attach", "each_layer"]),
    st.lists(OFFER, min_size=1, max_size=2),
)
MODEL = st.lists(
    st.sampled_from([{"optional": "bitfit"}, {"prompt_tuning": {"length": {"choice": [0, 1, 3]}}}, "bitfit"]),
    max_size=2,
)
TRAINING = st.sampled_from(
    [
        {},
        {"learning_rate": {"float": [1e-4, 1e-2]}},
        {"groups": {"head": {"learning_rate": {"choice": [1e-3, 1e-2]}}}},
        {"policies": [{"lora_plus": {"ratio": {"choice": [2.0, 16.0]}}}]},
    ]
)


@settings(max_examples=200, deadline=None)
@given(
    tree=st.fixed_dictionaries(
        {"layers": st.lists(BLOCK, min_size=1, max_size=2), "model": MODEL, "training": TRAINING}
    ),
    spec=st.sampled_from([TINY, T5, GPT2]),
    seed=st.integers(0, 5),
)
def test_points_of_any_space(tree: dict[str, Any], spec: BackboneSpec, seed: int) -> None:
    try:
        bound = Space.from_yaml(dump_yaml({"name": "s", **tree})).bind(spec)
    except UsageError:
        return
    rng = random.Random(seed)
    assert_equal(bound, [bound.sample(rng) for _ in range(8)])


def test_gates_of_maps_of_unequal_widths() -> None:
    """In front of what reads a map's output a gate is as wide as that."""
    text = """
layers:
  - attach:
      - gate:
          - linear_adapter:
              variant: {choice: [series, input, parallel]}
              sites: {choice: [[up], [down], [q]]}
              bottleneck: 4
"""
    bound = Space.from_yaml(text).bind(TINY)
    points = [
        dict(zip((p.name for p in bound.parameters), values, strict=True))
        for values in product(*(p.choices for p in bound.parameters))
    ]
    assert assert_equal(bound, points) == 0


def test_training_that_does_not_fit_the_backbone_is_refused() -> None:
    text = "layers: [{attach: [lora]}]\ntraining: {learning_rate: {choice: [hidden/400, 1.0e-3]}}"
    bound = Space.from_yaml(text).bind(spec_of(BertConfig(hidden_size=4608, num_attention_heads=4)))
    assert assert_equal(bound, [{"learning_rate": "hidden/400"}, {"learning_rate": 0.001}]) == 1


def test_a_name_that_another_entry_may_be_given() -> None:
    text = "layers: [{attach: [{ia3: {}, as: lora_2}]}, {each_layer: [{optional: lora}]}]"
    bound = Space.from_yaml(text).bind(TINY)
    names = [p.name for p in bound.parameters]
    points = [dict(zip(names, on, strict=True)) for on in product([True, False], repeat=3)]
    points.sort(key=lambda point: sum(point.values()))
    assert assert_equal(bound, points) == 4, "the second lora would be called lora_2"


def test_points_that_mean_the_same_have_the_same_hash() -> None:
    body = """
layers:
  - at: {choice: [all, "0-2", "first 3", [1, 2]]}
    attach: [{choice: [{sum: [ia3, lora]}, {sum: [lora, ia3]}, {lora: {rank: 8}}]}, {optional: bitfit}]
training: {learning_rate: {float: [1.0e-4, 1.0e-2]}}
"""
    bound = Space.from_yaml(body.replace(", {optional: bitfit}", "")).bind(TINY)
    counter, rng = PointCounter(bound), random.Random(0)
    hashes: dict[Any, set[str]] = {}
    for _ in range(200):
        point = bound.sample(rng)
        layers = point["at"] == "[1, 2]" or point["at"] == "1+2"
        hashes.setdefault((layers, point["method"] == "lora"), set()).add(counter.measure(point).hash)
    assert len(hashes) == 4
    assert all(len(found) == 1 for found in hashes.values())
    assert len(set.union(*hashes.values())) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lora.rank": True}, "is not one of"),
        ({"lora.rank": 3}, "is not one of"),
        ({"lora.rank": [1]}, "is not one of"),
        ({"on": 1}, "is not one of"),
        ({"first": 9}, "not a whole number"),
        ({"first": 1.5}, "not a whole number"),
        ({"first": False}, "not a whole number"),
        ({"learning_rate": 0.5}, "not a number"),
        ({"learning_rate": float("nan")}, "not a number"),
        ({"learning_rate": "0.001"}, "not a number"),
        ({"lora.rnk": 1}, "has no parameter 'lora.rnk'"),
    ],
)
def test_values_that_are_not_allowed(change: dict[str, Any], says: str) -> None:
    body = """
vars: {first: {int: [0, 2]}}
layers:
  - at: {from: $first}
    attach: [{lora: {rank: {choice: [1, 2]}}}, {optional: ia3}]
training: {learning_rate: {float: [1.0e-4, 1.0e-2]}}
"""
    bound = Space.from_yaml(body).bind(TINY)
    counter = PointCounter(bound)
    good = {"first": 1, "lora.rank": 1, "ia3.on": True, "learning_rate": 1e-3}
    assert counter.measure(good) == by_recipe(bound, good)
    bad = {**good, **{"ia3.on" if k == "on" else k: v for k, v in change.items()}}
    for call in (counter.measure, counter.count, bound.check, bound.materialize):
        with pytest.raises(RecipeError, match=says):
            call(bad)
    with pytest.raises(RecipeError, match="has no value"):
        counter.measure({k: v for k, v in good.items() if k != "first"})
    assert counter.measure({**good, "lora.rank": 1.0}) == counter.measure(good)


def test_ordinary_points_need_no_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    bound, rng = Space.named("default").bind(TINY), random.Random(0)
    points = [bound.sample(rng) for _ in range(50)]
    wanted = [outcome(lambda p=p: by_recipe(bound, p)) for p in points]

    def refuse(values: Any) -> Any:
        raise AssertionError("a recipe was built")

    monkeypatch.setattr(bound, "materialize", refuse)
    counter = PointCounter(bound)
    for point, measure in zip(points, wanted, strict=True):
        if isinstance(measure, Measure):
            assert counter.measure(point) == measure


def test_what_is_forgotten_is_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_PLACES", 20)
    monkeypatch.setattr(counting, "_SHAPES", 5)
    bound, rng = Space.named("default").bind(DEEP), random.Random(0)
    counter = PointCounter(bound)
    for _ in range(200):
        point = bound.sample(rng)
        assert outcome(lambda p=point: counter.measure(p)) == outcome(lambda p=point: by_recipe(bound, p))


@pytest.mark.parametrize("name", space_names())
def test_what_is_remembered_of_other_points_changes_no_item(name: str) -> None:
    used, rng = Space.named(name).bind(TINY), random.Random(3)
    points = [used.sample(rng) for _ in range(60)]
    for point in points:
        for unit in used.units:
            used.item(unit, point)
    for point in points:
        fresh = Space.named(name).bind(replace(TINY))
        for unit, other in zip(used.units, fresh.units, strict=True):
            assert used.item(unit, point) == fresh.item(other, point)


_CROSS = {"lora": {"sites": ["q", "cross_q"]}}


@pytest.mark.parametrize("item", [_CROSS, {"choice": [_CROSS, "ia3"]}], ids=["alone", "in a role"])
def test_what_an_item_is_depends_on_the_stack(item: Any) -> None:
    tree = {"name": "s", "layers": [{"stack": {"choice": ["encoder", "decoder"]}, "attach": [item]}]}
    bound = Space.from_yaml(dump_yaml(tree)).bind(T5)
    names = [p.name for p in bound.parameters]
    for values in product(*(p.choices for p in bound.parameters)):
        point = dict(zip(names, values, strict=True))
        fresh = Space.from_yaml(dump_yaml(tree)).bind(T5)
        assert bound.item(bound.units[0], point) == fresh.item(fresh.units[0], point)


def test_costs_of_units_add_up_to_the_count() -> None:
    for bound in (Space.named("default").bind(T5), Space.named("autopeft").bind(DEEP)):
        counter, rng = bound.kept(PointCounter), random.Random(2)
        assert bound.kept(PointCounter) is counter
        for _ in range(50):
            point = bound.sample(rng)
            costs = counter.costs(bound.units, point)
            for unit, cost in zip(bound.units, costs, strict=True):
                assert counter.costs([unit], point) == [cost]
                absent = bound.item(unit, point) is None or bound.where(unit, point) == ()
                assert (cost is None) == absent
            if any(cost is not None for cost in costs):
                assert sum(cost or 0 for cost in costs) == counter.count(point).deployed


@pytest.mark.parametrize("name", ["default", "autopeft", "made"])
def test_counts_are_what_attached_modules_hold(name: str) -> None:
    space = Space.from_yaml(MADE) if name == "made" else Space.named(name)
    bound, rng, checked = space.bind(TINY), random.Random(5), 0
    counter, model = PointCounter(bound), tiny_model("bert")
    while checked < 12:
        point = bound.sample(rng)
        measure = outcome(lambda p=point: counter.measure(p))
        if not isinstance(measure, Measure):
            continue
        hybrid = attach(model, bound.materialize(point))
        modules = [module for key, module in model.autopeft.named_children()]
        held = sum(p.numel() for module in modules for p in module.parameters())
        assert held == measure.trained
        for module in modules:
            for end in ("finish", "deploy"):
                if hasattr(module, end):
                    getattr(module, end)()
        held = sum(p.numel() for module in modules for p in module.parameters())
        by_data = any(entry.method.traits.data_dependent for entry in hybrid.graph.entries.values())
        assert held <= measure.deployed if by_data else held == measure.deployed
        hybrid.detach()
        checked += 1
