from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.searching import EFFORT

from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, ScoreJob, TrainJob
from autopeft.search.selection.finals import Finals
from autopeft.search.selection.time_budget import TimeBudget

RECIPE: dict[str, Any] = {"layers": [{"attach": ["lora"]}]}


def job(kind: str = "trial", name: str = "a", steps: int = 10) -> Job:
    if kind == "test":
        return ScoreJob(name, "test", "x", RECIPE, splits=("test",))
    return TrainJob(name, kind, "x", RECIPE, steps=steps)  # type: ignore[arg-type]


def jobs(confirm: int = 0, baseline: int = 0, test: int = 0) -> list[Job]:
    return [job("confirm")] * confirm + [job("baseline")] * baseline + [job("test")] * test


LEFT, LEAST = jobs(4, 6, 2), jobs(2, 3, 2)


def budget_of(workers: int = 1, seconds: float | None = None, **more: Any) -> TimeBudget:
    return TimeBudget(EFFORT, workers, seconds, **more)


def remaining(time_budget: TimeBudget, steps_left: float | None, *running: Job) -> float | None:
    return time_budget.remaining(steps_left, running, LEFT, LEAST)


def test_nothing_is_foretold_before_the_first_trial() -> None:
    assert remaining(budget_of(2), 40.0, job()) is None


def test_time_left_is_the_work_left_over_the_workers() -> None:
    for workers in (1, 2):
        time_budget = budget_of(workers)
        time_budget.finished(job(), 10.0)
        # 4 trials, 4 finalists' runs, 6 baseline runs, 2 tests at 0.2
        assert remaining(time_budget, 40.0) == pytest.approx((40 + 40 + 60 + 4) / workers)


def test_a_baseline_takes_as_long_as_the_shortest_trial_until_one_has_ended() -> None:
    time_budget = budget_of()
    for seconds in (10.0, 4.0, 16.0):
        time_budget.finished(job(), seconds)
    assert time_budget.seconds(jobs(confirm=1)) == pytest.approx(10.0)
    assert time_budget.seconds(jobs(baseline=2)) == pytest.approx(8.0)
    time_budget.finished(job("baseline"), 7.0)
    assert time_budget.seconds(jobs(baseline=2)) == pytest.approx(14.0)


def test_a_running_job_counts_for_what_is_left_of_it() -> None:
    time_budget = budget_of()
    time_budget.finished(job(), 10.0)
    whole = remaining(time_budget, 30.0, job(name="b"))
    time_budget.steps["b"] = 5
    half = remaining(time_budget, 30.0, job(name="b"))
    assert whole is not None
    assert half is not None
    assert whole - half == pytest.approx(5.0)


def test_what_an_earlier_process_took_is_gone() -> None:
    """Half of the whole time is the search's, and not half of what is left of it."""
    for spent, allowed in ((0.0, True), (90.0, True), (150.0, False)):
        time_budget = budget_of(1, 200.0, spent=spent, clock=lambda: 7.0)
        time_budget.finished(job(), 10.0)
        assert time_budget.allows(5, 0, LEFT, LEAST) == allowed, spent


def test_a_trial_has_the_time_that_the_finals_leave() -> None:
    now = [0.0]
    time_budget = budget_of(2, 200.0, clock=lambda: now[0])
    assert time_budget.within(3, job(), LEFT) is None, "nothing is known"
    time_budget.finished(job(), 10.0)
    assert time_budget.within(2, job(), LEFT) is None, "one of the first two has to end"
    now[0] = 60.0
    # 4 finalists' runs, 6 baseline runs, 2 tests at 0.2
    assert time_budget.within(3, job(), LEFT) == pytest.approx(200 - 60 - (40 + 60 + 4) / 2)
    now[0] = 190.0
    assert time_budget.within(3, job(), LEFT) == 20.0, "as long as two trials in any case"
    assert budget_of(2).within(3, job(), LEFT) is None


def test_the_last_part_of_a_trial_may_take_as_long_as_it_has_steps() -> None:
    """With three rungs most trials are short, and two of them are less than the last part of one."""
    time_budget = budget_of(1, 100.0, expected_steps=2.0, clock=lambda: 99.0)
    time_budget.finished(job(), 10.0)
    assert time_budget.within(5, replace(job(), until=1), LEFT) == pytest.approx(4.0)
    assert time_budget.within(5, replace(job(), start=3), LEFT) == pytest.approx(2 * 7.0)


def test_a_run_that_scores_test_too_takes_longer() -> None:
    time_budget = budget_of()
    time_budget.finished(job(), 10.0)
    untuned = replace(job("baseline", "untuned", steps=0), splits=("select", "test"))
    time_budget.finished(untuned, 30.0)
    assert time_budget.seconds([job("test")]) == pytest.approx(15.0), "a split takes 15 seconds"
    tested = replace(job("baseline", "fresh"), splits=("select", "test"))
    assert time_budget.seconds([tested]) == pytest.approx(10 + 15)
    time_budget.finished(tested, 27.0)
    assert time_budget.seconds([job("baseline")]) == pytest.approx(12.0), "of 27 seconds 15 were the test's"


def test_the_head_alone_and_scoring_take_less_than_a_training() -> None:
    time_budget = budget_of()
    time_budget.finished(job(), 10.0)
    head = replace(job("baseline"), recipe={"name": "head-only"})
    pooled = replace(head, recipe={"model": ["mean_pooling"]})
    bias = replace(head, recipe={"model": ["bitfit"]})
    found = [time_budget.seconds([one]) for one in (head, pooled, bias, job("test"))]
    assert found[0] == found[1] == pytest.approx(1.0)
    assert found[2] == 10.0
    assert 0 < found[3] < 10


