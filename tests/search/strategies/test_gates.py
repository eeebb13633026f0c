"""Gated trainings: what they keep, from part to part, and on from where an earlier process ended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.projecting import MINILM
from support.saved_model import small_search
from support.strategies import context_of
from transformers import AutoConfig

from autopeft.backbones import spec_of
from autopeft.counting import count
from autopeft.errors import UsageError
from autopeft.recipe import Recipe
from autopeft.runs.folder import load_run
from autopeft.search.api import search
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.space.space import Space
from autopeft.search.strategies.gates import GateJob, GateSearch

CHAIN = "name: chains\nlayers: [{each_layer: [{optional: {chain: [{lora: {rank: 4}}, ia3]}}]}]\n"
SMALL = "name: small\nlayers: [{each_layer: [{lora: {rank: {choice: [0, 1]}}}]}]\n"
PREFIX = """
name: prefix
layers:
  - each_layer:
      - {lora: {rank: {choice: [0, 4, 8]}}}
      - {prefix_tuning: {length: {choice: [0, 8]}}}
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    more = {"steps": 20, "strategy": "gates", "budget": 1200, "baselines": "none", "workers": 0}
    small = small_search(tmp_path, trials=2, **more)
    return {name: value for name, value in small.items() if name != "space"}


def test_two_trainings_end_inside_the_budget_as_estimates(arguments: dict[str, Any]) -> None:
    result = search(**arguments)
    run = load_run("run")
    trials = run.lines("trials.jsonl")
    assert [(t["state"], t["number"], t["steps"]) for t in trials] == [
        ("estimated", 0, 20),
        ("estimated", 1, 20),
    ]
    bound = Space.named("gates").bind(spec_of(AutoConfig.from_pretrained("model")))
    for trial in trials:
        assert 900 < trial["counts"]["deployed"] <= 1200
        assert bound.materialize(trial["values"]).hash() == Recipe.from_dict(trial["recipe"]).hash()
    rates = [t["recipe"]["training"]["learning_rate"] for t in trials]
    assert rates[0] != rates[1]
    assert not result.front, "estimates are no trials"
    assert result.confirmed
    assert result.number is not None
    assert result.winner == Recipe.from_dict(trials[result.number]["recipe"])
    lines = [json.loads(line) for line in Path("run/gates.jsonl").read_text().splitlines()]
    assert [line["trial"] for line in lines] == [0, 1]
    for line in lines:
        assert len(line["probabilities"]) == 12, "until the first blocks are left out"
        assert {len(p) for p in line["probabilities"]} == {len(line["blocks"])} == {len(line["layers"])}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., GateSearch]:
    """The strategy on a model of six layers, with what an earlier process had left."""
    context = context_of(tmp_path, trials=1)
    return lambda **more: GateSearch.open(replace(context, **more))


def played(job: Job, favoured: str = "adapter") -> JobResult:
    """A part as a worker returns it, with one kind of block more probable than the others."""
    assert isinstance(job, GateJob)
    if job.until is None:
        return JobResult(job.id, {"select": 0.75}, seconds=2.0, files={"weights": b""})
    files = {"checkpoint": b"", "trained.json": b"[]"}
    if job.gating is not None:
        groups = len(job.gating.sizes)
        names = sorted(job.gating.group_of, key=lambda name: job.gating.group_of[name])  # type: ignore[union-attr]
        p = [0.1] * groups
        for name in names:
            if name.startswith(favoured):
                p[job.gating.group_of[name]] = 0.9
        files["gates.json"] = json.dumps({"history": [[0.25] * groups, p], "kept": -1}).encode()
    return JobResult(job.id, files=files, seconds=4.0, paused=True)


def part(strategy: GateSearch) -> GateJob:
    job = strategy.next(room=True)
    assert isinstance(job, GateJob)
    return job


