from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, T5Config

from autopeft.backbones import spec_of
from autopeft.counting import Budget, count
from autopeft.errors import BudgetError, CompositionError, RecipeError
from autopeft.recipe import EmptyRecipe, Recipe
from autopeft.recipe.yaml_text import dump_yaml
from autopeft.search.space import repair as repair_module
from autopeft.search.space.repair import Infeasible, check_feasible, feasible_share, repair, smallest
from autopeft.search.space.space import BoundSpace, Space, space_names
from autopeft.spec import BackboneSpec

MINILM = spec_of(
    BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
)
TINY = spec_of(
    BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
)
T5 = spec_of(
    T5Config(vocab_size=50, d_model=32, num_layers=3, num_decoder_layers=2, d_ff=64, d_kv=8, num_heads=4)
)


def space(body: str, spec: BackboneSpec = TINY) -> BoundSpace:
    return Space.from_yaml("name: s\n" + body).bind(spec)


@pytest.mark.parametrize("name", space_names())
@pytest.mark.parametrize("budget", ["0.5%", "0.1%", "0.3%..0.5%", "9300"])
def test_built_in_spaces_are_repaired_into_the_budget(name: str, budget: str) -> None:
    bound, limit = Space.named(name).bind(MINILM), Budget.parse(budget)
    rng = random.Random(0)
    if name == "llm_adapters" and limit.limits(MINILM)[1] < 46_080:  # ten rows of keys and values a layer
        with pytest.raises(Infeasible, match="its smallest has 46,080"):
            repair(bound, bound.sample(rng), limit)
        return
    if name == "s3pet" and limit.limits(MINILM)[0] > 41_472:  # rank 1 everywhere
        with pytest.raises(Infeasible, match="41,472"):
            repair(bound, bound.sample(rng), limit)
        return
    for _ in range(25):
        values = bound.sample(rng)
        done = repair(bound, values, limit)
        assert limit.admits(done.counts.deployed, MINILM)
        assert count(done.recipe, MINILM) == done.counts
        assert bound.materialize(done.values) == done.recipe
        again = repair(bound, done.values, limit)
        assert not again.changed
        assert again.values == done.values


def test_the_half_percent_of_minilm() -> None:
    bound = Space.named("autopeft").bind(MINILM)
    largest = {p.name: p.choices[0] for p in bound.parameters}
    done = repair(bound, largest, Budget.parse("0.5%"))
    assert 113_566 // 2 < done.counts.deployed <= 113_566
    sizes = {done.values[f"{m}"] for m in ("serial_adapter.bottleneck", "parallel_adapter.bottleneck")}
    assert sizes <= {"hidden/32", "hidden/64"}
    assert all(done.values[f"layer_{i}.on"] for i in range(6))


def test_what_fits_stays_and_what_trains_stays() -> None:
    bound = Space.named("default").bind(MINILM)
    rng = random.Random(3)
    for _ in range(30):
        values = bound.sample(rng)
        done = repair(bound, values, Budget.parse("0.5%"))
        for name in ("learning_rate", "prompt_learning_rate", "parallel_adapter.scale"):
            assert done.values[name] == values[name]
        if not done.changed:
            assert done.values == values


def test_sizes_shrink_before_layers_are_switched_off() -> None:
    bound = space(
        """
layers:
  - at: {switch: {choice: [true, false]}}
    attach:
      - lora: {rank: {choice: [0, 1, 2, 4]}, sites: [q]}
      - serial_adapter: {bottleneck: {choice: [0, 1, 8]}, variant: pfeiffer, bias: false}
"""
    )
    on = {f"layer_{i}.on": True for i in range(3)}
    values = {"lora.rank": 4, "serial_adapter.bottleneck": 8, **on}
    unit = 3 * 64
    for most, rank, bottleneck, layers in [(12, 4, 8, 3), (11, 4, 1, 3), (4, 2, 1, 3), (2, 1, 1, 3)]:
        done = repair(bound, values, Budget.parse(most * unit))
        expected = (rank, bottleneck, layers)
        got = (
            done.values["lora.rank"],
            done.values["serial_adapter.bottleneck"],
            sum(done.values[n] for n in on),
        )
        assert got == expected
    done = repair(bound, values, Budget.parse(64))
    assert done.counts.deployed == 64


