from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.counting import Budget, count
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.graph import CompositionGraph, build_graph, first_layer
from autopeft.recipe import Recipe
from autopeft.resources import Limits, Resources
from autopeft.search.selection.baseline_recipes import single_methods
from autopeft.search.selection.baselines import (
    BASELINE_KINDS,
    Baseline,
    baselines,
    lora_baseline,
    lora_rates,
    parse_kinds,
)
from autopeft.search.space.candidate import ResourceBudget, candidate, keeps_within
from autopeft.search.space.initial_points import starting_points
from autopeft.search.space.space import Space
from autopeft.spec import BackboneSpec, LogitsSpec

BERT = spec_of(
    BertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=500
    )
)
MINILM = spec_of(
    BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
)
SPECS = {
    "bert": BERT,
    "gpt2": spec_of(GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=500, n_positions=64)),
    "t5": spec_of(T5Config(d_model=64, num_layers=2, num_heads=4, d_kv=16, d_ff=128, vocab_size=500)),
    "minilm": MINILM,
}
SPACES = {name: Space.named(name) for name in ("default", "autopeft", "lora")}
BOUND = {(s, f): SPACES[s].bind(SPECS[f]) for f in SPECS for s in SPACES}
PER_LAYER = Space.from_yaml(
    """
autopeft: 2
name: per-layer
layers:
  - at: all
    each_layer:
      - lora: {rank: {choice: [0, 1, 2, 4, 8, 16, 32]}}
      - serial_adapter: {bottleneck: {choice: [0, 1, 2, 4, 8, 16, 32]}}
"""
)
TOGETHER = Space.from_yaml(
    """
autopeft: 2
name: together
layers:
  - attach:
      - gate:
          - lora: {rank: {choice: [1, 2, 4]}}
          - serial_adapter: {bottleneck: {choice: [1, 2, 4]}}
"""
)


def found(spec: BackboneSpec, budget: str, space: str | Space = "default", **more: Any) -> list[Baseline]:
    chosen = SPACES[space] if isinstance(space, str) else space
    return baselines(chosen, spec, Budget.parse(budget), **{"rates": 2, "seed": 0, **more})


def deployed(spec: BackboneSpec, recipe: Any) -> int:
    return count(Recipe.from_dict(dict(recipe)), spec).deployed


def methods(recipe: Any) -> set[str]:
    return {entry.method for entry in Recipe.from_dict(dict(recipe)).entries()}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SPECS)), st.integers(1, 60_000))
def test_lora_is_the_largest_that_fits(family: str, most: int) -> None:
    spec = SPECS[family]
    baseline = lora_baseline(spec, (0, most), rates=3)
    if baseline is None:
        width = min(s.hidden for s in spec.stacks)
        assert most < width * 2 * 2 * len(spec.stacks), "something would have fitted"
        return
    for i, recipe in enumerate(baseline.candidates):
        assert 0 < deployed(spec, recipe) == baseline.tables[i]["deployed"] <= most
    layers = baseline.candidates[0]["layers"][0]
    config = layers["attach"][0]["lora"]
    if layers.get("at", "all") == "all" and config["rank"] < 64:
        more = {"layers": [{"attach": [{"lora": {**config, "rank": config["rank"] + 1}}]}]}
        assert count(Recipe.from_dict(more), spec).deployed > most


def test_known_size() -> None:
    baseline = lora_baseline(MINILM, (0, 113_566), rates=3)
    assert baseline is not None
    assert baseline.counts["deployed"] == 110_592
    assert [baseline.titles[i] for i in (0, 3)] == [
        "LoRA rank 12 on q, v of all layers",
        "LoRA rank 24 on q, v of the last 3 layers",
    ]


def test_small_ranks_take_large_rates() -> None:
    assert lora_rates(12, 3) == lora_rates(96, 3) == [5e-4, 1.5e-3, 4.5e-3]
    assert lora_rates(1, 3) == pytest.approx([3.22e-3, 9.68e-3, 2.9e-2], rel=0.02)
    assert lora_rates(4, 1) == [float(f"{1.5e-3 * 3**0.75:.3g}")]
    assert max(rate for rank in range(1, 30) for rate in lora_rates(rank, 3)) <= 3e-2
    (small,) = found(MINILM, "9216", kinds=["lora"], rates=3)
    assert small.candidates[2]["training"]["learning_rate"] == lora_rates(1, 3)[2] > 2.5e-2


