"""NOAH as published: its space, how members are drawn and changed, and what its numbers come to."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.projecting import MINILM, SIX
from support.saved_model import small_search
from support.strategies import context_of
from transformers import ViTConfig

from autopeft.backbones import spec_of
from autopeft.counting import Budget, count
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.runs.folder import load_run
from autopeft.search.api import search
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.space.elastic import super_hybrid
from autopeft.search.space.space import Space
from autopeft.search.strategies.noah import DepthSizes, NoahNumbers, NoahSearch
from autopeft.search.strategies.supernet import Levels, MemberJob, SupernetJob

VIT = spec_of(ViTConfig())
CIFAR100 = {
    "prompt": (10, 5, 10, 1, 5, 1, 10, 1, 10, 5, 1, 10),
    "attention": (10, 1, 5, 5, 1, 10, 1, 1, 1, 10, 1, 1),
    "adapter": (5, 10, 10, 10, 5, 1, 1, 1, 10, 10, 10, 1),
}
"""The authors' ViT-B_prompt_cifar100.yaml."""
WIDER = "{choice: [0, 5, 10, 50, 100]}"
PLANTED = (1, 3, 2)
"""The best sizes of each layer's prompt, LoRA and adapter, by number."""


def sizes_on(spec: Any, most: int = 10**9, text: str | None = None) -> DepthSizes:
    space = Space.named("noah") if text is None else Space.from_yaml(text)
    return DepthSizes(super_hybrid(space.bind(spec), 10**9), most)


def opened(folder: Path, **more: Any) -> NoahSearch:
    usual = {"space": Space.named("noah").bind(MINILM), "trials": 100}
    return NoahSearch.open(context_of(folder, **{**usual, **more}))


def played(strategy: NoahSearch, job: Job) -> JobResult:
    if isinstance(job, SupernetJob):
        return JobResult(job.id, files={"checkpoint": b""}, seconds=4.0, paused=True)
    assert isinstance(job, MemberJob)
    levels = strategy._members[job.number or 0]
    score = -float(sum(abs(level - best) for level, best in zip(levels, PLANTED * len(levels), strict=False)))
    return JobResult(job.id, {"select": score}, seconds=1.0)


def play(strategy: NoahSearch, *, most: int = 10_000) -> Iterator[Job]:
    while most and (job := strategy.next(room=True)) is not None:
        most -= 1
        yield job
        strategy.complete(job, played(strategy, job))


def depths_of(sizes: DepthSizes, levels: Levels) -> list[int]:
    """How many of the first layers each kind is in; and that it is in no other."""
    found = []
    for kind in sizes.kinds:
        there = [bool(levels[number]) for number in kind]
        found.append(sum(there))
        assert there == [True] * found[-1] + [False] * (len(kind) - found[-1])
    return found


# The space
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("choices", "members"), [(None, 551_880), (WIDER, 17_043_520)])
def test_the_space_has_as_many_members_as_the_authors(choices: str | None, members: int) -> None:
    """For each of the three kinds the sum over depths of sizes^depth."""
    text = Space.named("noah").text
    sizes = sizes_on(VIT, text=text if choices is None else text.replace("{choice: [0, 1, 5, 10]}", choices))
    assert len(sizes.kinds) == 3
    for kind in sizes.kinds:
        assert sizes.depths(kind) == (3, 6, 9, 12)
        there = [len(sizes.hybrid.units[number].sizes) - 1 for number in kind]
        assert sum(math.prod(there[:depth]) for depth in sizes.depths(kind)) == members


def test_parts_of_layers_that_four_does_not_divide_are_rounded_up() -> None:
    sizes = sizes_on(MINILM)
    assert {sizes.depths(kind) for kind in sizes.kinds} == {(2, 3, 5, 6)}


def test_the_shipped_member_has_as_many_parameters_as_the_authors() -> None:
    """768·69 + 3072·47 + 1537·74 + 768·12, without the root prompt that their code counts and never reads."""
    sizes = sizes_on(VIT)
    values = dict(sizes.hybrid.values)
    for unit in sizes.hybrid.units:
        item = Space.named("noah").bind(VIT).item(unit.unit, sizes.hybrid.values)
        assert item is not None
        assert unit.unit.layer is not None
        values[unit.parameter] = CIFAR100[str(item.alias).removesuffix(f"_{unit.unit.layer}")][
            unit.unit.layer
        ]
    levels = [[s for s, _ in u.sizes].index(values[u.parameter]) for u in sizes.hybrid.units]
    recipe = Space.named("noah").bind(VIT).materialize(sizes.hybrid.at(levels))
    assert sizes.hybrid.size(levels) == count(recipe, VIT).deployed == 320_330
    assert sizes.hybrid.deployed == 12 * (768 * 10 + 3072 * 10 + 1537 * 10 + 768)