def test_empty_points_come_to_life() -> None:
    bound = space("layers: [{attach: [{lora: {rank: {choice: [0, 1, 2]}}}, {optional: ia3}]}]")
    done = repair(bound, {"lora.rank": 0, "ia3.on": False}, Budget.parse("10k"))
    assert done.recipe.entries()
    assert done.changed


def test_lower_limit_grows() -> None:
    bound = Space.named("lora").bind(MINILM)
    values = {"rank": 1, "lora.sites": "q+v", "learning_rate": 1e-3}
    done = repair(bound, values, Budget.parse("90k..120k"))
    assert done.counts.deployed >= 90_000
    assert done.values["learning_rate"] == 1e-3


def test_budgets_that_nothing_fits_name_the_smallest() -> None:
    bound = Space.named("lora").bind(MINILM)
    least = smallest(bound).counts.deployed
    assert least == 6 * 2 * 768
    check_feasible(bound, Budget.parse(least))
    with pytest.raises(Infeasible, match=f"{least:,}"):
        check_feasible(bound, Budget.parse(least - 1))
    with pytest.raises(BudgetError, match=f"{least:,}"):
        repair(bound, bound.middle(), Budget.parse(least - 1))
    assert repair(bound, bound.middle(), Budget.parse(least)).counts.deployed == least
    with pytest.raises(Infeasible, match="finer sizes"):
        repair(bound, bound.middle(), Budget.parse(f"{least + 1}..{least + 2}"))


def test_a_range_that_nothing_reaches_is_refused_with_what_comes_nearest() -> None:
    bound = Space.named("lora").bind(TINY)
    largest = 172_032  # rank 64 on every linear map
    for budget in ("389120..583680", f"{largest + 1}..{largest + 9}"):
        with pytest.raises(Infeasible, match=rf"it came to {largest:,}\. Widen the budget, or offer finer"):
            check_feasible(bound, Budget.parse(budget))
    check_feasible(bound, Budget.parse(f"{largest - 1}..{largest}"))


def test_a_range_is_open_exactly_where_a_member_lies_in_it() -> None:
    bound = space("layers: [{at: {from: {int: [0, 2]}}, attach: [{lora: {rank: {choice: [3, 5]}}}]}]")
    unit = smallest(bound).counts.deployed // 3
    members = {layers * rank * unit for layers in (1, 2, 3) for rank in (3, 5)}
    for total in range(unit, 17 * unit, unit):
        if total in members:
            check_feasible(bound, Budget.parse(f"{total}..{total + 1}"))
        else:
            with pytest.raises(Infeasible, match=f"with {total:,} to {total + 1:,} parameters|its smallest"):
                check_feasible(bound, Budget.parse(f"{total}..{total + 1}"))


def test_an_item_of_fifty_sizes_of_its_own_is_refused_before_anything_is_repaired() -> None:
    adapter = "{serial_adapter: {bottleneck: {int: [1, hidden/2]}}}"
    wide = space(f"layers: [{{attach: [{{gate: [{', '.join([adapter] * 50)}]}}]}}]", MINILM)
    with pytest.raises(RecipeError, match="up to 50 choices of their own"):
        check_feasible(wide, Budget.parse("50%"))


def test_a_space_that_this_backbone_cannot_take() -> None:
    bound = space("layers: [{stack: decoder, attach: [lora]}]")
    with pytest.raises(EmptyRecipe, match="nothing that this backbone"):
        smallest(bound)


def test_feasible_share() -> None:
    bound = space("layers: [{attach: [{lora: {rank: {choice: [1, 2, 3, 4]}, sites: [q]}}]}]")
    one = 3 * 64
    assert feasible_share(bound, Budget.parse(4 * one), n=50) == 1
    assert feasible_share(bound, Budget.parse(one - 1), n=50) == 0
    assert 0.4 < feasible_share(bound, Budget.parse(f"{one}..{2 * one}"), n=400) < 0.6