NAMED = """
autopeft: 2
name: named
layers: [{attach: [{lora: {rank: {choice: [1, 2]}}}]}]
training: {groups: {head: {learning_rate: 0.1}}}
"""


@pytest.mark.parametrize(
    ("space", "deep", "names"),
    [
        ("default", False, {"head"}),
        ("default", True, {"head", "head.hidden"}),
        ("autopeft", True, {"head", "head.hidden"}),  # which has no rate for the head
        (Space.from_yaml(NAMED), True, {"head"}),  # where all of the head learns alike
    ],
)
def test_a_heads_hidden_layers_learn_beside_lora_as_they_do_in_the_space(
    space: Any, deep: bool, names: set[str]
) -> None:
    spec = replace(BERT, logits=LogitsSpec(64, 2, deep=deep))
    (baseline,) = found(spec, "50000", space, kinds=["lora"])
    for index, recipe in enumerate(baseline.candidates):
        training = Recipe.from_dict(dict(recipe)).training
        assert set(training.groups) == names
        last, hidden = (training.settings("head", part=part).learning_rate for part in ("", "hidden"))
        assert (last, hidden) == (1e-2, 3e-4 if len(names) == 2 else 1e-2)
        assert baseline.label(index).endswith(f"learning rate {training.learning_rate:.3g}")


def test_lora_and_the_head_go_on_beyond_their_rates() -> None:
    (lora, head) = found(MINILM, "0.5%", kinds=["lora", "head"], rates=3, effort="quick")
    assert (lora.first_runs, len(lora.candidates)) == (6, 14)
    assert [lora.label(i).split("rate ")[1] for i in range(3)] == ["0.0005", "0.0015", "0.0045"]
    assert lora.beyond == {
        i: (j,) for i, j in ((0, 6), (6, 7), (2, 8), (8, 9), (3, 10), (10, 11), (5, 12), (12, 13))
    }
    assert [lora.label(i) for i in (7, 9, 13)] == [
        "LoRA rank 12 on q, v of all layers, learning rate 5.56e-05",
        "LoRA rank 12 on q, v of all layers, learning rate 0.03",
        "LoRA rank 24 on q, v of the last 3 layers, learning rate 0.03",
    ]
    assert [head.label(i).split("rate ")[1] for i in range(3, 7)] == ["0.000333", "0.000111", "0.06", "0.1"]
    (middle,) = found(MINILM, "0.5%", kinds=["middle"], rates=3)
    assert not middle.beyond, "the space says how far its rates reach"


def test_the_last_half_of_one_layer_is_nothing() -> None:
    single = replace(BERT, stacks=tuple(replace(s, layers=1) for s in BERT.stacks))
    baseline = lora_baseline(
        replace(single, sites=tuple(s for s in BERT.sites if s.layer == 0)), (0, 10_000), rates=1
    )
    assert baseline is not None
    assert len(baseline.candidates) == 1


@pytest.mark.parametrize("rates", [1, 2, 5])
@pytest.mark.parametrize(
    ("space", "effort"), [("default", "quick"), ("default", "thorough"), ("autopeft", "thorough")]
)
def test_no_candidate_comes_twice(rates: int, space: str, effort: str) -> None:
    for baseline in found(BERT, "10000", space, rates=rates, effort=effort, kinds=BASELINE_KINDS):
        hashes = {build_graph(Recipe.from_dict(dict(c)), BERT).trial_hash() for c in baseline.candidates}
        assert len(hashes) == len(baseline.candidates)


def test_every_baseline_counts_the_head() -> None:
    every = found(BERT, "0.5%", kinds=["all"], head=66)
    assert {baseline.kind for baseline in every} == {"lora", "single", "random", "middle", "head"}
    for baseline in every:
        tables = [baseline.counts, *baseline.tables]
        tables.append(baseline.remaining([0])[1])
        assert {table["head"] for table in tables} == {66}


