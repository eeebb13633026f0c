"""Strategies by name, and one of another package through the whole of a search with made-up scores."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from support.landscape import bound_space
from support.registries import keep
from support.searching import Events, MemoryCheckpoints, Stage, lora

from autopeft.counting import Budget
from autopeft.effort import Effort
from autopeft.errors import UsageError
from autopeft.hybrid.store import WEIGHTS
from autopeft.runs.records import TrialRecord
from autopeft.search.controller.controller import Controller
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.execution import runners
from autopeft.search.execution.runners import JobContext, runner_of
from autopeft.search.optimization.pareto import pareto_front
from autopeft.search.optimization.samplers import SAMPLERS
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.stages import STAGES
from autopeft.search.strategies.contract import StrategyContext
from autopeft.search.strategies.registry import STRATEGIES, register
from autopeft.search.strategies.trials import Trials

TOYS = Path(__file__).parents[2] / "plugins" / "toys"
SPACE = bound_space("lora")
EFFORT = Effort("tiny", 8, 10, None, None, None, top=2, seeds=2, rates=2)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, STRATEGIES, SAMPLERS, STAGES)
    monkeypatch.setattr(runners, "_RUNNERS", dict(runners._RUNNERS))


@pytest.fixture
def toys(own_registry: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The strategy's module, imported as its entry point imports it; the sampler's beside it."""
    monkeypatch.syspath_prepend(str(TOYS))
    from autopeft_toys import sampler, shared, stage, strategy  # type: ignore[import-not-found]  # noqa: F401

    yield strategy
    for name in [name for name in sys.modules if name.partition(".")[0] == "autopeft_toys"]:
        sys.modules.pop(name)


def stage(tmp_path: Path, past: list[TrialRecord], name: str = "toy", **more: Any) -> Stage:
    events, checkpoints = Events(), more.pop("checkpoints", None) or MemoryCheckpoints()
    records: list[TrialRecord] = []
    context = StrategyContext(
        space=SPACE,
        budget=Budget.parse("3%"),
        effort=EFFORT,
        seed=3,
        sampler="toy",
        rungs=Rungs.of(EFFORT.steps, "none"),
        objectives=1,
        folder=tmp_path,
        checkpoints=checkpoints,
        first=[] if past else [SPACE.middle()],
        past=past,
    )
    strategy = STRATEGIES.find(name).open(context)
    baselines = [Baseline("baseline", (lora(100).to_dict(),), {"deployed": 5})]
    controller = Controller(
        strategy, EFFORT, baselines, events, checkpoints, records.append, seed=3, workers=2, **more
    )
    return Stage(controller, events, checkpoints, records)


def score(job: Job) -> JobResult:
    """Higher for larger recipes, and a little lower for later seeds."""
    made = 0.5 + float((job.counts or {}).get("deployed", 0)) / 1e6 - job.seed / 1e7
    return JobResult(job.id, dict.fromkeys(job.splits, made), seconds=1.0, files={WEIGHTS: b"1"})


