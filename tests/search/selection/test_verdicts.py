from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from autopeft.runs.records import TrialRecord
from autopeft.search.core.goals import Goal
from autopeft.search.core.jobs import JobResult
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline, BaselineKind
from autopeft.search.selection.contender import RepeatedRuns
from autopeft.search.selection.finalists import Finalist
from autopeft.search.selection.verdicts import ENOUGH, LEAST_WEIGHT, Judge, best_baseline, chosen, verdicts
from autopeft.tasks.scored import ScoredSplit

SEEDS = (1000, 1001, 1002)


def winner(finalists: Sequence[Finalist], races: Sequence[BaselineRuns] = ()) -> RepeatedRuns | None:
    found = chosen("best", verdicts(finalists, races, Judge()))
    return None if found is None else found.runs


def finalist(number: int, scores: list[float | None], deployed: int = 10) -> Finalist:
    found = Finalist(TrialRecord("trial", "t", "complete", {}, number, counts={"deployed": deployed}))
    for job, score in zip(found.jobs(range(len(scores)), 10), scores, strict=True):
        failed = JobResult(job.id, error="boom", failure="failed")
        found.take(failed if score is None else JobResult(job.id, {"select": score}))
    return found


def test_the_best_mean_wins_and_of_equals_the_smaller() -> None:
    low, high, small = finalist(0, [0.5, 0.5]), finalist(1, [0.5, 0.75]), finalist(2, [0.625, 0.625], 3)
    assert winner([low, high]) is high
    assert winner([low, high, small]) is small


def test_of_wholly_equal_finalists_the_first_wins() -> None:
    """They come as the search ranked them."""
    first, second = finalist(7, [0.5]), finalist(3, [0.5])
    assert winner([first, second]) is first


def test_one_whose_runs_partly_failed_comes_after_the_others() -> None:
    partly, whole = finalist(0, [0.9, None]), finalist(1, [0.5, 0.5])
    assert winner([partly, whole]) is whole
    assert winner([partly]) is partly
    assert winner([finalist(0, [None])]) is None


def searched(number: int, score: float, fresh: list[float]) -> Finalist:
    found = Finalist(TrialRecord("trial", "t", "complete", {}, number, score=score, counts={"deployed": 10}))
    for job, value in zip(found.jobs(range(len(fresh)), 10), fresh, strict=True):
        found.take(JobResult(job.id, {"select": value}))
    return found


def test_the_score_of_the_search_counts_as_one_more_seed() -> None:
    lucky, steady = searched(0, 0.9, [0.7, 0.7, 0.7]), searched(1, 0.8, [0.72, 0.72, 0.72])
    assert winner([steady, lucky]) is lucky, "3.0 of four seeds against 2.96"
    assert winner([searched(0, 0.9, [0.6, 0.7, 0.7]), steady]) is steady


def baseline(
    scores: Sequence[float],
    kind: BaselineKind = "lora",
    *,
    cost: float = 1.0,
    deployed: int = 100,
    index: int = 0,
) -> BaselineRuns:
    """A baseline of one recipe that has ended; its recipe says what a step costs."""
    found = BaselineRuns(
        index, Baseline(kind, ({"cost": cost, "kind": kind},), {"deployed": deployed}, kind=kind)
    )
    for job, score in zip(found.jobs(SEEDS[: len(scores)], 10), scores, strict=True):
        found.take(JobResult(job.id, {"select": score, "test": score}))
    return found


def confirmed(number: int, scores: Sequence[float], cost: float, deployed: int = 100) -> Finalist:
    record = TrialRecord("trial", "t", "complete", {"cost": cost}, number, counts={"deployed": deployed})
    found = Finalist(record)
    for job, score in zip(found.jobs(SEEDS[: len(scores)], 10), scores, strict=True):
        found.take(JobResult(job.id, {"select": score}))
    return found


ROWS = ScoredSplit("accuracy", 10_000)
JUDGE = Judge("cheapest", 0.01, ROWS, step_cost=lambda recipe: float(recipe["cost"]))
LEVEL = (0.80, 0.801, 0.802)
WORSE = (0.75, 0.751, 0.752)
BETTER = (0.85, 0.851, 0.852)


