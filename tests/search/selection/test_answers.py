from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from autopeft.runs.records import TrialRecord
from autopeft.search.core.goals import Goal
from autopeft.search.core.jobs import JobResult
from autopeft.search.selection.answers import Answer, answers, finding
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline, BaselineKind
from autopeft.search.selection.finalists import Finalist
from autopeft.search.selection.significance import compare
from autopeft.search.selection.verdicts import Judge, best_baseline, verdicts
from autopeft.tasks.scored import ScoredSplit

SEEDS = (1000, 1001, 1002)
ROWS = ScoredSplit("accuracy", 40_000)
COSTS = {4: 0.5, 8: 1.5}


def recipe(rank: int) -> dict[str, object]:
    return {"autopeft": 2, "layers": [{"attach": [{"lora": {"rank": rank}}]}]}


JUDGE = Judge(
    "cheapest", 0.01, ROWS, lambda told: COSTS.get(told["layers"][0]["attach"][0]["lora"]["rank"], 1.0)
)


def lora(scores: Sequence[float] = (0.80, 0.801, 0.802), seconds: float | None = None) -> BaselineRuns:
    found = BaselineRuns(0, Baseline("LoRA rank 6", (recipe(6),), {"deployed": 200}))
    measured = {} if seconds is None else {"step_time": seconds}
    for job, score in zip(found.jobs(SEEDS, 9), scores, strict=True):
        found.take(JobResult(job.id, {"select": score, "test": score}, measured=measured))
    return found


def trial(number: int, rank: int, scores: Sequence[float], seconds: float | None = None) -> Finalist:
    found = Finalist(
        TrialRecord("trial", "t", "complete", recipe(rank), number, counts={"deployed": 25 * rank})
    )
    measured = {} if seconds is None else {"step_time": seconds}
    for job, score in zip(found.jobs(SEEDS, 9), scores, strict=True):
        found.take(JobResult(job.id, {"select": score}, measured=measured))
    return found


def told(
    finalists: Sequence[Finalist], races: Sequence[BaselineRuns], judge: Judge = JUDGE
) -> dict[Goal, Answer | None]:
    beside = best_baseline(races)
    return answers(
        lambda goal: verdicts(finalists, races, replace(judge, goal=goal)),
        None if beside is None else beside.contender(),
    )


def test_one_run_answers_all_three() -> None:
    finalists = [trial(3, 4, (0.80, 0.80, 0.802)), trial(5, 8, (0.82, 0.82, 0.822))]
    race = lora()
    found = told(finalists, [race])
    assert {goal: a and a.name for goal, a in found.items()} == {
        "best": "trial 5", "smallest": "trial 3", "cheapest": "trial 3"
    }  # fmt: skip
    cheapest = found["cheapest"]
    assert cheapest is not None
    assert (cheapest.baseline, cheapest.size_share, cheapest.cost_share) == ("LoRA rank 6", 0.5, 0.5)
    assert not cheapest.measured
    for said in (
        "trial 3 (lora)",
        "100 parameters",
        "0.8007 ± 0.0012",
        "0.50 of the",
        "LoRA rank 6 (predicted)",
    ):
        assert said in cheapest.sentence()
    assert json.loads(json.dumps(cheapest.to_dict()))["text"] == cheapest.sentence()


def test_what_was_measured_in_both_is_told_rather_than_what_was_predicted() -> None:
    race = lora(seconds=2.0)
    found = told([trial(3, 4, (0.80, 0.80, 0.802), 0.9)], [race])
    assert found["cheapest"] is not None
    assert (found["cheapest"].cost_share, found["cheapest"].measured) == (0.45, True)
    kept = lora()  # its runs are those of an earlier search
    found = told([trial(3, 4, (0.80, 0.80, 0.802), 0.9)], [kept])
    assert found["cheapest"] is not None
    assert (found["cheapest"].cost_share, found["cheapest"].measured) == (0.5, False)


def test_the_best_baseline_is_compared_with_nothing() -> None:
    race = lora()
    found = told([trial(3, 8, (0.70, 0.70, 0.70))], [race])
    assert found["best"] is not None
    assert (found["best"].name, found["best"].baseline, found["best"].within) == ("LoRA rank 6", None, None)
    assert found["best"].sentence().count("LoRA rank 6") == 1


def other(kind: BaselineKind, score: float, deployed: int = 0) -> BaselineRuns:
    shots = 0 if kind == "untuned" else None
    found = BaselineRuns(1, Baseline(kind, (recipe(1),), {"deployed": deployed}, kind=kind, shots=shots))
    for job, value in zip(found.jobs(SEEDS, 9), (score, score, score + 0.002), strict=shots is None):
        found.take(JobResult(job.id, {"select": value, "test": value}))
    return found


def test_whatever_the_goal_of_the_search_the_best_baseline_is_among_the_small_and_the_cheap() -> None:
    finalists = [trial(3, 4, (0.80, 0.80, 0.802))]
    found = told(finalists, [lora((0.79, 0.79, 0.79)), other("head", 0.80)])
    assert found["smallest"] is not None
    assert (found["smallest"].name, found["smallest"].counts["deployed"]) == ("head", 0)
    best = found["best"]
    assert best is not None
    assert best.name == "head", "it is as good as the trial"
    found = told(finalists, [lora((0.79, 0.79, 0.79)), other("single", 0.80)])
    assert {goal: a and a.name for goal, a in found.items()} == {
        "best": "trial 3", "smallest": "single", "cheapest": "trial 3"
    }  # fmt: skip


