from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.searching import EFFORT

from autopeft.runs.records import TrialRecord
from autopeft.search.controller.time_budget import TimeBudget
from autopeft.search.core.jobs import Job, TrainJob
from autopeft.search.selection.finals import Finals

LEFT = {"confirm": 4.0, "baseline": 6.0, "scored": 0.4}
LEAST = {"confirm": 2.0, "baseline": 3.0, "scored": 0.4}


def job(kind: str = "trial", name: str = "a", steps: int = 10) -> Job:
    recipe = {"layers": [{"attach": ["lora"]}]}
    return TrainJob(name, kind, "x", recipe, steps=0 if kind == "test" else steps)  # type: ignore[arg-type]


def budget_of(workers: int = 1, seconds: float | None = None, **more: Any) -> TimeBudget:
    found = TimeBudget(EFFORT, workers, seconds, **more)
    found.expect(LEFT, LEAST)
    return found


def test_nothing_is_foretold_before_the_first_trial() -> None:
    assert budget_of(2).remaining(40.0, [job()]) is None


def test_time_left_is_the_work_left_over_the_workers() -> None:
    for workers in (1, 2):
        time_budget = budget_of(workers)
        time_budget.finished(job(), 10.0)
        # 4 trials, 4 finalists' runs, 6 baseline runs, 2 tests at 0.2
        assert time_budget.remaining(40.0, []) == pytest.approx((40 + 40 + 60 + 4) / workers)


def test_a_running_job_counts_for_what_is_left_of_it() -> None:
    time_budget = budget_of()
    time_budget.finished(job(), 10.0)
    whole = time_budget.remaining(30.0, [job(name="b")])
    time_budget.progress("b", 5)
    half = time_budget.remaining(30.0, [job(name="b")])
    assert whole is not None
    assert half is not None
    assert whole - half == pytest.approx(5.0)


def test_what_an_earlier_process_took_is_gone() -> None:
    """Half of the whole time is the search's, and not half of what is left of it."""
    for spent, allowed in ((0.0, True), (90.0, True), (150.0, False)):
        time_budget = budget_of(1, 200.0, spent=spent, clock=lambda: 7.0)
        time_budget.finished(job(), 10.0)
        assert time_budget.allows(5, 0) == allowed, spent


def test_a_trial_has_the_time_that_the_finals_leave() -> None:
    now = [0.0]
    time_budget = budget_of(2, 200.0, clock=lambda: now[0])
    assert time_budget.within(3, job()) is None, "nothing is known"
    time_budget.finished(job(), 10.0)
    assert time_budget.within(2, job()) is None, "one of the first two has to end"
    now[0] = 60.0
    # 4 finalists' runs, 6 baseline runs, 2 tests at 0.2
    assert time_budget.within(3, job()) == pytest.approx(200 - 60 - (40 + 60 + 4) / 2)
    now[0] = 190.0
    assert time_budget.within(3, job()) == 20.0, "as long as two trials in any case"
    assert budget_of(2).within(3, job()) is None


def test_the_last_part_of_a_trial_may_take_as_long_as_it_has_steps() -> None:
    """With three rungs most trials are short, and two of them are less than the last part of one."""
    time_budget = budget_of(1, 100.0, expected_steps=2.0, clock=lambda: 99.0)
    time_budget.finished(job(), 10.0)
    assert time_budget.within(5, replace(job(), until=1)) == pytest.approx(4.0)
    assert time_budget.within(5, replace(job(), start=3)) == pytest.approx(2 * 7.0)


def test_a_run_that_scores_test_too_takes_longer() -> None:
    time_budget = budget_of()
    time_budget.expect({"baseline": 2.0, "scored": 0.6}, LEAST)
    time_budget.finished(job(), 10.0)
    untuned = replace(job("baseline", "untuned", steps=0), splits=("select", "test"))
    time_budget.finished(untuned, 30.0)
    assert time_budget.remaining(None, []) == pytest.approx(2 * 10 + 15), "a split takes 15 seconds"
    tested = replace(job("baseline", "fresh"), splits=("select", "test"))
    time_budget.finished(tested, 27.0)
    assert time_budget.remaining(None, []) == pytest.approx(12.0), "of 27 seconds 15 were the test's"
    assert time_budget.remaining(None, [tested]) == pytest.approx(12.0)


def test_all_done_is_zero() -> None:
    time_budget = budget_of()
    time_budget.finished(job(), 10.0)
    for kind, count in (("confirm", 4), ("baseline", 6), ("test", 2)):
        for _ in range(count):
            time_budget.finished(job(kind), 1.0)
    assert time_budget.remaining(None, []) == pytest.approx(0.0)