def test_lora_wins_where_nothing_promises_more() -> None:
    lora = baseline(LEVEL)
    assert winner([confirmed(0, WORSE, 1.0)], [lora]) is lora
    assert winner([confirmed(0, LEVEL, 1.0, deployed=3)], [lora]) is lora, "what is level does not beat it"
    better = confirmed(0, BETTER, 1.0)
    assert winner([better], [lora]) is better
    assert winner([], [lora]) is lora


def test_no_other_baseline_wins() -> None:
    found = confirmed(0, WORSE, 1.0)
    assert winner([found], [baseline(BETTER, "single"), baseline(BETTER, "middle")]) is found


ALMOST = (0.798, 0.799, 0.800)


def best(finalists: Sequence[Finalist], races: Sequence[BaselineRuns], **more: Any) -> RepeatedRuns:
    found = chosen("best", verdicts(finalists, races, replace(JUDGE, goal="best", **more)))
    assert found is not None
    return found.runs


def test_the_head_alone_wins_where_it_is_as_good() -> None:
    head, hybrid = baseline(ALMOST, "head", deployed=0), confirmed(0, LEVEL, 1.0)
    assert best([hybrid], [head]) is head
    assert best([hybrid], [baseline(WORSE), head]) is head
    assert best([confirmed(0, WORSE, 1.0)], [baseline(LEVEL), head]) is head, "as good as LoRA"
    assert best([hybrid], [baseline(BETTER, "head")]) is not hybrid


def test_a_hybrid_that_is_better_by_more_than_noise_stays_the_winner() -> None:
    """However wide the margin is."""
    head, hybrid = baseline(LEVEL, "head", deployed=0), confirmed(0, BETTER, 1.0)
    for margin in (0.01, 0.1):
        assert best([hybrid], [head], margin=margin) is hybrid
        assert best([hybrid], [baseline(WORSE), head], margin=margin) is hybrid


def test_lack_of_evidence_does_not_let_the_head_win() -> None:
    """Few rows, or seeds that lie far apart: that it is as good is not seen then."""
    head, hybrid = baseline(ALMOST, "head", deployed=0), confirmed(0, LEVEL, 1.0)
    assert best([hybrid], [head], select=ScoredSplit("accuracy", 100)) is hybrid
    assert (
        best([confirmed(0, ALMOST, 1.0)], [baseline(LEVEL, "head")], select=ScoredSplit("accuracy", 100))
        is not hybrid
    )
    wide = baseline((0.72, 0.79, 0.86), "head", deployed=0)
    assert best([confirmed(0, (0.74, 0.81, 0.88), 1.0)], [wide]) is not wide


def test_the_head_alone_wins_inside_the_budget_alone() -> None:
    head, hybrid = baseline(BETTER, "head", deployed=0, cost=0.2), confirmed(0, LEVEL, 1.0)
    assert best([hybrid], [head], inside=lambda recipe: recipe["cost"] >= 1) is hybrid


def test_a_head_alone_that_lost_a_run_does_not_pass_for_as_good() -> None:
    head, hybrid = baseline(ALMOST, "head", deployed=0), confirmed(0, LEVEL, 1.0)
    head.runs[next(iter(head.runs))].select = None
    assert best([hybrid], [head]) is hybrid


@pytest.mark.parametrize("goal", ["best", "smallest", "cheapest"])
@pytest.mark.parametrize("kind", ["lora", "single"])
def test_a_baseline_outside_the_limits_is_measured_by_and_never_returned(
    goal: Goal, kind: BaselineKind
) -> None:
    race, found = baseline(BETTER, kind, cost=0.2, deployed=1), confirmed(0, LEVEL, 1.0)
    judge = replace(JUDGE, goal=goal)
    inside = verdicts([found], [race], judge)
    assert (race in [verdict.runs for verdict in inside]) == (kind == "lora" or goal != "best")
    outside = verdicts([found], [race], replace(judge, inside=lambda recipe: recipe["cost"] >= 1))
    assert [verdict.runs for verdict in outside] == [found]
    assert outside[0].beside is not None
    assert outside[0].beside.difference == pytest.approx(-0.05)