LIMITS = st.tuples(st.integers(1, 300_000), st.integers(1, 300_000), st.booleans())


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(sorted(BOUND)), LIMITS, st.integers(0, 5))
@example(("default", "minilm"), (90_852, 113_566, True), 0)
@example(("default", "minilm"), (111_000, 113_566, True), 0)
@example(("autopeft", "t5"), (2, 1, True), 0)
def test_all_but_the_head_lie_inside_the_budget(
    where: tuple[str, str], limits: tuple[int, int, bool], seed: int
) -> None:
    low, high, ranged = min(limits[:2]), max(limits[:2]), limits[2]
    spec, budget = SPECS[where[1]], Budget.parse(f"{low}..{high}" if ranged else high)
    least, most = budget.limits(spec)
    several = baselines(BOUND[where], spec, budget, rates=2, seed=seed, effort="thorough")
    assert {b.kind for b in several} <= set(BASELINE_KINDS)
    assert [b.kind for b in several][-1] == "head"
    for baseline in several[:-1]:
        sizes = [deployed(spec, c) for c in baseline.candidates]
        assert sizes == [baseline.tables[i]["deployed"] for i in range(len(sizes))]
        assert all(0 < size <= most for size in sizes)
        if baseline.kind in ("random", "middle"):
            assert all(size >= least for size in sizes)
        else:
            assert all(size >= least for size in sizes) or all(size < least for size in sizes)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_lora_reaches_a_range_that_any_lora_on_its_sites_reaches(data: st.DataObject) -> None:
    spec = SPECS[data.draw(st.sampled_from(sorted(SPECS)))]
    last = data.draw(st.integers(1, min(s.layers for s in spec.stacks)))
    rank = data.draw(st.integers(1, 64))
    there = {"at": f"last {last}", "attach": [{"lora": {"rank": rank}}]}
    size = deployed(spec, {"layers": [there]})
    low, high = size - data.draw(st.integers(0, 500)), size + data.draw(st.integers(0, 500))
    baseline = lora_baseline(spec, (low, high), rates=1)
    assert baseline is not None
    assert low <= baseline.counts["deployed"] <= high


def test_lora_goes_from_place_to_place() -> None:
    baseline = lora_baseline(MINILM, (0, 113_566), rates=2, places=3)
    assert baseline is not None
    assert baseline.name == "LoRA rank sweep"
    assert [baseline.titles[i] for i in (0, 2, 4, 6)] == [
        "LoRA rank 12 on q, v of all layers",
        "LoRA rank 24 on q, v of the last 3 layers",
        "LoRA rank 6 on q, k, v, o of all layers",
        "LoRA rank 2 on every linear map of all layers",
    ]
    assert (baseline.first_runs, baseline.second_runs, baseline.sweep_runs) == (8, 4, 13)
    assert baseline.fresh_runs(4) == 4
    assert baseline.label(1) == "LoRA rank 12 on q, v of all layers, learning rate 0.0045"


LLAMA = spec_of(
    LlamaConfig(
        hidden_size=256, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, vocab_size=500,
        intermediate_size=512,
    )
)  # fmt: skip
T5 = spec_of(T5Config(d_model=64, num_layers=6, num_heads=4, d_kv=16, d_ff=128, vocab_size=500))