def test_the_head_alone_is_the_smallest_where_it_is_within_the_margin_of_lora() -> None:
    found = told([trial(3, 4, (0.80, 0.80, 0.802))], [lora((0.81, 0.81, 0.81)), other("head", 0.808)])
    assert found["smallest"] is not None
    assert (found["smallest"].name, found["smallest"].size_share) == ("head", 0.0)
    found = told([trial(3, 4, (0.80, 0.80, 0.802))], [lora((0.81, 0.81, 0.81)), other("head", 0.77)])
    assert found["smallest"] is not None
    assert found["smallest"].name != "head"


@pytest.mark.parametrize(("rows", "known"), [(12, False), (100_000, True)])
def test_no_probability_is_told_where_the_rows_are_too_few(rows: int, known: bool) -> None:
    """Of twelve rows what was known before would be told, and not what they show."""
    judge = replace(JUDGE, select=ScoredSplit("accuracy", rows))
    found = told([trial(3, 4, (0.90, 0.90, 0.902))], [lora((0.89, 0.89, 0.892))], judge)["best"]
    assert found is not None
    assert (found.within is not None) == ("100 %" in found.sentence()) == known


def test_nothing_costs_a_share_of_a_training_that_was_none() -> None:
    found = told([trial(3, 4, (0.80, 0.80, 0.802))], [other("untuned", 0.79)])
    cheapest = found["cheapest"]
    assert cheapest is not None
    assert (cheapest.name, cheapest.baseline, cheapest.cost_share) == ("trial 3", "untuned", None)
    assert "training cost" not in cheapest.sentence()


def test_nothing_confirmed_answers_nothing() -> None:
    assert answers(lambda goal: [], None) == {"best": None, "smallest": None, "cheapest": None}


ANSWER = Answer("cheapest", "trial 3", 3, recipe(4), {}, (0.8,), "LoRA", -0.001, 0.9, 0.08, 0.52, True)
LEVEL = {1000: 0.80, 1001: 0.801, 1002: 0.802}


def shifted(by: float) -> dict[int, float]:
    return {seed: score + by for seed, score in LEVEL.items()}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (ANSWER, "at 0.52 of its training cost"),
        (replace(ANSWER, measured=False), "at 0.52 of its training cost (predicted)"),
        (replace(ANSWER, goal="smallest"), "at 0.08 of its size"),
    ],
)
def test_what_test_shows_is_claimed(answer: Answer, text: str) -> None:
    level = compare(LEVEL, LEVEL, ROWS, name="LoRA")
    said = finding(answer.goal, answer, level)
    assert said is not None
    assert "As good as LoRA (within 1 point" in said
    assert text in said


def test_what_test_does_not_show_is_not_claimed() -> None:
    worse = compare(shifted(-0.02), LEVEL, ROWS, name="LoRA")
    said = finding("cheapest", ANSWER, worse)
    assert said is not None
    assert "is not" in said
    assert "2.0 points below LoRA" in said
    assert "within 3 points" in str(finding("cheapest", ANSWER, worse, margin=0.03))


def test_a_fallback_is_said_to_be_one() -> None:
    said = finding("cheapest", None, compare(shifted(-0.02), LEVEL, ROWS, name="LoRA"))
    assert str(said).startswith("Nothing found is as good as LoRA")


@pytest.mark.parametrize(
    ("goal", "answer", "more", "said"),
    [
        ("best", None, {"returned": "LoRA"}, ["beats LoRA", "it is returned"]),
        ("best", None, {"returned": "LoRA", "highest": "the single"}, ["LoRA", "the single ranks higher"]),
        ("best", None, {"returned": "the single", "by_trial": True}, ["is the single"]),
        ("best", None, {"returned": "LoRA", "unfinished": True}, ["ended all of its runs", "beats LoRA"]),
        ("cheapest", ANSWER, {"returned": "LoRA"}, ["as good as LoRA", "20 % lower", "it is returned"]),
        ("smallest", ANSWER, {"returned": "LoRA"}, ["as good as LoRA", "less size", "it is returned"]),
        ("cheapest", None, {}, ["the cheapest"]),
    ],
)
def test_a_baseline_that_is_returned_is_said_to_be_one(
    goal: Goal, answer: Answer | None, more: dict[str, Any], said: list[str]
) -> None:
    told = str(finding(goal, answer, None, **more))
    assert all(words in told for words in said)


def test_of_the_best_nothing_is_said_where_nothing_is_special() -> None:
    assert finding("best", None, None) is None


def test_the_head_alone_is_named_first() -> None:
    """Whatever the goal, and whether it is the best baseline itself."""
    level = compare(LEVEL, LEVEL, ROWS, name="LoRA")
    for goal, comparison in (("best", level), ("best", None), ("smallest", level), ("smallest", None)):
        said = str(finding(goal, ANSWER, comparison, returned="head only", head_alone=True))  # type: ignore[arg-type]
        assert said.startswith("The head alone ")
        assert "nothing is placed on the backbone" in said
        assert ("any hybrid found" in said) == (goal == "best")
        assert ("As good as LoRA" in said) == (goal != "best" and comparison is level)


def test_without_a_baseline_select_alone_tells() -> None:
    assert "as far as select tells" in str(finding("smallest", ANSWER, None))
