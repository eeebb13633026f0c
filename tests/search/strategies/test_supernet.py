"""A supernet's members: what is trained, how evolution chooses, and where a search goes on."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.projecting import MINILM, SIX
from support.saved_model import small_search
from support.strategies import context_of
from transformers import AutoConfig

from autopeft.backbones import spec_of
from autopeft.counting import Budget, count
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.runs.folder import load_run
from autopeft.search.api import search
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.space.space import Space
from autopeft.search.strategies.supernet import Levels, MemberJob, SupernetJob, SupernetSearch

SMALL = "name: small\nlayers: [{each_layer: [{lora: {rank: {choice: [0, 1]}}}]}]\n"
OTHER = """
name: other
layers:
  - each_layer: [{lora: {rank: {choice: [0, 1, 8]}}}, {vera: {rank: {choice: [0, 64, 256]}}}]
"""
THREE = """
name: three
layers:
  - at: first 3
    each_layer: [{lora: {rank: {choice: [0, 1, 2, 4]}, sites: [q]}}]
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    more = {"steps": 20, "strategy": "supernet", "budget": 1200, "baselines": "none", "workers": 0}
    small = small_search(tmp_path, trials=12, **more)
    return {name: value for name, value in small.items() if name != "space"}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., SupernetSearch]:
    """The strategy on a model of six layers, with what an earlier process had left."""
    context = context_of(tmp_path, trials=24)
    return lambda **more: SupernetSearch.open(replace(context, **more))


def merit(levels: Levels) -> float:
    """What is planted: units add to it, each with a size of its own that is worth most."""
    wanted = [random.Random(i).randrange(4) for i in range(len(levels))]
    return -float(sum(abs(level - size) for level, size in zip(levels, wanted, strict=True)))


def play(strategy: SupernetSearch, *, most: int = 10_000) -> Iterator[Job]:
    """Do what it asks for, one job at a time, and give the jobs."""
    while most and (job := strategy.next(room=True)) is not None:
        most -= 1
        yield job
        strategy.complete(job, played(strategy, job))


def played(strategy: SupernetSearch, job: Job) -> JobResult:
    if isinstance(job, SupernetJob):
        return JobResult(job.id, files={"checkpoint": str(job.until).encode()}, seconds=4.0, paused=True)
    assert isinstance(job, MemberJob)
    found = merit(strategy._members[job.number or 0])
    return JobResult(job.id, {"select": found}, seconds=1.0, files={"weights": b""})


def test_members_are_scored_by_weights_that_they_share(arguments: dict[str, Any]) -> None:
    result = search(**{**arguments, "confirm": 3, "rank_by": "loss"})
    trials = load_run("run").lines("trials.jsonl")
    assert [(t["state"], t["number"], t["steps"]) for t in trials] == [("estimated", i, 0) for i in range(12)]
    bound = Space.named("gates").bind(spec_of(AutoConfig.from_pretrained("model")))
    for trial in trials:
        assert 0 < trial["counts"]["deployed"] <= 1200
        assert bound.materialize(trial["values"]).hash() == Recipe.from_dict(trial["recipe"]).hash()
    assert len({t["hash"] for t in trials}) == 12
    assert len({t["merits"]["0"] for t in trials}) == 12, "each has weights of its own"
    assert not result.front, "estimates are no trials"
    assert result.confirmed
    assert result.number is not None
    assert result.winner == Recipe.from_dict(trials[result.number]["recipe"])
    finals = load_run("run").lines("finals.jsonl")
    assert sum(run["kind"] == "confirm" for run in finals) == 3
    if len({run["score"] for run in finals if run["kind"] == "confirm"}) > 1:
        assert any("rank correlation" in remark for remark in result.remarks)