@pytest.mark.parametrize(
    ("spec", "most", "tried"),
    [
        # q and v of a layer take 1,536 parameters at rank 1, 9,216 on all layers.
        (MINILM, 900, ["rank 1 on q of the last layer", "rank 1 on v of the last layer"]),
        (
            MINILM,
            2_304,
            [
                "rank 1 on q, v of the last layer",
                "rank 1 on q of the last 3 layers",
                "rank 1 on v of the last 3 layers",
            ],
        ),
        (
            MINILM,
            5_000,
            [
                "rank 1 on q, v of the last 3 layers",
                "rank 1 on q of all layers",
                "rank 2 on q of the last 3 layers",
                "rank 1 on v of all layers",
                "rank 2 on v of the last 3 layers",
            ],
        ),
        (
            MINILM,
            9_215,
            [
                "rank 1 on q, v of the last 5 layers",
                "rank 2 on q, v of the last 2 layers",
                "rank 1 on q of all layers",
                "rank 3 on q of the last 3 layers",
                "rank 1 on v of all layers",
                "rank 3 on v of the last 3 layers",
            ],
        ),
        # Keys and values are a quarter as wide: q takes 512 a layer, v 320.
        (LLAMA, 320, ["rank 1 on v of the last layer"]),
        (
            LLAMA,
            2_000,
            [
                "rank 1 on q, v of the last 2 layers",
                "rank 1 on q of the last 3 layers",
                "rank 1 on v of the last 6 layers",
                "rank 3 on v of the last 2 layers",
            ],
        ),
        # Encoder and decoder have the same layers: a map takes 256 on both.
        (
            T5,
            800,
            [
                "rank 1 on q, v of the last layer",
                "rank 1 on q of the last 3 layers",
                "rank 1 on v of the last 3 layers",
            ],
        ),
    ],
)
def test_where_rank_1_on_all_layers_is_too_large_single_maps_and_upper_layers_are_tried(
    spec: BackboneSpec, most: int, tried: list[str]
) -> None:
    baseline = lora_baseline(spec, (0, most), rates=3)
    assert baseline is not None
    assert list(dict.fromkeys(baseline.titles)) == [f"LoRA {what}" for what in tried]
    assert all(0 < table["deployed"] <= most for table in baseline.tables)


@pytest.mark.parametrize(("spec", "unit"), [(MINILM, 768), (LLAMA, 512), (T5, 256)])
def test_a_single_map_fills_what_its_layers_divide(spec: BackboneSpec, unit: int) -> None:
    layers = min(s.layers for s in spec.stacks)
    for count_of in range(1, layers + 1):
        baseline = lora_baseline(spec, (0, unit * count_of), rates=3)
        assert baseline is not None
        assert max(table["deployed"] for table in baseline.tables) == unit * count_of


def test_the_sweep_of_a_small_budget_costs_little_more_than_another() -> None:
    """Each place at its middle rate, then the best one's neighbours."""
    ordinary = lora_baseline(MINILM, (0, 113_566), 3)
    assert ordinary is not None
    for most in range(768, 9_216, 96):
        small = lora_baseline(MINILM, (0, most), 3)
        assert small is not None
        assert small.first_runs <= ordinary.first_runs == 6
        assert small.sweep_runs <= ordinary.sweep_runs + 2
        for i in range(small.first_runs):
            rank = small.candidates[i]["layers"][0]["attach"][0]["lora"]["rank"]
            below, middle, above = lora_rates(rank, 3)
            learnt = [small.candidates[j]["training"]["learning_rate"] for j in (i, *small.beyond[i])]
            assert learnt == [middle, below, above]