SIZES = st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True).map(lambda s: {"choice": s})
RANGE = st.tuples(st.integers(0, 2), st.integers(2, 9)).map(lambda t: {"int": list(t)})
SIZE = st.one_of(SIZES, RANGE, st.integers(1, 5))
LEAF = st.one_of(
    st.builds(
        lambda r, s: {"lora": {"rank": r, "sites": s}},
        SIZE,
        st.sampled_from([["q"], {"choice": [["q"], ["q", "v", "up"]]}]),
    ),
    st.builds(lambda b: {"serial_adapter": {"bottleneck": b, "variant": "pfeiffer"}}, SIZE),
    st.builds(lambda n: {"prefix_tuning": {"length": n}}, SIZE),
    st.just("ia3"),
)
OFFER = st.one_of(
    LEAF,
    LEAF.map(lambda i: {"optional": i}),
    st.lists(LEAF, min_size=1, max_size=2, unique_by=str).map(lambda items: {"choice": [*items, None]}),
    st.lists(LEAF, min_size=1, max_size=2).map(lambda items: {"sum": items}),
)
AT = st.sampled_from(
    [
        "all",
        "first 2",
        {"switch": {"choice": [True, False]}},
        {"from": {"int": [0, "last"]}},
        {"choice": ["all", [1], "last 1"]},
    ]
)
BLOCK = st.builds(
    lambda at, key, items: {"at": at, key: items},
    AT,
    st.sampled_from(["attach", "each_layer"]),
    st.lists(OFFER, min_size=1, max_size=2),
)
MODEL = st.lists(
    st.sampled_from([{"optional": "bitfit"}, {"prompt_tuning": {"length": {"choice": [0, 1, 3]}}}]),
    max_size=2,
)


@settings(max_examples=80, deadline=None)
@given(
    tree=st.fixed_dictionaries({"layers": st.lists(BLOCK, min_size=1, max_size=2), "model": MODEL}),
    spec=st.sampled_from([TINY, T5]),
    most=st.integers(1, 6000),
    floor=st.sampled_from([0.0, 0.0, 0.5]),
    seed=st.integers(0, 3),
)
def test_repair_never_leaves_the_budget(
    tree: dict[str, Any], spec: BackboneSpec, most: int, floor: float, seed: int
) -> None:
    bound = Space.from_yaml(dump_yaml({"name": "s", **tree})).bind(spec)
    values = bound.sample(random.Random(seed))
    budget = Budget.parse(f"{max(1, int(most * floor))}..{most}" if floor else most)
    try:
        done = repair(bound, values, budget)
    except Infeasible:
        assume(not floor)
        assert smallest(bound).counts.deployed > most
        return
    except EmptyRecipe:
        return
    assert budget.admits(count(done.recipe, spec).deployed, spec)
    assert repair(bound, values, budget).values == done.values


def one_at_a_time(patch: pytest.MonkeyPatch) -> None:
    """Let repair switch off one thing at a time, and look at everything anew after it."""
    together = repair_module.Balance._switch_off

    def alone(self: Any, point: Any, most: int) -> dict[str, Any] | None:
        changes = together(self, point, most)
        return changes and dict([next(iter(changes.items()))])

    patch.setattr(repair_module.Balance, "_switch_off", alone)


@settings(max_examples=80, deadline=None)
@given(
    tree=st.fixed_dictionaries({"layers": st.lists(BLOCK, min_size=1, max_size=3), "model": MODEL}),
    most=st.integers(1, 3000),
    seed=st.integers(0, 3),
)
def test_what_is_switched_off_together_is_what_would_be_one_after_the_other(
    tree: dict[str, Any], most: int, seed: int
) -> None:
    space = Space.from_yaml(dump_yaml({"name": "s", **tree}))

    def repaired() -> Recipe | None:
        bound = space.bind(TINY)
        try:
            return repair(bound, bound.sample(random.Random(seed)), Budget.parse(most)).recipe
        except (Infeasible, EmptyRecipe):
            return None

    together = repaired()
    with pytest.MonkeyPatch.context() as patch:
        one_at_a_time(patch)
        assert repaired() == together


