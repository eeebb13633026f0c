"""S³PET's structure search: its sites, what it keeps, and on from where an earlier process ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from support.projecting import MINILM
from support.saved_model import small_search
from support.strategies import context_of
from transformers import T5Config

from autopeft.backbones import spec_of
from autopeft.counting import Budget, count
from autopeft.recipe import Recipe
from autopeft.runs.folder import load_run
from autopeft.search.api import search
from autopeft.search.core.jobs import JobResult
from autopeft.search.execution.runners import JobContext, runner_of
from autopeft.search.space.elastic import super_hybrid
from autopeft.search.space.space import Space
from autopeft.search.strategies import s3pet
from autopeft.search.strategies.gates import GateJob
from autopeft.search.strategies.s3pet import S3PETSearch, StructureJob
from autopeft.training import TrainingPlan


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[], S3PETSearch]:
    """The strategy on a model of six layers, with what an earlier process had left."""
    space = Space.named("s3pet").bind(MINILM)
    context = context_of(tmp_path, trials=1, space=space, budget=Budget.parse("9085"))
    return lambda: S3PETSearch.open(context)


def part(strategy: S3PETSearch) -> GateJob:
    job = strategy.next(room=True)
    assert isinstance(job, GateJob)
    return job


def searched(job: GateJob) -> JobResult:
    """A search that found FFN sites, in its second of three steps, and then those of attention."""
    assert job.gating is not None
    names = sorted(job.gating.group_of, key=lambda name: job.gating.group_of[name])  # type: ignore[union-attr]
    ffn = [0.9 if name.startswith(("up", "down")) else 0.1 for name in names]
    history = [[0.2] * len(names), ffn, [1 - p for p in ffn]]
    files = {"gates.json": json.dumps({"history": history, "kept": 1}).encode()}
    return JobResult(job.id, files=files, seconds=4.0, paused=True)


def test_the_space_is_the_published_one() -> None:
    t5_large = T5Config(d_model=1024, d_ff=4096, d_kv=64, num_heads=16, num_layers=24, num_decoder_layers=24)
    for spec, sites, parameters in ((spec_of(t5_large), 288, 884_736), (MINILM, 36, 41_472)):
        bound = Space.named("s3pet").bind(spec)
        found = super_hybrid(bound, None)
        recipe = bound.materialize(found.values)
        assert (len(found.units), found.deployed, found.fixed) == (sites, parameters, 0)
        assert {entry.item.config["alpha"] for entry in recipe.entries()} == {16}


def test_the_best_sites_that_fit_are_trained_anew(opened: Callable[[], S3PETSearch]) -> None:
    strategy = opened()
    first = part(strategy)
    assert isinstance(first, StructureJob)
    assert (first.start, first.until, first.steps) == (0, None, 30)
    assert first.gating is not None
    assert (len(first.gating.sizes), sum(first.gating.sizes)) == (36, 41_472)
    assert first.gating.budget == pytest.approx(9085, rel=2e-7)
    assert (first.gating.held_out, first.gating.first, first.gating.last) == (0.5, 0, 30)
    strategy.complete(first, searched(first))

    second = part(opened())  # as an earlier process left it
    assert second == part(strategy)
    assert (second.start, second.steps, second.files, second.gating) == (0, 60, None, None)
    recipe = Recipe.from_dict(dict(second.recipe))
    kept = [entry.name.split("_")[0] for entry in recipe.entries()]
    assert kept.count("up") + kept.count("down") == 4, "1,920 each"
    assert count(recipe, MINILM).deployed == 4 * 1920 + 768

    strategy.complete(second, JobResult(second.id, {"select": 0.75}, seconds=2.0, files={"weights": b""}))
    assert strategy.next(room=True) is None
    assert strategy.finished
    (record,) = strategy.updates()
    assert (record.state, record.score, record.seconds) == ("complete", 0.75, 6.0)
    assert strategy.candidates(3) == [record]


def test_a_search_ends_with_a_recipe_of_its_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    more: dict[str, Any] = {
        "steps": 20,
        "strategy": "s3pet",
        "budget": 300,
        "baselines": "none",
        "workers": 0,
    }
    small = small_search(tmp_path, trials=1, **more)
    result = search(**{name: value for name, value in small.items() if name != "space"})
    (trial,) = load_run("run").lines("trials.jsonl")
    assert (trial["state"], trial["steps"]) == ("complete", 20)
    assert 0 < trial["counts"]["deployed"] <= 300
    assert result.winner == Recipe.from_dict(trial["recipe"])
    (line,) = [json.loads(text) for text in Path("run/gates.jsonl").read_text().splitlines()]
    assert len(line["probabilities"]) == 10
    assert line["probabilities"][0] != line["probabilities"][-1]


def test_the_first_of_the_best_scores_says_which_probabilities_are_kept(
    opened: Callable[[], S3PETSearch], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(context: JobContext, job: StructureJob, *, policies: Any, on_score: Any) -> JobResult:
        assert context.plan.eval_every == 3
        policies[0].history = [[step / 100] for step in range(1, 31)]
        for step, score in ((3, 0.5), (6, 0.7), (9, 0.7), (12, 0.6)):
            on_score(step, score)
        return JobResult(job.id, {"select": 0.6})

    monkeypatch.setattr(s3pet, "train", trained)
    plan, none = TrainingPlan(steps=30, batch_size=8, device="cpu"), cast(Any, None)
    context = JobContext(none, none, plan, none, none)
    result = runner_of(StructureJob)(context, part(opened()))
    told = json.loads(result.files["gates.json"])
    assert told["history"][told["kept"]] == [0.06]
    assert result.paused
