"""From recipes to points of a space."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.projecting import (
    EACH,
    HEAD,
    LLAMA,
    LORAS,
    SHARED,
    SIX,
    SPECS,
    T5,
    TINY,
    assert_inverse,
    bound_to,
    missing,
    points,
    recipe,
    space,
    trial_hash,
)

from autopeft.errors import RecipeError
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.search.space.projection import values_of
from autopeft.search.space.space import Space, space_names
from autopeft.spec import LogitsSpec


@pytest.mark.parametrize("name", space_names())
@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_inverse_of_materialize_in_built_in_spaces(name: str, spec: str, data: st.DataObject) -> None:
    bound = bound_to(name, SPECS[spec])
    assert_inverse(bound, data.draw(points(bound)))


@pytest.mark.parametrize("text", [EACH, SHARED, LORAS], ids=["each", "shared", "loras"])
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_inverse_of_materialize_in_other_spaces(text: str, data: st.DataObject) -> None:
    bound = space(text)
    assert_inverse(bound, data.draw(points(bound)))


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_inverse_of_materialize_where_the_head_has_hidden_layers(data: st.DataObject) -> None:
    bound = Space.named("default").bind(replace(TINY, logits=LogitsSpec(32, 2, deep=True)))
    values = data.draw(points(bound))
    assert_inverse(bound, values)


def test_a_rate_of_hidden_layers_says_nothing_where_the_head_has_none() -> None:
    deep = replace(TINY, logits=LogitsSpec(32, 2, deep=True))
    here, there = (Space.named("lora").bind(spec) for spec in (TINY, deep))
    wanted = there.materialize(there.middle())
    assert "head.hidden" in wanted.training.groups
    assert values_of(wanted, here).exact
    between = wanted.to_dict()
    between["layers"][0]["attach"][0]["lora"]["rank"] = 17
    missing = values_of(Recipe.from_dict(between), here).missing
    assert missing
    assert not any("head" in what for what in missing)
    missing = values_of(here.materialize(here.middle()), there).missing
    assert missing == ["learning rate of head.hidden 0.01 became 0.0003"]


def test_aliases_decide_on_learning_rates() -> None:
    bound = space(LORAS)
    values = {"lora.rank": 8, "big.rank": 16, "learning_rate": 2e-3, "big.learning_rate": 5e-3}
    assert values_of(bound.materialize(values), bound).values == values


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_point_whatever_came_before() -> None:
    wanted = Recipe.named("unipelt")
    fresh = values_of(wanted, bound_to("default", TINY))
    used = bound_to("default", TINY)
    values_of(Recipe.named("mam"), used)
    assert values_of(wanted, used) == fresh


def test_mam_in_the_default_space() -> None:
    match = values_of(Recipe.named("mam"), bound_to("default"))
    assert not match.exact
    assert sorted(match.missing) == [
        "learning rate of head 0.0001 became 0.001",
        "parallel_adapter dropout 0.1 became 0",
        "prefix_tuning length 16 at attention in layers 0-11 is left out",
        "training dropout True became False",
        "training optimizer.betas.1 0.98 became 0.999",
        "training optimizer.epsilon 1e-06 became 1e-08",
        "weight decay of parallel_adapter, head 0.1 became 0",
    ]
    found = bound_to("default").materialize(match.values)
    assert not found.model
    assert [block.to_data() for block in found.layers] == [
        {
            "at": "all",
            "attach": [
                {"parallel_adapter": {"sites": ["ffn"], "bottleneck": 16, "scale": 2.0}},
            ],
        }
    ]


def test_unipelt_in_the_default_space() -> None:
    match = values_of(Recipe.named("unipelt"), bound_to("default"))
    assert match.missing[:2] == [
        "prefix_tuning length 10 at attention in layers 0-11 is left out",
        "gate at attention, q, v, ffn in layers 0-11 is left out",
    ]
    assert {"lora alpha 16 became unset", "training warmup 0 became 0.06"} < set(match.missing)
    found = bound_to("default").materialize(match.values)
    assert [(e.method, e.item.config) for e in found.entries()] == [
        ("lora", {"rank": 8, "sites": ["q", "v"]}),
        ("serial_adapter", {"bottleneck": 48, "variant": "pfeiffer"}),
    ]


def test_bare_keys_and_values_in_the_default_space() -> None:
    rows = {"p_tuning_v2": {"length": 10, "dropout": 0.0}}
    match = values_of(recipe(rows, **HEAD), bound_to("default"))
    assert "p_tuning_v2 length 10 became 12" in match.missing
    (entry,) = bound_to("default").materialize(match.values).entries()
    assert (entry.method, entry.item.config) == ("p_tuning_v2", {"length": 12, "dropout": 0.0})


@pytest.mark.parametrize("place", ["layers", "model"])
def test_biases_of_the_model_are_not_those_of_its_layers(place: str) -> None:
    other = {"layers": "model", "model": "layers"}[place]
    both = {"layers": [{"attach": ["bitfit"]}], "model": ["bitfit"]}
    bound = space(json.dumps({"name": "one", place: both[place]}))
    assert values_of(Recipe.from_dict({place: both[place]}), bound).exact
    assert not values_of(Recipe.from_dict({other: both[other]}), bound).exact


def test_a_fixed_hybrid_that_is_a_member() -> None:
    match = values_of(Recipe.named("sapa-prefix"), bound_to("autopeft"))
    assert match.exact
    assert match.values["serial_adapter.bottleneck"] == "hidden/32"
    assert all(match.values[f"layer_{i}.on"] for i in range(12))


@pytest.mark.parametrize(("rank", "nearest"), [(3, 4), (5, 4), (100, 128), (512, 128)])
def test_a_size_between_two_choices(rank: int, nearest: int) -> None:
    words, found = missing(recipe({"lora": {"rank": rank}}, **HEAD))
    assert words == [f"lora rank {rank} became {nearest}"]
    assert found.entries()[0].item.config["rank"] == nearest


# At rank 8 a rate of the space is (12/8)^0.75 times as large.
@pytest.mark.parametrize(("rate", "nearest"), [(1.0, 0.013554), (1e-6, 0.00013554)])
def test_a_learning_rate_outside_of_the_range(rate: float, nearest: float) -> None:
    words, found = missing(recipe({"lora": {"rank": 8}}, learning_rate=rate, **HEAD))
    assert words == [f"learning rate of lora {rate:.4g} became {nearest:.4g}"]
    assert found.training.groups["lora"].learning_rate == pytest.approx(nearest)


@pytest.mark.parametrize("keep", [10**299, "9" * 300, "1e99"])
def test_numbers_beyond_all_measure(keep: Any) -> None:
    wanted = recipe("lora", model=[{"fish_mask": {"keep": keep}}], learning_rate=5e-324, **HEAD)
    words, found = missing(wanted)
    assert words[0].startswith("fish_mask is left out")
    assert words[1:] == ["learning rate of lora 4.941e-324 became 0.0001355"]
    assert [e.method for e in found.entries()] == ["lora"]


@pytest.mark.parametrize(
    ("item", "training", "words"),
    [
        (
            "lora",
            {"groups": {"head": {"learning_rate": 0.010000000000000002}}},
            ["learning rate of head 0.010000000000000002 became 0.01"],
        ),
        (
            "lora",
            {"policies": ["lora_plus"], "schedule": "cosine", **HEAD},
            ["training schedule cosine became linear", "lora_plus is left out"],
        ),
        ({"lora": {"sites": ["q", "o", "k"]}}, HEAD, ["lora rank 8 at v in layers 0-5 is added"]),
    ],
    ids=["a number that differs by one bit", "what a space cannot say", "what a space adds"],
)
def test_what_differs_is_told(item: Any, training: dict[str, Any], words: list[str]) -> None:
    assert missing(recipe(item, **training))[0] == words


def test_another_method_of_the_same_kind_stands_in() -> None:
    words, found = missing(recipe({"dora": {"rank": 4}}, **HEAD))
    assert words == ["dora rank 4 became lora rank 4"]
    assert found.layers[0].at == "all"


def test_entries_that_are_split_differently_are_not_exact() -> None:
    blocks = [{"at": [0, 1], "attach": ["lora"]}, {"at": [2, 3, 4, 5], "attach": ["lora"]}]
    words, _ = missing(Recipe.from_dict({"layers": blocks, "training": HEAD}))
    assert words == ["the same methods at the same sites, as other entries"]


def test_nothing_in_common() -> None:
    bound = bound_to("lora", SIX)
    match = values_of(Recipe.named("mam"), bound)
    assert match.overlap == 0
    assert match.distance >= 1
    bound.check(match.values)


@pytest.mark.parametrize("name", space_names())
@pytest.mark.parametrize("wanted", ["mam", "unipelt"])
def test_points_are_recipes_that_can_be_built(name: str, wanted: str) -> None:
    bound = bound_to(name, TINY)
    match = values_of(Recipe.named(wanted), bound)
    assert build_graph(bound.materialize(match.values), TINY).entries


# Other backbones


@pytest.mark.parametrize(
    ("at", "layers"), [("all", "all"), ("last 2", (4, 5)), ("first 1", (0,)), ("g2", (1, 2))]
)
def test_words_for_layers_adapt_by_themselves(at: str, layers: Any) -> None:
    bound = bound_to("default", SIX)
    match = values_of(recipe("lora", at=at, **HEAD), bound)
    assert match.exact
    assert bound.materialize(match.values).layers[0].at == layers


@pytest.mark.parametrize(
    ("at", "asked", "left", "layers"),
    [
        ([2, 7, 11], "2, 7, 11", "2", (2,)),
        ("4-11", "4-11", "4-5", (4, 5)),
        ("first 8", "first 8", "0-5", "all"),
        ("last 8", "last 8", "0-5", "all"),
    ],
)
def test_layers_beyond_the_last_are_left_out(at: Any, asked: str, left: str, layers: Any) -> None:
    words, found = missing(recipe("lora", at=at, **HEAD), "default")
    assert words == [f"lora in layers {asked}: only {left} exist in this encoder of 6"]
    assert found.layers[0].at == layers


def test_stacks_of_unequal_depth_keep_the_layers_that_they_have() -> None:
    words, found = missing(recipe("lora", at=[1, 3], **HEAD), "default", T5)
    assert words == ["lora in layers 1, 3: only 1 exist in this decoder of 2"]
    assert {(block.stack, block.at) for block in found.layers} == {("encoder", (1, 3)), ("decoder", (1,))}


def test_what_the_backbone_lacks_is_left_out() -> None:
    words, found = missing(recipe({"lora": {"sites": ["q", "v", "gate_proj"]}}, **HEAD))
    assert words == ["lora is left out of gate_proj, which this backbone lacks"]
    assert found.entries()[0].item.config["sites"] == ["q", "v"]
    words, _ = missing(recipe("lora", model=["bitfit"], **HEAD), "default", LLAMA)
    assert len(words) == 1
    assert words[0].startswith("bitfit is left out: bitfit trains biases")
    blocks = [{"stack": "decoder", "attach": ["ia3"]}, {"attach": ["lora"]}]
    words, found = missing(Recipe.from_dict({"layers": blocks, "training": HEAD}), "default")
    assert words == ["ia3 is left out, since there is no decoder"]
    assert [e.method for e in found.entries()] == ["lora"]


def test_settings_follow_their_entry_where_others_are_left_out() -> None:
    groups = {"lora_2": {"learning_rate": 5e-3}, "head": {"learning_rate": 1e-3}}
    blocks = [{"at": [7], "attach": [{"lora": {"rank": 2}}]}, {"attach": [{"lora": {"rank": 8}}]}]
    _, found = missing(Recipe.from_dict({"layers": blocks, "training": {"groups": groups}}))
    assert found.entries()[0].item.config["rank"] == 8
    assert found.training.groups["lora"].learning_rate == 5e-3


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (recipe("lora", at=[7]), "lora in layers 7: none exist in this encoder of 3"),
        (recipe("lora", at="g1"), "lora in layers g1: none exist"),
        (recipe({"lora": {"sites": ["cross_q"]}}), "lora is left out of cross_q"),
        (recipe(), "it has no entries"),
    ],
)
def test_nothing_of_a_recipe_fits_the_backbone(wanted: Recipe, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        values_of(wanted, bound_to("default", TINY))


TUNED = """
name: tuned
layers: [{attach: [{lora: {rank: 2, sites: [q, v]}}, {lora: {rank: 2, sites: [k]}, as: own}]}]
training:
  optimizer:
    choice:
      - name: {choice: [adamw, adam]}
        betas: [0.9, {float: [0.9, 0.9999]}]
        epsilon: {choice: [1.0e-8, 1.0e-6]}
      - {name: sgd, momentum: {float: [0.0, 0.99]}, clip: {choice: [all, group]}}
  groups:
    lora.up: {learning_rate: {float: [1.0e-4, 1.0e-2], log: true}}
    own.down: {weight_decay: {choice: [0.0, 0.1]}}