def test_a_strategy_of_another_package_through_a_whole_search(
    toys: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    play = stage(tmp_path, [])
    play.play(score)
    trials = [r for r in play.records if r.kind == "trial"]
    assert [r.number for r in trials] == list(range(8))
    assert len({r.hash for r in trials}) == 8
    first = play.jobs[0]
    assert isinstance(first, toys.TwiceJob)
    assert first.seeds == (3, 4)
    assert trials[0].values == SPACE.middle()
    best = max(trials, key=lambda r: r.score or 0.0)
    winner = play.controller.selection.winner
    assert winner is not None
    assert winner.number == best.number
    kinds = [job.kind for job in play.jobs]
    assert [kinds.count(kind) for kind in ("trial", "confirm", "test")] == [8, 4 + 2, 2]
    assert kinds.count("baseline") == 2
    assert next(e[1] for e in play.events.seen if e[0] == "phase") == "search"
    assert play.controller.finished
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_it_goes_on_with_what_it_had(toys: Any, tmp_path: Path) -> None:
    begun = stage(tmp_path, [])
    given: list[Job] = []

    def cut_off(job: Job) -> JobResult:
        given.append(job)
        if len(given) == 4:
            begun.controller.interrupt()
        return score(job)

    begun.play(cut_off)
    begun.controller.abandon()
    past = [r for r in begun.records if r.kind == "trial"]
    assert 4 <= len(past) < 8
    again = stage(tmp_path, past)
    strategy = again.controller.strategy
    assert strategy.records() == past
    assert strategy.launched == len(past)
    again.play(score, workers=1)
    trials = strategy.records()
    assert trials[: len(past)] == past
    assert [r.number for r in trials] == list(range(8))
    best = max(past, key=lambda r: r.score or 0.0)
    told = [k for k, v in (trials[len(past)].values or {}).items() if v != (best.values or {})[k]]
    assert len(told) <= 1
    assert again.controller.selection.winner is not None


def test_a_stage_of_another_package_gives_a_recipe_that_may_win(toys: Any, tmp_path: Path) -> None:
    """It runs before the winner is chosen, is recorded, and what it did is not done again."""

    def student_wins(job: Job) -> JobResult:
        made = score(job)
        taught = job.id.startswith("confirm-student")
        return JobResult(job.id, {k: v + taught for k, v in made.scores.items()}, files={WEIGHTS: b"s"})

    play = stage(tmp_path, [])
    play.play(student_wins)
    taught = [job for job in play.jobs if type(job).__name__ == "StudentJob"]
    assert [job.seed for job in taught] == [1003, 1004]
    winner = play.controller.selection.winner
    assert winner is not None
    assert winner.name == "student"
    assert len(winner.contender().test) == 2
    assert [r.label for r in play.records if r.kind == "confirm"][-2:] == [
        "student, seed 1003",
        "student, seed 1004",
    ]
    known = {job.id: student_wins(job) for job in play.jobs if job.kind != "trial"}
    past = [r for r in play.records if r.kind == "trial"]
    again = stage(tmp_path, past, recall=lambda job: known.get(job.id))
    again.play(student_wins)
    assert again.jobs == []
    assert again.controller.selection.winner is not None
    assert again.controller.selection.winner.contender() == winner.contender()


def test_candidates_that_share_weights_are_estimated_and_the_best_are_trained(
    toys: Any, tmp_path: Path
) -> None:
    """An interrupted search keeps the shared weights and what was estimated by them."""

    def larger_is_better(job: Job) -> JobResult:
        rank = job.recipe["layers"][0]["attach"][0]["lora"]["rank"]
        made = 0.0 if job.kind == "baseline" else rank / 10 + job.seed / 1e6
        return replace(score(job), scores=dict.fromkeys(job.splits, made))

    begun, given = stage(tmp_path, [], "shared"), list[Job]()

    def cut_off(job: Job) -> JobResult:
        given.append(job)
        if len(given) == 3:
            begun.controller.interrupt()
        return larger_is_better(job)

    begun.play(cut_off, workers=1)
    past = [r for r in begun.records if r.kind == "trial"]
    assert [(r.number, r.state) for r in past] == [(0, "estimated"), (1, "estimated")]
    again = stage(tmp_path, past, "shared", checkpoints=begun.checkpoints)
    again.play(larger_is_better)
    trials = [job.label for job in again.jobs if job.kind == "trial"]
    assert trials == ["trial 2"], "neither the shared weights nor what they told is made again"
    trained = [r.label for r in again.records if r.kind == "confirm"]
    assert trained == [f"finalist {n}, seed {seed}" for n in (2, 1) for seed in (1003, 1004)]
    winner = again.controller.selection.winner
    assert winner is not None
    assert winner.number == 2
    assert pareto_front(again.controller.strategy.records()) == [], "an estimate is never on the front"


def test_it_ends_without_time_and_without_anything_new(toys: Any, tmp_path: Path) -> None:
    late = stage(tmp_path, [], seconds=1e-9)
    late.play(score)
    assert late.controller.strategy.out_of_time
    assert late.controller.strategy.launched < 8


def test_a_failed_candidate_is_a_record_and_the_search_goes_on(toys: Any, tmp_path: Path) -> None:
    def failing(job: Job) -> JobResult:
        if job.number == 2:
            return JobResult(job.id, error="no", failure="failed")
        return score(job)

    play = stage(tmp_path, [])
    play.play(failing)
    states = [r.state for r in play.records if r.kind == "trial"]
    assert sorted(states) == ["complete"] * 7 + ["failed"]
    assert play.controller.first_error == "no"


def test_its_jobs_are_run_by_its_own_runner(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, int]] = []
    steps: list[int] = []

    def train(context: JobContext, job: TrainJob) -> JobResult:
        trained.append((job.seed, job.steps))
        context.on_step(job.steps, 0.5)
        return JobResult(job.id, {"select": float(job.seed)})

    monkeypatch.setitem(runners._RUNNERS, TrainJob, train)
    job = toys.TwiceJob("trial-0", "trial", "trial 0", {}, 3, 10, seeds=(3, 4))
    context = JobContext(None, None, None, lambda p: None, lambda n, loss: steps.append(n))  # type: ignore[arg-type]
    assert runner_of(type(job))(context, job).scores == {"select": 3.5}
    assert (trained, steps) == ([(3, 5), (4, 5)], [5, 10])


def test_names_and_what_a_strategy_needs(own_registry: None) -> None:
    assert STRATEGIES.names()[-1] == "trials"
    assert STRATEGIES.find("trials") is Trials
    with pytest.raises(UsageError, match=r"no strategy 'trails'\. Did you mean 'trials'"):
        STRATEGIES.find("trails")
    with pytest.raises(UsageError, match="'trials' is taken by autopeft"):
        register("trials")(type("Other", (), {}))
    with pytest.raises(UsageError, match="lower-case identifier, but got 'My own'"):
        register("My own")(type("Other", (), {}))
    with pytest.raises(UsageError, match=r"\(Other\) lacks open"):
        register("other")(type("Other", (), {}))
    assert "other" not in STRATEGIES.names()