def test_a_search_that_was_stopped_among_members_goes_on_alike(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(**arguments)
    scored = SupernetSearch.complete

    def stopping(strategy: SupernetSearch, job: Job, result: JobResult) -> None:
        scored(strategy, job, result)
        if job.number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(SupernetSearch, "complete", stopping)
        assert search(**{**arguments, "out": "again"}).interrupted
    again = search(resume="again")
    first, second = (load_run(run).lines("trials.jsonl") for run in ("run", "again"))
    assert [(t["hash"], t["score"]) for t in first] == [(t["hash"], t["score"]) for t in second]
    assert whole.winner == again.winner


def test_every_step_trains_a_member_of_any_size(opened: Callable[..., SupernetSearch]) -> None:
    strategy = opened()
    parts = [job for job in play(strategy) if isinstance(job, SupernetJob)]
    assert [(job.steps, job.start, job.until) for job in parts] == [
        (240, 60 * i, 60 * (i + 1)) for i in range(4)
    ]
    largest = Recipe.from_dict(dict(parts[0].recipe))
    whole = {entry.name: entry.item for entry in largest.entries()}
    assert count(largest, MINILM).deployed <= 3 * 113_566
    assert parts[0].files is None
    assert parts[1].files is not None
    members = [member for job in parts for member in job.members]
    assert len(members) == 240
    assert len({member.recipe.hash() for member in members}) > 235
    sizes = [count(member.recipe, MINILM).deployed for member in members]
    assert min(sizes) < 113_566 < max(sizes)
    assert sum(sizes) / 240 == pytest.approx(113_566, rel=0.25), "about a budget"
    for member in members[:20]:
        for entry in member.recipe.entries():
            assert whole[member.origin[entry.name]].method == entry.item.method


def test_the_series_of_members_follows_from_the_seed(tmp_path: Path) -> None:
    opened = (SupernetSearch.open(context_of(tmp_path, trials=24, seed=seed)) for seed in (3, 3, 4))
    first, again, other = (list(play(strategy, most=8)) for strategy in opened)
    assert first == again
    assert first[0].members != other[0].members  # type: ignore[attr-defined]
    assert [job.recipe for job in first[4:]] != [job.recipe for job in other[4:]]


def test_members_fit_the_budget_and_none_comes_twice(opened: Callable[..., SupernetSearch]) -> None:
    recipes = [Recipe.from_dict(dict(j.recipe)) for j in play(opened()) if isinstance(j, MemberJob)]
    assert len(recipes) == 24
    assert len({recipe.hash() for recipe in recipes}) == 24
    assert max(count(recipe, MINILM).deployed for recipe in recipes) <= 113_566


def test_evolution_finds_what_is_planted(tmp_path: Path) -> None:
    """On three layers of three sizes all of it, in half of the members; else more than chance does."""
    few = context_of(tmp_path, trials=30, space=Space.from_yaml(THREE).bind(SIX), budget=Budget.parse("450"))
    strategy = SupernetSearch.open(few)
    for _ in play(strategy):
        pass
    assert 0.0 in {record.score for record in strategy.records()}

    gained = []
    for seed in range(4):
        strategy, blind = (SupernetSearch.open(context_of(tmp_path, trials=100, seed=seed)) for _ in "ab")
        blind._evolution = blind._evolution.model_copy(update={"population": 100})
        found = []
        for one in (strategy, blind):
            for _ in play(one):
                pass
            found.append(max(record.score for record in one.records() if record.score is not None))
        gained.append(found[0] - found[1])
    assert min(gained) >= 0
    assert sum(gained) / 4 > 3


@pytest.mark.parametrize("jobs", [1, 4, 7, 12, 27])
def test_it_goes_on_where_an_earlier_process_ended(opened: Callable[..., SupernetSearch], jobs: int) -> None:
    strategy = opened()
    for _ in play(strategy, most=jobs):
        pass
    begun_anew = opened(past=strategy.records())
    assert begun_anew.launched == max(0, jobs - 4)
    job, expected = begun_anew.next(room=True), strategy.next(room=True)
    assert job == expected
    assert job is not None
    # What is cut off is done again.
    begun_anew.complete(job, JobResult(job.id, error="Ctrl-C", failure="stopped"))
    assert opened(past=strategy.records()).next(room=True) == expected


def test_a_generation_waits_for_all_of_the_last(opened: Callable[..., SupernetSearch]) -> None:
    strategy = opened()
    for _ in play(strategy, most=4):
        pass
    generation = []
    while (job := strategy.next(room=True)) is not None:
        generation.append(job)
    assert len(generation) == strategy._evolution.population == 10
    assert not strategy.finished
    for job in generation[1:]:
        strategy.complete(job, played(strategy, job))
    assert strategy.next(room=True) is None
    strategy.complete(generation[0], JobResult(generation[0].id, error="NaN", failure="non_finite"))
    assert strategy.next(room=True) is not None, "what fails holds no generation up"
    assert [record.state for record in strategy.updates()].count("failed") == 1


def test_without_a_supernet_nothing_is_ranked(opened: Callable[..., SupernetSearch]) -> None:
    strategy = opened()
    job = strategy.next(room=True)
    assert job is not None
    assert strategy.next(room=True) is None, "its parts follow each other"
    strategy.complete(job, JobResult(job.id, error="NaN", failure="non_finite"))
    assert strategy.next(room=True) is None
    assert strategy.finished
    (record,) = strategy.updates()
    assert record.state == "failed"
    assert strategy.candidates(1) == []


def test_without_time_no_further_member_is_scored(opened: Callable[..., SupernetSearch]) -> None:
    strategy = opened()
    for _ in play(strategy, most=6):
        pass
    assert strategy.next(room=False) is None
    assert strategy.finished
    assert strategy.out_of_time
    assert len(strategy.candidates(9)) == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": OTHER}, "Sizes of vera that differ in rank share no weights"),
        ({"space": SMALL}, "more parameters together than the budget"),
        ({"warm_start": ["mam"]}, "cannot begin with mam"),
    ],
)
def test_what_shares_no_weights_is_said_before_anything_is_trained(
    arguments: dict[str, Any], changed: dict[str, Any], said: str
) -> None:
    if "space" in changed:
        changed = {"space": Space.from_yaml(changed["space"])}
    with pytest.raises(UsageError, match=said):
        search(**{**arguments, **changed})