def test_a_time_budget_bounds_the_estimate_but_for_what_is_done_in_any_case() -> None:
    now = [0.0]
    time_budget = budget_of(seconds=100.0, clock=lambda: now[0])
    time_budget.finished(job(), 10.0)
    now[0] = 20.0
    assert time_budget.remaining(40.0, []) == pytest.approx(80.0)
    now[0] = 90.0
    assert time_budget.remaining(40.0, []) == pytest.approx(20 + 30 + 4), "the shortest finals"
    assert time_budget.remaining(None, []) == pytest.approx(40 + 60 + 4), "these were chosen"


def left(finals: Finals) -> dict[str, float]:
    effort = finals.effort
    baseline = (2 if finals.second else 0) + sum(2 + effort.seeds for i in (0, 1) if i not in finals.left_out)
    return {"confirm": effort.top * effort.seeds, "baseline": baseline, "scored": 0.2 * effort.seeds}


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
        time_budget = TimeBudget(effort, 1, seconds=seconds, clock=lambda: 0.0)
        time_budget.finished(job(), 10.0)
        found.append(forms.index(time_budget.shorten(forms, left)))
        assert time_budget.remaining(None, []) == pytest.approx(10 * sum(left(forms[found[-1]]).values()))
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
    time_budget = TimeBudget(effort, 1, seconds=100.0, spent=120.0, clock=lambda: 0.0)
    time_budget.finished(job(), 10.0)
    for works, chosen in (([0.0, 0.0, 2.0], full), ([3.0, 1.0, 2.0], middle), ([3.0, 2.0, 1.0], short)):
        known = {id(form): {"confirm": 0.0, "baseline": w} for form, w in zip(forms, works, strict=True)}
        assert time_budget.shorten(forms, lambda form, known=known: known[id(form)]) is chosen  # type: ignore[misc]
        assert time_budget.remaining(None, []) == pytest.approx(10 * min(works)), "what is left is told"


def test_half_of_the_time_is_the_searchs_even_where_finals_in_full_do_not_fit() -> None:
    now = [0.0]
    time_budget = budget_of(seconds=120.0, clock=lambda: now[0])
    time_budget.finished(job(), 10.0)
    assert time_budget.allows(2, 0)
    now[0] = 55.0
    assert time_budget.allows(2, 0)
    now[0] = 60.0
    assert not time_budget.allows(2, 0)


def test_the_shortest_finals_come_before_a_third_trial() -> None:
    time_budget = budget_of(seconds=60.0, clock=lambda: 0.0)
    time_budget.finished(job(), 10.0)
    assert time_budget.allows(1, 0)
    assert not time_budget.allows(2, 0)


def test_timings_of_an_earlier_process_count() -> None:
    recipe = {"layers": [{"attach": ["lora"]}]}
    time_budget = budget_of()
    time_budget.learn(
        [
            TrialRecord("trial", "half", "stopped", recipe, seconds=5.0, rungs={"5": 0.5}),
            TrialRecord("trial", "reused", "duplicate", recipe),
            TrialRecord("trial", "broken", "failed", recipe, seconds=99.0, rungs={"5": 0.5}),
            TrialRecord("confirm", "c", "complete", recipe, steps=10, seconds=30.0),
        ]
    )
    assert time_budget.remaining(None, []) == pytest.approx(4 * 30 + 6 * 10 + 0.4 * 10)


def test_what_only_scores_takes_what_trainings_took_beside_their_steps() -> None:
    """Of a language model that writes, scoring may take longer than a short training."""
    recipe = {"layers": [{"attach": ["lora"]}]}
    time_budget = budget_of(test_share=3.0)
    time_budget.finished(job(), 10.0, 0.4)
    assert time_budget.remaining(None, []) == pytest.approx(4 * 10 + 6 * 10 + 2 * (10 - 4) * 3)
    time_budget.finished(job("confirm"), 10.0, 0.2)
    assert time_budget.remaining(None, []) == pytest.approx(3 * 10 + 6 * 10 + 2 * (10 - 4) * 3)
    time_budget.finished(job("test"), 5.0)
    assert time_budget.remaining(None, []) == pytest.approx(3 * 10 + 6 * 10 + 5)
    resumed = budget_of(test_share=3.0)
    done = {"steps": 10, "seconds": 10.0, "measured": {"step_time": 0.4}}
    resumed.learn([TrialRecord("trial", "a", "complete", recipe, rungs={"10": 0.5}, **done)])
    assert resumed.remaining(None, []) == pytest.approx(4 * 10 + 6 * 10 + 2 * (10 - 4) * 3)


def test_a_job_that_would_end_too_late_does_not_fit() -> None:
    now = [0.0]
    time_budget = budget_of(seconds=30.0, clock=lambda: now[0])
    time_budget.finished(job(), 10.0)
    assert time_budget.fits([job("baseline")])
    now[0] = 25.0
    assert not time_budget.fits([job("baseline")])
    assert time_budget.fits([job("test")])
    assert budget_of().fits([job("baseline")])