def test_a_thousand_prompts_are_switched_off_in_a_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = {"prompt_tuning": {"length": {"choice": [0, 1]}}}
    bound = Space.from_yaml(dump_yaml({"name": "s", "model": [prompt] * 300})).bind(TINY)
    looks = 0
    moves = repair_module.Balance.moves

    def counted(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        return moves(*args)

    monkeypatch.setattr(repair_module.Balance, "moves", counted)
    done = repair(bound, {p.name: 1 for p in bound.parameters}, Budget.parse(3 * TINY.stacks[0].hidden))
    assert done.counts.deployed == 3 * TINY.stacks[0].hidden
    assert looks <= 4 * 300


def test_the_first_layer_is_a_number_however_deep_the_choice() -> None:
    nested = {"choice": [{"choice": [1, {"choice": [0, "last"]}]}, 2]}
    block = {"at": {"from": nested}, "attach": ["ia3"]}
    bound = Space.from_yaml(dump_yaml({"name": "s", "layers": [block]})).bind(TINY)
    assert repair(bound, bound.sample(random.Random(0)), Budget.parse("50%")).counts.deployed > 0
    block["at"] = {"from": {"choice": [{"choice": [{"optional": "ia3"}, 2]}, 1]}}
    with pytest.raises(RecipeError, match="'from' is the index of a layer"):
        Space.from_yaml(dump_yaml({"name": "s", "layers": [block]}))


@settings(max_examples=25, deadline=None)
@given(offers=st.lists(OFFER, min_size=1, max_size=2), at=AT)
def test_the_smallest_member_is_the_smallest(offers: list[Any], at: Any) -> None:
    bound = Space.from_yaml(dump_yaml({"name": "s", "layers": [{"at": at, "attach": offers}]})).bind(TINY)
    assume(bound.cardinality() <= 400)
    domains = [p.choices or range(int(p.low), int(p.high) + 1) for p in bound.parameters]
    counts = []
    for combination in product(*domains):
        try:
            values = dict(zip((p.name for p in bound.parameters), combination, strict=True))
            counts.append(count(bound.materialize(values), TINY).deployed)
        except EmptyRecipe:
            continue
    assume(counts)
    assert smallest(bound).counts.deployed == min(counts)


@pytest.mark.parametrize(
    ("items", "budget", "share"),
    [
        # One child of a chain is left alone and stands for it; without any it is absent.
        (
            "chain: [{serial_adapter: {bottleneck: {choice: [0, 2, 4, 8]}}}, "
            "{parallel_adapter: {sites: [ffn], bottleneck: 2}}]",
            "600",
            (0.2, 0.6),
        ),
        ("chain: [{choice: [lora, null]}, {choice: [{lora: {rank: 2}}, null]}]", "100%", (0.5, 1.0)),
        # A gate or a route whose children are all absent is absent.
        (
            "gate: [{optional: {lora: {rank: 4}}}, {optional: {serial_adapter: {bottleneck: 8}}}]",
            "100%",
            (0.5, 1.0),
        ),
        # More experts for a position than there are, and a gate around what alters weights, cannot act.
        (
            "route: {children: [{lora: {rank: 2}}], copies: {choice: [2, 4]}, top_k: {choice: [1, 2, 4]}, "
            "renormalize: {choice: [true, false]}}",
            "100%",
            (0.4, 0.8),
        ),
        ("gate: [{choice: [{lora: {rank: 2}}, hiwi]}]", "100%", (0.3, 0.7)),
    ],
)
def test_combinations_that_cannot_act_are_passed_over(
    items: str, budget: str, share: tuple[float, float]
) -> None:
    bound, limit = space(f"layers: [{{attach: [{{{items}}}]}}]"), Budget.parse(budget)
    check_feasible(bound, limit)
    assert share[0] <= feasible_share(bound, limit, n=200) <= share[1]
    rng = random.Random(0)
    for _ in range(30):
        done = repair(bound, bound.sample(rng), limit)
        assert 0 < count(done.recipe, TINY).deployed == done.counts.deployed <= limit.limits(TINY)[1]


def test_where_nothing_can_act_the_reason_is_told() -> None:
    bound = space("layers: [{attach: [{gate: [{choice: [hiwi, bitfit]}]}]}]")
    with pytest.raises(CompositionError, match="alters weights"):
        check_feasible(bound, Budget.parse("100%"))
