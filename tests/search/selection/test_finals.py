from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from support.searching import EFFORT, lora

from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.finals import Finals, FinalWork

NORMAL = replace(EFFORT, top=2, seeds=3)
HEAD: Any = {"name": "head-only"}
BASELINES = [
    Baseline("LoRA", tuple(lora(rank).to_dict() for rank in (1, 2, 3)), {}),
    Baseline("single", tuple(lora(rank).to_dict() for rank in range(10, 20)), {}, kind="single"),
    Baseline("head", (HEAD, HEAD), {}, kind="head"),
    Baseline("untuned", (HEAD,), {}, kind="untuned", shots=0),
]


def work(known: Any = lambda job: None, ended: Sequence[str] = ()) -> FinalWork:
    return FinalWork(BASELINES, 0, known, ended)


def ended(confirm: int, test: int) -> list[str]:
    return [f"confirm-{i}" for i in range(confirm)] + [f"test-confirm-{i}" for i in range(test)]


def seconds(jobs: Sequence[Job]) -> float:
    """A training takes a second, that of the head alone a tenth."""
    return sum((0.1 if job.recipe == HEAD else 1.0) for job in jobs if job.steps)


def counts(jobs: Sequence[Job]) -> dict[str, int]:
    """By kind, and those that score *test* beside."""
    found = Counter(job.kind for job in jobs)
    return {**found, "scores test": sum("test" in job.splits for job in jobs)}


def test_all_runs_are_left_where_nothing_is_known() -> None:
    # LoRA 3 + 2 + 3, single 10 + 5 + 3, the head 2 + 2 + 3, the backbone once; each with its tests
    assert counts(work().jobs(Finals(NORMAL))) == {
        "confirm": 6, "test": 3, "baseline": 8 + 18 + 7 + 1, "scores test": 3 + 3 * 3 + 1,
    }  # fmt: skip
    short = Finals(replace(NORMAL, top=1, seeds=2), frozenset({1, 2, 3}), second=False)
    assert counts(work().jobs(short)) == {"confirm": 2, "test": 2, "baseline": 5, "scores test": 4}
    left = counts(work(ended=ended(4, 9)).jobs(Finals(NORMAL)))
    assert (left["confirm"], "test" in left) == (2, False)


def test_of_past_runs_those_of_what_is_a_finalist_now_are_done() -> None:
    """A later trial may be better than the one that was trained again before."""
    record = partial(TrialRecord, "trial", "x", "complete", {"layers": []}, score=0.5)
    past = {f"confirm-0-s{seed}" for seed in (1000, 1001, 1002)} | {"confirm-2-s1001", "test-confirm-0-s1000"}
    for numbers, left, tests in (((0, 2), 2, 2), ((1, 0), 3, 2), ((1, 2), 5, 3)):
        best = [record(number=n, hash=str(n)) for n in numbers]
        found = counts(FinalWork([], 0, ended=past, best=best).jobs(Finals(NORMAL)))
        assert (found["confirm"], found["test"]) == (left, tests), numbers


def test_a_sweep_that_may_go_on_has_one_run_more_unless_it_is_cut_short() -> None:
    lora_rates = replace(BASELINES[0], beyond={2: (1,)})  # two rates, and one above
    found = FinalWork([lora_rates], 0)
    assert counts(found.jobs(Finals(NORMAL)))["baseline"] == 2 + 2 + 1 + 3
    assert counts(found.jobs(Finals(NORMAL, second=False)))["baseline"] == 2 + 3


def test_what_is_known_is_not_left_as_far_as_it_tells_what_comes_next() -> None:
    def known(job: Job) -> JobResult | None:
        """LoRA wholly but for one seed; of the single methods all but one run of the sweep."""
        single = job.id.startswith("baseline-1")
        if job.id in ("baseline-1-sweep3", "baseline-0-2-s1001") or not (single or "ne-0" in job.id):
            return None
        rank = job.recipe["layers"][0]["attach"][0]["lora"]["rank"]
        return JobResult(job.id, dict.fromkeys(job.splits, rank / 100))

    found = work(known)
    assert counts(found.jobs(Finals(NORMAL, frozenset({1, 2, 3}))))["baseline"] == 1
    assert counts(found.jobs(Finals(NORMAL, frozenset({0, 2, 3}))))["baseline"] == 1 + 5 + 3


def test_finals_are_shortened_step_by_step() -> None:
    forms = list(work().forms(NORMAL, seconds))
    seen = [(f.effort.top, f.effort.seeds, sorted(f.left_out), f.second) for f in forms]
    efforts = [(2, 3), (1, 3)]
    assert seen == [
        *((*effort, out, True) for out in ([], [1], [1, 2]) for effort in efforts),
        (1, 3, [1, 2], False),
        (1, 2, [1, 2], False),
    ]


def test_of_several_tasks_a_lora_for_each_is_trained_in_any_case() -> None:
    both = [*BASELINES, replace(BASELINES[0], kind="own")]
    forms = list(FinalWork(both, 0).forms(NORMAL, seconds))
    assert {i for form in forms for i in form.left_out} == {1, 2}


def test_examples_before_prompts_are_left_out_after_what_is_trained() -> None:
    shown = [*BASELINES, Baseline("few-shot", (HEAD,), {}, kind="few-shot", shots=4)]
    forms = FinalWork(shown, 0).forms(NORMAL, seconds)
    left_out = list(dict.fromkeys((tuple(sorted(f.left_out)), f.second) for f in forms))
    assert left_out == [((), True), ((1,), True), ((1, 2), True), ((1, 2), False), ((1, 2, 4), False)]


@pytest.mark.parametrize(("seeds", "tried"), [(5, [5, 5, 4, 3]), (2, [2, 2]), (1, [1, 1])])
def test_two_seeds_are_the_last_resort(seeds: int, tried: list[int]) -> None:
    *forms, last = work().forms(replace(NORMAL, seeds=seeds), seconds)
    assert [form.effort.seeds for form in forms[: len(tried)]] == tried
    assert last.effort.seeds == min(seeds, 2)
    assert not [form for form in forms if form.effort.seeds < tried[-1]]
    assert not last.second


def test_least_is_left_of_the_shortest_unless_longer_ones_were_trained_before() -> None:
    *_, shortest = work().forms(NORMAL, seconds)
    assert work().least(NORMAL, seconds) == work().jobs(shortest)

    def known(job: Job) -> JobResult | None:
        """All of LoRA by two seeds, of which the first alone would have chosen another rank."""
        if job.id in ("baseline-0-sweep0", "baseline-0-sweep1", "baseline-0-sweep2"):
            return JobResult(job.id, {"select": {"0": 0.5, "1": 0.6, "2": 0.7}[job.id[-1]]})
        if job.id.startswith("baseline-0-sweep"):
            return JobResult(job.id, {"select": 0.1 if job.recipe == BASELINES[0].candidates[2] else 0.9})
        if job.id.startswith("baseline-0-1"):
            return JobResult(job.id, dict.fromkeys(job.splits, 0.5))
        return None if job.id.startswith("baseline-0") else JobResult(job.id, dict.fromkeys(job.splits, 0.5))

    found = work(known, ended(6, 3))
    *_, shortest = found.forms(NORMAL, seconds)
    assert len(found.jobs(shortest)) == 2
    assert found.least(NORMAL, seconds) == []


def test_a_baseline_that_is_known_is_not_left_out() -> None:
    forms = work(lambda job: JobResult(job.id, dict.fromkeys(job.splits, 0.5))).forms(NORMAL, seconds)
    assert all(not finals.left_out for finals in forms)