"""


@given(st.data())
@settings(max_examples=5, deadline=None)
def test_optimizers_and_parts_come_back(data: st.DataObject) -> None:
    bound = space(TUNED)
    values = data.draw(points(bound))
    wanted = bound.materialize(values)
    match = values_of(wanted, bound)
    assert match.exact
    assert bound.materialize(match.values).training == wanted.training


def test_what_differs_in_an_optimizer_and_in_parts_is_told() -> None:
    bound = space(TUNED)
    lora = [{"lora": {"rank": 2, "sites": ["q", "v"]}}, {"lora": {"rank": 2, "sites": ["k"]}, "as": "own"}]
    wanted = recipe(
        *lora,
        optimizer={"betas": [0.9, 0.95], "epsilon": 1e-7},
        groups={"lora.up": {"learning_rate": 0.5}, "own.down": {"weight_decay": 0.1}},
    )
    match = values_of(wanted, bound)
    assert not match.exact
    assert any(line.startswith("training optimizer.epsilon 1e-07 became") for line in match.missing)
    assert not any("betas" in line for line in match.missing)
    assert any(line.startswith("learning rate of lora.up") for line in match.missing)


def test_the_trial_hash_tells_optimizers_and_parts_apart() -> None:
    bare = recipe("lora")
    others = [
        recipe("lora", optimizer={"name": "sgd"}),
        recipe("lora", optimizer={"epsilon": 1e-6}),
        recipe("lora", groups={"lora.up": {"learning_rate": 0.1}}),
        recipe("lora", groups={"lora.down": {"learning_rate": 0.1}}),
    ]
    assert len({trial_hash(r, TINY) for r in (bare, *others)}) == 5
    assert trial_hash(recipe("lora", optimizer={"name": "adamw"}), TINY) == trial_hash(bare, TINY)