def test_all_done_is_zero() -> None:
    time_budget = budget_of()
    time_budget.finished(job(), 10.0)
    assert time_budget.remaining(None, [], [], []) == pytest.approx(0.0)


def test_a_time_budget_bounds_the_estimate_but_for_what_is_done_in_any_case() -> None:
    now = [0.0]
    time_budget = budget_of(seconds=100.0, clock=lambda: now[0])
    time_budget.finished(job(), 10.0)
    now[0] = 20.0
    assert remaining(time_budget, 40.0) == pytest.approx(80.0)
    now[0] = 90.0
    assert remaining(time_budget, 40.0) == pytest.approx(20 + 30 + 4), "the shortest finals"
    assert remaining(time_budget, None) == pytest.approx(40 + 60 + 4), "these were chosen"


def left(finals: Finals) -> list[Job]:
    effort = finals.effort
    baseline = (2 if finals.second else 0) + sum(2 + effort.seeds for i in (0, 1) if i not in finals.left_out)
    return jobs(effort.top * effort.seeds, baseline, effort.seeds)


def test_finals_are_shortened_to_what_the_time_allows() -> None:
    effort = replace(EFFORT, top=3, seeds=4)
    forms = [
        *(Finals(replace(effort, top=top)) for top in (3, 2, 1)),
        Finals(replace(effort, top=1, seeds=2)),
        Finals(effort, frozenset({1})),
        Finals(replace(effort, top=1, seeds=2), frozenset({1}), second=False),
    ]
    found = []
    for seconds in (1e6, 260.0, 200.0, 125.0, 1.0):
        time_budget = TimeBudget(effort, 1, seconds, clock=lambda: 0.0)
        time_budget.finished(job(), 10.0)
        found.append(forms.index(time_budget.shorten(forms, left)))
    assert found == [0, 1, 2, 3, 5]
    assert TimeBudget(effort, 1).shorten(forms, left) == forms[0]


def test_what_was_trained_before_is_not_left_out_when_the_time_is_over() -> None:
    """A search that goes on late in its finals: of the longest nothing is left, of the shortest something, as
    a sweep without second seeds chooses another LoRA."""
    effort = replace(EFFORT, top=2, seeds=3)
    full, middle, short = forms = [
        Finals(effort),
        Finals(replace(effort, top=1)),
        Finals(replace(effort, top=1, seeds=2), second=False),
    ]
    time_budget = TimeBudget(effort, 1, 100.0, spent=120.0, clock=lambda: 0.0)
    time_budget.finished(job(), 10.0)
    for works, chosen in (([0, 0, 2], full), ([3, 1, 2], middle), ([3, 2, 1], short)):
        known = {id(form): jobs(baseline=w) for form, w in zip(forms, works, strict=True)}
        assert time_budget.shorten(forms, lambda form, known=known: known[id(form)]) is chosen  # type: ignore[misc]


def test_half_of_the_time_is_the_searchs_even_where_finals_in_full_do_not_fit() -> None:
    now = [0.0]
    time_budget = budget_of(seconds=120.0, clock=lambda: now[0])
    time_budget.finished(job(), 10.0)
    assert time_budget.allows(2, 0, LEFT, LEAST)
    now[0] = 55.0
    assert time_budget.allows(2, 0, LEFT, LEAST)
    now[0] = 60.0
    assert not time_budget.allows(2, 0, LEFT, LEAST)


def test_the_shortest_finals_come_before_a_third_trial() -> None:
    time_budget = budget_of(seconds=60.0, clock=lambda: 0.0)
    time_budget.finished(job(), 10.0)
    assert time_budget.allows(1, 0, LEFT, LEAST)
    assert not time_budget.allows(2, 0, LEFT, LEAST)


def test_timings_of_an_earlier_process_count() -> None:
    time_budget = budget_of()
    time_budget.learn(
        [
            TrialRecord("trial", "half", "stopped", RECIPE, seconds=5.0, rungs={"5": 0.5}),
            TrialRecord("trial", "reused", "duplicate", RECIPE),
            TrialRecord("trial", "broken", "failed", RECIPE, seconds=99.0, rungs={"5": 0.5}),
            TrialRecord("confirm", "c", "complete", RECIPE, steps=10, seconds=30.0),
        ]
    )
    assert remaining(time_budget, None) == pytest.approx(4 * 30 + 6 * 10 + 0.4 * 10)


def test_what_only_scores_takes_what_trainings_took_beside_their_steps() -> None:
    """Of a language model that writes, scoring may take longer than a short training."""
    time_budget = budget_of(test_share=3.0)
    time_budget.finished(job(), 10.0, 0.4)
    assert time_budget.seconds([job("test")]) == pytest.approx((10 - 4) * 3)
    time_budget.finished(job("confirm"), 10.0, 0.2)
    assert time_budget.seconds([job("test")]) == pytest.approx((10 - 4) * 3)
    time_budget.finished(job("test"), 5.0)
    assert time_budget.seconds([job("test")]) == pytest.approx(5.0)
    resumed = budget_of(test_share=3.0)
    done: dict[str, Any] = {"steps": 10, "seconds": 10.0, "measured": {"step_time": 0.4}}
    resumed.learn([TrialRecord("trial", "a", "complete", RECIPE, rungs={"10": 0.5}, **done)])
    assert resumed.seconds([job("test")]) == pytest.approx((10 - 4) * 3)


def test_a_job_that_would_end_too_late_does_not_fit() -> None:
    now = [0.0]
    time_budget = budget_of(seconds=30.0, clock=lambda: now[0])
    time_budget.finished(job(), 10.0)
    assert time_budget.fits([job("baseline")])
    now[0] = 25.0
    assert not time_budget.fits([job("baseline")])
    assert time_budget.fits([job("test")])
    assert budget_of().fits([job("baseline")])