def test_larger_budgets_have_the_places_that_they_had() -> None:
    """As they were before small budgets had places of their own."""
    for most in (9_216, 20_000, 113_566):
        baseline = lora_baseline(MINILM, (0, most), rates=3)
        assert baseline is not None
        rank = most // 9_216
        recipes = [
            {
                "autopeft": 2,
                "name": "lora-baseline",
                "layers": [{"at": at, "attach": [{"lora": {"rank": r}}]}],
                "training": {"learning_rate": rate, "groups": {"head": {"learning_rate": 0.01}}},
            }
            for at, r in (("all", rank), ("last 3", most // 4_608))
            for rate in lora_rates(r, 3)
        ]
        expected = [Recipe.from_dict(recipe).to_dict() for recipe in recipes]
        assert [dict(c) for c in baseline.candidates[: baseline.first_runs]] == expected
        further = baseline.candidates[baseline.first_runs :]
        assert {c["layers"][0]["at"] for c in further} == {"all", "last 3"}


def test_a_fused_projection_is_taken_whole_only_where_it_has_no_parts() -> None:
    gpt2 = SPECS["gpt2"]
    parts = lora_baseline(gpt2, (0, 20_000), rates=1, places=3)
    assert parts is not None
    assert [parts.titles[i].split(" on ")[1] for i in range(4)] == [
        "q, v of all layers",
        "q, v of the last layer",
        "q, k, v, o of all layers",
        "every linear map of all layers",
    ]
    assert "qkv" not in parts.candidates[3]["layers"][0]["attach"][0]["lora"]["sites"]
    whole = replace(gpt2, sites=tuple(s for s in gpt2.sites if s.name not in ("q", "k", "v")))
    fused = lora_baseline(whole, (0, 20_000), rates=1, places=3)
    assert fused is not None
    assert [fused.titles[i].split(" on ")[1] for i in range(4)] == [
        "qkv of all layers",
        "qkv of the last layer",
        "qkv, o of all layers",
        "every linear map of all layers",
    ]
    assert lora_baseline(replace(gpt2, sites=()), (0, 20_000), rates=1, places=3) is None


def test_lora_that_misses_the_range_gives_way_to_one_that_reaches_it() -> None:
    baseline = lora_baseline(MINILM, (100_000, 113_566), rates=1, places=3)
    assert baseline is not None
    last = len(baseline.candidates) - 1
    assert baseline.titles[last] == "LoRA rank 3 on every linear map of the last 5 layers"
    narrow = lora_baseline(MINILM, (4_700, 6_500), rates=1, places=3)
    assert narrow is not None
    assert {table["deployed"] for table in narrow.tables} == {6_144}
    assert narrow.titles[0] == "LoRA rank 1 on q, v of the last 4 layers"


def limited(budget: str, predict: Any, **limits: Any) -> list[Baseline]:
    within = ResourceBudget(Budget.parse(budget).upper, Budget.parse(budget).lower, Limits(**limits), predict)
    return baselines(SPACES["lora"], MINILM, within, rates=1, seed=0, kinds=["lora"])


def file_of(graph: CompositionGraph) -> Resources:
    return Resources(file=4 * graph.parameter_count().deployed)


def test_lora_is_the_largest_that_keeps_the_limits() -> None:
    (baseline,) = limited("0.5%", file_of, file=300_000)
    assert [baseline.titles[i] for i in range(3)] == [
        "LoRA rank 8 on q, v of all layers",
        "LoRA rank 16 on q, v of the last 3 layers",
        "LoRA rank 4 on q, k, v, o of all layers",
    ]
    assert all(4 * table["deployed"] <= 300_000 for table in baseline.tables)


def test_where_all_layers_take_too_much_lora_sits_on_fewer() -> None:
    def step_of(graph: CompositionGraph) -> Resources:
        return Resources(step_time=float(6 - first_layer(graph)))

    (baseline,) = limited("0.5%", step_of, step_time=2.0)
    assert baseline.titles[0] == "LoRA rank 36 on q, v of the last 2 layers"
    assert all(title.endswith("of the last 2 layers") for title in baseline.titles)


def test_lora_keeps_the_limits_with_what_its_head_reads() -> None:
    """The mean of all tokens costs a layer more here."""

    def step_of(graph: CompositionGraph) -> Resources:
        pools = any(e.traits.pools for e in graph.entries.values())
        return Resources(step_time=float(6 - first_layer(graph) + pools))

    within = ResourceBudget(
        Budget.parse("0.5%").upper, Budget.parse("0.5%").lower, Limits(step_time=3.0), step_of
    )
    bound = replace(SPACES["lora"], pooling="mean").bind(MINILM)
    (baseline,) = baselines(bound, MINILM, within, rates=1, seed=0, kinds=["lora"])
    assert baseline.titles[0] == "LoRA rank 36 on q, v of the last 2 layers"
    assert all(keeps_within(Recipe.from_dict(dict(c)), within, MINILM) for c in baseline.candidates)


def test_where_no_lora_keeps_the_limits_it_is_as_large_as_the_budget_allows() -> None:
    (baseline,) = limited("100000..0.5%", file_of, file=300_000)
    (free,) = found(MINILM, "100000..0.5%", "lora", rates=1, kinds=["lora"])
    assert baseline == free
    recipe = Recipe.from_dict(dict(baseline.candidates[0]))
    plain = Budget.parse("100000..0.5%")
    assert keeps_within(recipe, plain, MINILM)
    assert not keeps_within(
        recipe, ResourceBudget(plain.upper, plain.lower, Limits(file=300_000), file_of), MINILM
    )
    assert not keeps_within(recipe, Budget.parse("112000..0.5%"), MINILM)
    assert not keeps_within(recipe, Budget.parse("0.4%"), MINILM)
    assert not keeps_within(Recipe.from_dict({"layers": [{"at": [9], "attach": ["lora"]}]}), plain, MINILM)


def test_every_method_of_the_space_stands_alone() -> None:
    (baseline,) = found(MINILM, "0.5%", kinds=["single"], effort="quick")
    alone = [methods(recipe) for recipe in baseline.candidates]
    assert all(len(names) == 1 for names in alone)
    assert {name for names in alone for name in names} == {
        "lora", "dora", "moslora", "adalora", "capaboost", "sora", "lora_dropout", "krona", "kadaptation",
        "vera", "serial_adapter", "compacter", "parallel_adapter", "p_tuning_v2", "ia3", "ssf", "hiwi",
        "mov", "prompt_tuning", "bitfit", "fish_mask", "pafi",
    }  # fmt: skip
    sizes = {name: baseline.tables[i]["deployed"] for i, names in enumerate(alone) for name in names}
    assert sizes["lora"] == 110_592
    assert sizes["serial_adapter"] == sizes["parallel_adapter"] == 113_040
    assert sizes["prompt_tuning"] == 32 * 384, "the longest prompt of the space"
    assert baseline.titles[0] == "best single method: lora"


def test_a_method_alone_is_where_the_search_starts() -> None:
    bound, budget = SPACES["default"].bind(MINILM), Budget.parse("0.5%")
    starts = {candidate(bound, point, budget).hash for point in starting_points(bound, 5)}
    alone = {m.hash for m in single_methods(bound, budget, 1)}
    assert len(starts & alone) == 4, "LoRA, both adapters and the prefix, with the same learning rates"


def test_a_range_does_not_mix_methods_into_one_alone() -> None:
    (baseline,) = found(MINILM, "0.4%..0.5%", kinds=["single"])
    assert all(len(methods(recipe)) == 1 for recipe in baseline.candidates)
    assert all(table["deployed"] >= 90_852 for table in baseline.tables)
    (far,) = found(MINILM, "10%..20%", kinds=["single"])
    assert all(len(methods(recipe)) == 1 for recipe in far.candidates)
    assert max(table["deployed"] for table in far.tables) < 2_271_321, "no method alone is as large"


def test_a_space_of_lora_alone_has_no_second_lora_baseline() -> None:
    kinds = [b.kind for b in found(MINILM, "0.5%", "lora", effort="thorough")]
    assert kinds == ["lora", "random", "middle", "head"]


def test_methods_that_only_come_together_do_not_stand_alone() -> None:
    kinds = [b.kind for b in found(BERT, "5000", TOGETHER)]
    assert kinds == ["lora", "random", "middle", "head"]


def test_a_space_with_choices_in_each_layer() -> None:
    (baseline,) = found(BERT, "3000", PER_LAYER, kinds=["single"])
    assert {name for recipe in baseline.candidates for name in methods(recipe)} == {"lora", "serial_adapter"}
    assert all(0 < table["deployed"] <= 3000 for table in baseline.tables)


def test_random_hybrids_follow_the_seed_and_train_as_the_search_starts() -> None:
    (first,) = found(MINILM, "0.5%", kinds=["random"], hybrids=5, seed=1)
    (again,) = found(MINILM, "0.5%", kinds=["random"], hybrids=5, seed=1)
    (other,) = found(MINILM, "0.5%", kinds=["random"], hybrids=5, seed=2)
    assert first == again
    assert first.candidates != other.candidates
    assert first.name == "5 random hybrids"
    assert first.each
    assert first.sweep_runs == 0
    assert first.fresh_runs(3) == 5, "one for each, however many seeds"
    sizes = [table["deployed"] for table in first.tables]
    assert first.counts["deployed"] == round(sum(sizes) / 5)
    (start,) = starting_points(SPACES["default"].bind(MINILM), 1)
    rates = {c["training"]["learning_rate"] for c in first.candidates}
    assert rates == {start["learning_rate"]}


def test_the_mid_point_has_everything_on() -> None:
    (baseline,) = found(MINILM, "0.5%", kinds=["middle"], rates=3)
    assert (baseline.first_runs, baseline.second_runs) == (3, 2)
    for recipe in baseline.candidates:
        assert len(methods(recipe)) >= 5
    rates = [c["training"]["learning_rate"] for c in baseline.candidates]
    assert rates == sorted(rates)
    assert 3e-4 <= rates[0] < rates[2] <= 1e-2


def test_an_effort_pays_for_what_it_can() -> None:
    assert [b.kind for b in found(MINILM, "0.5%", effort="quick")] == ["lora", "head"]
    assert [b.kind for b in found(MINILM, "0.5%", effort="normal")] == [
        kind for kind in BASELINE_KINDS if kind not in ("own", "fresh", "untuned", "few-shot")
    ]
    runs = {
        effort: sum(b.sweep_runs for b in found(MINILM, "0.5%", effort=effort, rates=3))
        for effort in ("quick", "normal", "thorough")
    }
    assert runs == {"quick": 14, "normal": 56, "thorough": 100}


def test_a_start_from_the_bank_is_compared_with_its_recipe_at_rates_around_its_own() -> None:
    recipe = Recipe.from_dict(
        {"name": "kept", "layers": [{"attach": [{"lora": {"rank": 2}}]}], "training": {"learning_rate": 6e-3}}
    )
    (fresh,) = found(MINILM, "0.5%", effort="quick", kinds=("fresh",), fresh=recipe, rates=3)
    candidates = [Recipe.from_dict(dict(c)) for c in fresh.candidates]
    assert [c.training.learning_rate for c in candidates[: fresh.first_runs]] == [2e-3, 6e-3, 1.8e-2]
    assert {c.training.learning_rate for c in candidates[fresh.first_runs :]} > {5.4e-2}
    assert all(c.layers == recipe.layers for c in candidates)
    assert "head" in candidates[0].training.groups


def test_a_task_without_a_head_of_its_own_has_no_such_baseline() -> None:
    for effort in ("quick", "normal"):
        kinds = [b.kind for b in found(SPECS["gpt2"], "0.5%", effort=effort, new_head=False)]
        assert kinds
        assert "head" not in kinds
    assert [b.kind for b in found(BERT, "1", "autopeft", new_head=False)] == ["untuned"]


def test_the_smallest_budgets_leave_the_head() -> None:
    assert [b.kind for b in found(BERT, "1", "autopeft")] == ["head"]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (None, ("lora", "own", "fresh", "head", "untuned", "few-shot")),
        ("all", BASELINE_KINDS),
        ("none", ()),
        (" head, LoRA", ("lora", "head")),
        (["single", "single"], ("single",)),
        ([], ()),
    ],
)
def test_kinds_are_read(text: Any, kinds: tuple[str, ...]) -> None:
    assert parse_kinds(text, "quick") == kinds