@pytest.mark.parametrize(("goal", "number"), [("best", 0), ("smallest", 1), ("cheapest", 2)])
def test_each_goal_has_its_answer_from_the_same_runs(goal: str, number: int) -> None:
    finalists = [
        confirmed(0, (0.86, 0.861, 0.862), 1.5, 300),
        confirmed(1, BETTER, 1.2, 20),
        confirmed(2, LEVEL, 0.5, 200),
        confirmed(3, WORSE, 0.1, 1),
    ]
    found = verdicts(finalists, [baseline(LEVEL)], JUDGE)
    verdict = chosen(goal, found)  # type: ignore[arg-type]
    assert verdict is not None
    assert verdict.runs.number == number


def test_a_cheap_recipe_that_is_not_within_the_margin_does_not_win() -> None:
    lora = baseline(LEVEL)
    found = chosen("cheapest", verdicts([confirmed(0, WORSE, 0.3)], [lora], JUDGE))
    assert found is not None
    assert found.runs is lora, "the best baseline is within the margin of itself"


def test_the_margin_is_that_of_the_best_baseline_and_not_of_lora() -> None:
    """Neither the trial nor LoRA is within the margin of it then; it is itself, and is returned."""
    races = [baseline(WORSE), baseline(BETTER, "single", index=1)]
    assert best_baseline(races) is races[1]
    found = verdicts([confirmed(0, LEVEL, 0.3)], races, JUDGE)
    assert [v.sure for v in found] == [True, False, False]
    verdict = chosen("cheapest", found)
    assert verdict is not None
    assert verdict.runs is races[1]


def test_of_costs_that_predictions_cannot_tell_apart_the_better_recipe_wins() -> None:
    first, second = confirmed(0, LEVEL, 0.50), confirmed(1, BETTER, 0.62)
    found = chosen("cheapest", verdicts([first, second], [baseline(LEVEL)], JUDGE))
    assert found is not None
    assert found.runs is second
    third = confirmed(2, BETTER, 0.64)
    found = chosen("cheapest", verdicts([first, third], [baseline(LEVEL)], JUDGE))
    assert found is not None
    assert found.runs is first


@pytest.mark.parametrize("measured", [True, False])
def test_what_takes_longer_than_the_best_baseline_is_not_the_cheapest(measured: bool) -> None:
    """It was predicted to be as cheap, and promises more. Where the baseline may not be returned, it is."""
    lora, slow = baseline(LEVEL), confirmed(0, BETTER, 1.0 if measured else 1.04)
    for side, seconds in ((lora, 2.0), (slow, 2.2)) if measured else ():
        for run in side.runs.values():
            run.measured = {"step_time": seconds}
    inside = chosen("cheapest", verdicts([slow], [lora], JUDGE))
    assert inside is not None
    assert inside.runs is lora
    outside = chosen("cheapest", verdicts([slow], [lora], replace(JUDGE, inside=lambda r: "kind" not in r)))
    assert outside is not None
    assert outside.runs is slow


def test_rows_that_tell_nothing_let_nothing_pass() -> None:
    """Before anything is seen, a recipe is within the margin with a probability of 84 %, which is enough.
    Shares of right answers that lie about 0.8 differ with a variance of some 0.32 / n; where that is the
    margin's square, half of the difference counts."""
    for rows, sure in ((20, False), (300, False), (420, True), (10_000, True)):
        judge = replace(JUDGE, margin=0.03, select=ScoredSplit("accuracy", rows))
        found = verdicts([confirmed(0, LEVEL, 0.1)], [baseline(LEVEL)], judge)
        ((beside, counts),) = [(v.beside, v.sure) for v in found if v.beside is not None]
        assert beside.within > ENOUGH
        assert (beside.weight >= LEAST_WEIGHT) == counts == sure


def test_without_baselines_the_margin_is_that_of_the_best() -> None:
    best, cheap, poor = confirmed(0, BETTER, 1.0), confirmed(1, BETTER, 0.5), confirmed(2, WORSE, 0.1)
    found = chosen("cheapest", verdicts([best, cheap, poor], [], JUDGE))
    assert found is not None
    assert found.runs is cheap


def test_a_seed_that_one_recipe_loses_says_nothing_of_the_others() -> None:
    steady = [confirmed(i, LEVEL, 0.5 + i / 10) for i in range(3)]
    fallen = confirmed(9, (0.80, 0.45, 0.802), 0.1)
    found = verdicts([*steady, fallen], [baseline(LEVEL)], JUDGE)
    within = {v.runs.number: v.beside.within for v in found if v.beside is not None}
    assert all(within[i] > 0.95 for i in range(3))
    assert within[9] < 0.5
    verdict = chosen("cheapest", found)
    assert verdict is not None
    assert verdict.runs.number == 0