def test_what_is_most_probable_is_left_in_two_steps(opened: Callable[..., GateSearch]) -> None:
    strategy = opened()
    first = part(strategy)
    assert (first.id, first.start, first.until, first.seed) == ("trial-0-36", 0, 36, 3)
    assert strategy.next(room=True) is None, "its parts follow each other"
    sizes = [count(Recipe.from_dict(dict(first.recipe)), MINILM).deployed]
    assert first.gating is not None
    assert sum(first.gating.sizes) == sizes[0]
    assert first.gating.budget == 113_566
    assert (first.gating.first, first.gating.last) == (9, 36)
    strategy.complete(first, played(first))

    second = part(strategy)
    assert (second.id, second.start, second.until) == ("trial-0-45", 36, 45)
    assert second.gating is None
    assert set(second.gates.values()) == {0.1, 0.9}
    assert second.files is not None
    assert "checkpoint" in second.files
    strategy.complete(second, played(second))
    third = part(strategy)
    assert (third.id, third.start, third.until, third.keep_above) == ("trial-0", 45, None, -math.inf)
    assert not third.gates, "they are in the weights"
    sizes += [count(Recipe.from_dict(dict(job.recipe)), MINILM).deployed for job in (second, third)]
    assert sizes[0] <= 4 * 113_566
    assert sizes[1] <= 2 * 113_566
    assert 110_000 < sizes[2] <= 113_566
    kept = [entry.item for entry in Recipe.from_dict(dict(third.recipe)).entries()]
    adapters = [item.config["bottleneck"] for item in kept if item.method == "serial_adapter"]
    assert len(adapters) == 6, "what is most probable comes first"
    assert set(third.origin) == {entry.name for entry in Recipe.from_dict(dict(third.recipe)).entries()}

    strategy.complete(third, played(third))
    assert strategy.next(room=True) is None
    assert strategy.finished
    (record,) = strategy.updates()
    assert (record.state, record.score, record.number) == ("estimated", 0.75, 0)
    assert record.seconds == 10, "of all its parts"
    assert strategy.candidates(3) == [record]


@pytest.mark.parametrize("parts", [1, 2])
def test_it_goes_on_with_the_part_that_is_next(opened: Callable[..., GateSearch], parts: int) -> None:
    strategy = opened()
    for _ in range(parts):
        job = part(strategy)
        strategy.complete(job, played(job))
    begun_anew = opened()
    assert begun_anew.launched == 1
    job, expected = part(begun_anew), part(strategy)
    assert job == expected
    # Where a part is cut off it is trained again.
    begun_anew.complete(job, JobResult(job.id, error="Ctrl-C", failure="stopped"))
    assert part(opened()) == expected


def test_what_fails_is_told_and_ends_its_training(opened: Callable[..., GateSearch]) -> None:
    strategy = opened()
    job = part(strategy)
    strategy.complete(job, JobResult(job.id, error="NaN", failure="non_finite"))
    assert strategy.next(room=True) is None
    assert strategy.finished
    (record,) = strategy.updates()
    assert record.state == "failed"
    assert strategy.candidates(1) == []


def test_without_time_none_is_begun(opened: Callable[..., GateSearch]) -> None:
    strategy = opened()
    assert strategy.next(room=False) is None
    assert strategy.finished
    assert strategy.out_of_time


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": CHAIN}, "No gate can act on chain"),
        ({"space": PREFIX}, "No gate can act on prefix_tuning"),
        ({"space": SMALL}, "more parameters together than the budget"),
        ({"steps": 3}, "at least 4 steps"),
        ({"warm_start": ["mam"]}, "cannot begin with mam"),
    ],
)
def test_what_gates_cannot_choose_is_said_before_anything_is_trained(
    arguments: dict[str, Any], changed: dict[str, Any], said: str
) -> None:
    if "space" in changed:
        changed = {"space": Space.from_yaml(changed["space"])}
    with pytest.raises(UsageError, match=said):
        search(**{**arguments, **changed})