@pytest.mark.parametrize(
    ("text", "said"), [("lroa", "Did you mean 'lora'"), ("lora,,head", "''"), ("all,lora", "all"), ("", "''")]
)
def test_unknown_kinds_are_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"There is no baseline.*{said}"):
        parse_kinds(text, "quick")


def test_numbers_are_positive() -> None:
    with pytest.raises(AutoPEFTError, match="rates=0"):
        found(BERT, "5000", rates=0)
    with pytest.raises(AutoPEFTError, match="hybrids=0"):
        found(BERT, "5000", hybrids=0)


def test_language_models_are_compared_with_what_trains_nothing() -> None:
    options: Any = {"effort": "quick", "new_head": False}
    assert [b.kind for b in found(SPECS["gpt2"], "0.5%", **options)] == ["lora", "untuned"]
    several = found(SPECS["gpt2"], "0.5%", **options, prompts=True)
    assert [b.kind for b in several] == ["lora", "untuned", "few-shot"]
    untuned, few = several[1:]
    assert (untuned.shots, few.shots, few.counts["deployed"]) == (0, 4, 0)
    assert (untuned.sweep_runs, untuned.fresh_runs(3), few.fresh_runs(3)) == (0, 1, 3)
    assert "untuned" not in [b.kind for b in found(BERT, "0.5%", prompts=True)]