def test_one_whose_runs_partly_failed_is_not_the_cheapest() -> None:
    partly = confirmed(0, LEVEL, 0.1)
    partly.runs[next(iter(partly.runs))].select = None
    lora = baseline(LEVEL)
    found = chosen("cheapest", verdicts([partly], [lora], JUDGE))
    assert found is not None
    assert found.runs is lora


def test_nothing_is_cheapest_where_no_cost_is_known() -> None:
    found = verdicts([confirmed(0, LEVEL, 0.5)], [baseline(LEVEL)], Judge(select=ROWS))
    assert chosen("cheapest", found) is None
    assert chosen("smallest", found) is not None


def test_without_predictions_what_was_measured_in_all_runs_tells() -> None:
    lora, quick = baseline(LEVEL), confirmed(0, LEVEL, 1.0)
    for side, seconds in ((lora, 2.0), (quick, 0.5)):
        for run in side.runs.values():
            run.measured = {"step_time": seconds}
    found = chosen("cheapest", verdicts([quick], [lora], Judge(select=ROWS)))
    assert found is not None
    assert (found.runs, found.step_cost, found.baseline_cost) == (quick, 0.5, 2.0)


def test_a_baseline_without_weights_is_measured_by_and_never_returned() -> None:
    race = BaselineRuns(0, Baseline("untuned", ({"name": "u"},), {"deployed": 0}, kind="untuned", shots=0))
    (job,) = race.jobs(SEEDS, 10)
    race.take(JobResult(job.id, {"select": 0.9, "test": 0.9}))
    own = finalist(0, [0.5, 0.5, 0.5])
    assert best_baseline([race]) is race
    for goal in ("best", "smallest"):
        found = verdicts([own], [race], Judge(goal=goal, select=ScoredSplit("accuracy", 1000)))  # type: ignore[arg-type]
        assert [v.runs for v in found] == [own]
        assert found[0].beside is not None
        assert not found[0].sure


def by_likelihood(number: int, score: float, fresh: list[float], **more: Any) -> Finalist:
    """A finalist whose trial was scored by what stands for the task's metric."""
    record = TrialRecord(
        "trial",
        "t",
        "complete",
        {},
        number,
        score=score,
        metric="likelihood",
        counts={"deployed": 10},
        **more,
    )
    found = Finalist(record)
    for job, value in zip(found.jobs(range(len(fresh)), 10), fresh, strict=True):
        merit = None if not more else -value
        found.take(JobResult(job.id, {"select": value}, merit=merit))
    return found


def test_a_score_of_another_metric_counts_for_nothing() -> None:
    lucky, steady = by_likelihood(0, 0.99, [0.6, 0.6]), by_likelihood(1, 0.01, [0.61, 0.61])
    assert lucky.ranks == [0.6, 0.6]
    assert winner([lucky, steady]) is steady


def test_losses_are_compared_whatever_the_metrics_are() -> None:
    """Where the user ranks by the loss, trials and fresh seeds have the same measure."""
    found = by_likelihood(0, 0.9, [0.5], steps=10, merits={"10": -0.25})
    assert found.ranks == [-0.25, -0.5]


def test_a_sweep_by_another_metric_chooses_and_counts_for_nothing_more() -> None:
    race = BaselineRuns(0, Baseline("LoRA", ({"name": "a"}, {"name": "b"}), {"deployed": 10}))
    while jobs := race.sweep_jobs(0, 10):
        for job in jobs:
            score = {"a": 0.25, "b": 0.75}[job.recipe["name"]]
            race.take(JobResult(job.id, {"select": score}, metric="likelihood"))
    (record, _) = race.swept_candidates(10)
    assert (record.metric, record.score, record.merits) == ("likelihood", 0.75, {})
    (job,) = race.jobs((1000,), 10)
    race.take(JobResult(job.id, {"select": 0.5, "test": 0.5}))
    assert race.recipe == {"name": "b"}
    assert race.ranks == [0.5]