def test_an_update_has_no_factor_at_any_rank() -> None:
    bound = Space.named("noah").bind(VIT)
    items = [entry.item for entry in bound.materialize(sizes_on(VIT).hybrid.values).entries()]
    loras: list[Any] = [item.method_config() for item in items if item.method == "lora"]
    assert {(config.rank, config.scale, config.sites) for config in loras} == {(10, 1.0, ("q", "k", "v"))}


# What is drawn, and what becomes of it
# ----------------------------------------------------------------------------------------------------------


def test_quarters_of_layers_have_modules_in_the_shares_of_the_paper() -> None:
    """1, 3/4, 1/2 and 1/4 of the draws, and each size in a third of these."""
    sizes, draw, draws = sizes_on(VIT), random.Random(7), 4_000
    seen = [sizes.drawn(draw) for _ in range(draws)]
    for kind in sizes.kinds:
        for place, number in enumerate(kind):
            share = (1.0, 0.75, 0.5, 0.25)[place // 3]
            there = [levels[number] for levels in seen if levels[number]]
            assert abs(len(there) - share * draws) <= 3 * math.sqrt(draws * share * (1 - share))
            for level in (1, 2, 3):
                deviation = math.sqrt(len(there) * 2 / 9)
                assert abs(there.count(level) - len(there) / 3) <= 4 * deviation
    for levels in seen[:200]:
        depths_of(sizes, levels)


def test_as_few_mutants_differ_as_in_the_authors_code() -> None:
    """1 − (1 − 0.2·0.4·¾)³ = 0.169416: five of six proposals are the parent again."""
    expected = 1 - (1 - 0.2 * 0.4 * 0.75) ** 3
    assert expected == pytest.approx(0.169416, abs=1e-12)
    sizes, draw, draws = sizes_on(VIT), random.Random(8), 20_000
    parents = [sizes.drawn(draw) for _ in range(draws)]
    differ = sum(sizes.mutated(draw, parent) != parent for parent in parents)
    assert abs(differ / draws - expected) <= 3 * math.sqrt(expected * (1 - expected) / draws)


def test_a_mutation_changes_depths_alone() -> None:
    sizes, draw = sizes_on(VIT), random.Random(9)
    deeper = shallower = 0
    for _ in range(3_000):
        parent = sizes.drawn(draw)
        child = sizes.mutated(draw, parent)
        for before, after in zip(depths_of(sizes, parent), depths_of(sizes, child), strict=True):
            deeper, shallower = deeper + (after > before), shallower + (after < before)
        assert all(not a or not b or a == b for a, b in zip(parent, child, strict=True))
    assert min(deeper, shallower) > 50


def test_crossing_takes_all_of_a_kind_from_either() -> None:
    sizes, draw, seen = sizes_on(VIT), random.Random(10), set()
    one, other = sizes.drawn(draw), sizes.drawn(draw)
    for _ in range(200):
        child = sizes.crossed(draw, one, other)
        chosen = []
        for kind in sizes.kinds:
            parts = [tuple(levels[n] for n in kind) for levels in (one, other, child)]
            assert parts[2] in parts[:2]
            chosen.append(parts.index(parts[2]))
        seen.add(tuple(chosen))
    assert len(seen) == 8


def test_what_is_larger_than_the_budget_is_drawn_anew() -> None:
    sizes = sizes_on(MINILM, most=60_000)
    draw = random.Random(11)
    for _ in range(200):
        levels = sizes.drawn(draw)
        kept = sizes.within(draw, levels)
        assert kept == (levels if sizes.hybrid.size(levels) <= 60_000 else None)


# The search
# ----------------------------------------------------------------------------------------------------------


def test_numbers_are_the_authors() -> None:
    numbers = NoahSearch.evolution(800)
    assert isinstance(numbers, NoahNumbers)
    assert (numbers.population, numbers.parents, numbers.mutants, numbers.crossed) == (50, 10, 25, 25)
    assert numbers.tries * numbers.mutants == 250
    assert (numbers.changes, numbers.deeper, NoahSearch.rate) == (0.2, 0.4, 0.5)


def test_each_step_trains_a_member_at_half_the_rate(tmp_path: Path) -> None:
    """Of the whole space, whatever the budget is, and in four times the steps of a member."""
    strategy = opened(tmp_path, budget=Budget.parse("20000"))
    jobs = [job for job in play(strategy, most=5) if isinstance(job, SupernetJob)]
    assert [job.until for job in jobs] == [60, 120, 180, 240]
    assert {job.rate for job in jobs} == {0.5}
    whole = Recipe.from_dict(dict(jobs[0].recipe))
    assert count(whole, MINILM).deployed == 163_644
    members = [member.recipe for job in jobs for member in job.members]
    assert max(count(recipe, MINILM).deployed for recipe in members) > 2 * 20_000


def test_the_series_of_members_follows_from_the_seed(tmp_path: Path) -> None:
    """Another seed gives another; the authors' generator begins anew with each epoch, whatever the seed."""
    first, again, other = (list(play(opened(tmp_path, seed=seed), most=6)) for seed in (3, 3, 4))
    assert first == again
    for one, two in zip(first, other, strict=True):
        if isinstance(one, SupernetJob) and isinstance(two, SupernetJob):
            assert one.members != two.members
        else:
            assert one.recipe != two.recipe
    parts = [job.members for job in first if isinstance(job, SupernetJob)]
    assert parts[0] != parts[1]


def test_all_that_are_scored_are_within_the_limit_and_ranked(tmp_path: Path) -> None:
    """Those of the last generation too, which the authors score and never rank."""
    strategy = opened(tmp_path, budget=Budget.parse("60000"), trials=130)
    recipes = [Recipe.from_dict(dict(j.recipe)) for j in play(strategy) if isinstance(j, MemberJob)]
    assert len(recipes) == len(strategy.candidates(1000)) == 130
    assert len({recipe.hash() for recipe in recipes}) == 130
    assert max(count(recipe, MINILM).deployed for recipe in recipes) <= 60_000
    for levels in strategy._members:
        depths_of(strategy._sizes, levels)  # type: ignore[arg-type]


def test_a_generation_is_of_mutants_crossed_members_and_random_ones(tmp_path: Path) -> None:
    strategy = opened(tmp_path, trials=100)
    for _ in play(strategy):
        pass
    ranked = sorted(range(50), key=lambda n: -(strategy.records()[n].score or 0.0))
    parents = [strategy._members[number] for number in ranked[:10]]
    sizes: Any = strategy._sizes

    def parts(levels: Levels) -> list[tuple[int, ...]]:
        return [tuple(levels[n] for n in kind) for kind in sizes.kinds]

    known = [set(column) for column in zip(*map(parts, parents), strict=True)]
    crossed = [
        all(part in those for part, those in zip(parts(levels), known, strict=True))
        for levels in strategy._members[50:]
    ]
    assert sum(crossed[25:]) == 25
    assert not any(crossed[:20]), "mutants have a depth that no parent has with these sizes"


@pytest.mark.parametrize("seed", [0, 1])
def test_evolution_finds_what_is_planted(tmp_path: Path, seed: int) -> None:
    """One of 59,319 members of three layers, three sizes and three kinds. Of 800 random ones it is one in
    one case of two hundred."""
    text = Space.named("noah").text.replace("at: all", "at: first 3")
    small = {"space": Space.from_yaml(text).bind(SIX), "budget": Budget.parse("6000")}
    strategy = opened(tmp_path, trials=800, seed=seed, **small)
    for _ in play(strategy):
        pass
    best = strategy.candidates(1)[0]
    assert best.score == 0.0
    assert strategy._members[best.number or 0] == PLANTED * 3


@pytest.mark.parametrize(
    ("budget", "said"), [("6000", "smallest member"), ("200000", "more parameters together than the budget")]
)
def test_what_no_member_fits_or_all_do_is_said_beforehand(tmp_path: Path, budget: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        opened(tmp_path, budget=Budget.parse(budget))


def test_a_search_ends_with_members_that_are_trained_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    more = {"steps": 12, "strategy": "noah", "budget": 2500, "baselines": "none", "workers": 0, "confirm": 2}
    arguments = small_search(tmp_path, trials=6, **more)
    result = search(**{name: value for name, value in arguments.items() if name != "space"})
    trials = load_run("run").lines("trials.jsonl")
    assert [t["state"] for t in trials] == ["estimated"] * 6
    assert max(t["counts"]["deployed"] for t in trials) <= 2500
    methods = {entry.method for t in trials for entry in Recipe.from_dict(t["recipe"]).entries()}
    assert methods == {"deep_prompt", "lora", "serial_adapter"}
    assert result.confirmed
    assert result.winner in [Recipe.from_dict(t["recipe"]) for t in trials]
