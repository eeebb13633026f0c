from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from autopeft.recipe import Recipe
from autopeft.search.core.jobs import JobResult, UntrainedJob
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import fresh_seeds


def test_candidates_that_are_runs_of_their_own_have_no_sweep_and_a_seed_each() -> None:
    recipes = tuple({"name": f"r{i}"} for i in range(3))
    race = BaselineRuns(0, Baseline("random hybrids", recipes, {"deployed": 7}, kind="random", each=True))
    assert race.sweep_jobs(5, 10) == []
    assert race.swept
    jobs = race.jobs(fresh_seeds(5, 2), 10)
    assert [(j.recipe["name"], j.seed) for j in jobs] == [("r0", 1005), ("r1", 1006), ("r2", 1007)]
    assert len({j.id for j in jobs}) == 3
    for i, job in enumerate(jobs):
        race.take(JobResult(job.id, {"select": 0.5, "test": i / 10}, counts={"deployed": i}))
    contender = race.contender()
    assert contender.counts == {"deployed": 7}
    assert contender.recipe == {}
    assert contender.by_seed == {1005: 0.0, 1006: 0.1, 1007: 0.2}


def test_it_is_called_after_the_runs_that_there_is_time_for_and_has_their_size() -> None:
    recipes = tuple({"name": f"r{i}"} for i in range(3))
    tables = tuple({"deployed": n, "trained": 2 * n, "head": 1, "backbone": 100} for n in (10, 20, 60))
    race = BaselineRuns(
        0, Baseline("3 random hybrids", recipes, {"deployed": 30}, kind="random", each=True, tables=tables)
    )
    jobs = race.jobs(fresh_seeds(5, 2), 10)
    race.drop(jobs[0].id)
    assert (race.name, race.counts["deployed"], race.counts["trained"]) == ("2 random hybrids", 40, 80)
    race.drop(jobs[2].id)
    assert (race.name, race.counts["deployed"]) == ("random hybrid", 20)
    race.drop(jobs[1].id)
    assert not race.runs


def test_a_baseline_is_called_after_what_select_chose() -> None:
    lora = Recipe.from_dict({"layers": [{"attach": ["lora"]}]}).to_dict()
    tables: Any = ({"deployed": 1}, {"deployed": 2})
    race = BaselineRuns(
        0, Baseline("single", (lora, lora), {"deployed": 1}, titles=("one", "two"), tables=tables)
    )
    assert not race.swept
    first, second = race.sweep_jobs(5, 10)
    race.take(JobResult(first.id, {"select": 0.4}))
    assert not race.swept
    assert race.sweep_jobs(5, 10) == [], "a run of the first round is open"
    race.take(JobResult(second.id, {"select": 0.6}))
    assert not race.swept
    for job, score in zip(race.sweep_jobs(5, 10), (0.6, 0.5), strict=True):
        assert job.seed == 505
        race.take(JobResult(job.id, {"select": score}))
    assert race.swept
    assert race.sweep_jobs(5, 10) == []
    assert [j.seed for j in race.jobs(fresh_seeds(5, 2), 10)] == [1005, 1006]
    assert (race.contender().name, race.contender().counts) == ("two", {"deployed": 2})


def test_a_baseline_without_a_choice_is_not_swept() -> None:
    race = BaselineRuns(0, Baseline("one", ({"name": "x"},), {"deployed": 1}))
    assert race.sweep_jobs(5, 10) == []
    assert [j.recipe for j in race.jobs(fresh_seeds(5, 2), 10)] == [{"name": "x"}] * 2


def test_of_candidates_that_score_the_same_the_first_is_chosen() -> None:
    recipes = tuple({"name": f"r{i}"} for i in range(3))
    lora = tuple(Recipe.from_dict(r).to_dict() for r in recipes)
    race = BaselineRuns(0, Baseline("b", lora, {"deployed": 1}, titles=("a", "b", "c")))
    sweep(race, (0.5, 0.75, 0.75), (0.25, 0.25))
    race.jobs(fresh_seeds(0, 1), 10)
    assert race.name == "b"


def race_of(count: int) -> BaselineRuns:
    recipes = tuple(Recipe.from_dict({"name": f"r{i}"}).to_dict() for i in range(count))
    return BaselineRuns(0, Baseline("b", recipes, {"deployed": 1}, titles=tuple("abcdefghijklmnopq"[:count])))


def sweep(race: BaselineRuns, *rounds: Sequence[float | None]) -> list[list[str]]:
    """Play the rounds of a sweep; returns the recipes of each. `None` stands for a run that failed."""
    trained = []
    for scores in rounds:
        jobs = race.sweep_jobs(0, 10)
        trained.append([str(job.recipe["name"]) for job in jobs])
        for job, score in zip(jobs, scores, strict=True):
            found = {} if score is None else {"select": score}
            race.take(JobResult(job.id, found, error=None if found else "boom"))
    return trained


def test_the_better_half_has_a_second_seed_and_the_mean_of_both_chooses() -> None:
    race = race_of(5)
    trained = sweep(race, (0.5, 0.9, 0.1, 0.8, 0.7), (0.2, 0.8, 0.6))
    assert trained == [["r0", "r1", "r2", "r3", "r4"], ["r1", "r3", "r4"]]
    assert race.swept
    race.jobs(fresh_seeds(0, 1), 10)
    assert race.name == "d", "0.9 and 0.2 are worse than 0.8 and 0.8"


def test_of_many_candidates_six_have_a_second_seed() -> None:
    assert [len(names) for names in sweep(race_of(17), [0.5] * 17, [0.5] * 6)] == [17, 6]


def test_who_fails_with_the_second_seed_comes_after_those_who_do_not() -> None:
    race = race_of(3)
    assert sweep(race, (0.9, 0.8, None), (None, 0.5)) == [["r0", "r1", "r2"], ["r0", "r1"]]
    race.jobs(fresh_seeds(0, 1), 10)
    assert race.name == "b"


def test_what_is_left_of_a_sweep_holds_the_round_to_come() -> None:
    race = race_of(4)
    assert (race.sweep_left, race.swept) == (0, False)
    jobs = race.sweep_jobs(0, 10)
    assert race.sweep_left == 6
    for job in jobs:
        race.take(JobResult(job.id, {"select": 0.5}))
    assert (race.sweep_left, race.swept) == (2, False)
    sweep(race, (0.5, 0.5))
    assert (race.sweep_left, race.swept) == (0, True)


def test_a_sweep_that_failed_throughout_trains_nothing() -> None:
    recipes = tuple(Recipe.from_dict({"name": f"r{i}"}).to_dict() for i in range(2))
    race = BaselineRuns(0, Baseline("b", recipes, {"deployed": 1}))
    for job in race.sweep_jobs(0, 10):
        race.take(JobResult(job.id, error="boom", failure="failed"))
    assert race.sweep_jobs(0, 10) == []
    assert race.swept
    assert race.failed
    assert race.jobs(fresh_seeds(0, 2), 10) == []
    race.leave_out()
    assert not race.failed, "for want of time is another reason"


def untrained_race(shots: int) -> BaselineRuns:
    return BaselineRuns(
        2, Baseline("untrained", ({"name": "u"},), {"deployed": 0}, kind="untuned", shots=shots)
    )


def test_the_untuned_backbone_is_scored_once_and_the_same_with_each_seed() -> None:
    race = untrained_race(0)
    assert race.swept
    assert not race.trained
    (job,) = race.jobs(fresh_seeds(5, 3), 10)
    assert isinstance(job, UntrainedJob)
    assert (job.splits, job.steps, job.shots) == (("select", "test"), 0, 0)
    assert not race.complete
    race.take(JobResult(job.id, {"select": 0.4, "test": 0.5}, pseudo_values=(0.1, 0.9), merit=-2.0))
    assert race.complete
    contender = race.contender()
    assert contender.by_seed == {1005: 0.5, 1006: 0.5, 1007: 0.5}
    assert contender.parts == dict.fromkeys((1005, 1006, 1007), (0.1, 0.9))
    assert race.ranks == [-2.0] * 3


def test_each_seed_draws_examples_of_its_own() -> None:
    race = untrained_race(4)
    jobs = race.jobs(fresh_seeds(5, 3), 10)
    assert [(job.seed, job.shots) for job in jobs if isinstance(job, UntrainedJob)] == [
        (1005, 4), (1006, 4), (1007, 4),
    ]  # fmt: skip
    for i, job in enumerate(jobs):
        race.take(JobResult(job.id, {"select": 0.4, "test": i / 10}))
    assert race.contender().test == (0.0, 0.1, 0.2)


def going_on() -> BaselineRuns:
    """Three rates, a to c; then those beyond: d and e below a, f above c."""
    recipes = tuple(Recipe.from_dict({"name": f"r{i}"}).to_dict() for i in range(6))
    beyond = {0: (3,), 3: (4,), 2: (5,)}
    return BaselineRuns(0, Baseline("b", recipes, {"deployed": 1}, titles=tuple("abcdef"), beyond=beyond))


def chosen(race: BaselineRuns) -> str:
    assert race.swept
    assert race.sweep_jobs(0, 10) == []
    race.jobs(fresh_seeds(0, 1), 10)
    return race.name


def test_while_the_best_has_the_first_or_last_rate_the_next_one_beyond_is_tried() -> None:
    inside = going_on()
    assert sweep(inside, (0.5, 0.9, 0.6), (0.9, 0.6)) == [["r0", "r1", "r2"], ["r1", "r2"]]
    assert chosen(inside) == "b"
    above = going_on()
    rounds = sweep(above, (0.5, 0.6, 0.7), [0.8], (0.8, 0.7))
    assert rounds == [["r0", "r1", "r2"], ["r5"], ["r5", "r2"]]
    assert chosen(above) == "f"
    below = going_on()
    rounds = sweep(below, (0.7, 0.6, 0.5), [0.8], [0.7], (0.8, 0.7))
    assert rounds == [["r0", "r1", "r2"], ["r3"], ["r4"], ["r3", "r0"]]
    assert chosen(below) == "d"
    failed = going_on()
    assert sweep(failed, (0.5, 0.6, 0.7), [None], (0.7, 0.6))[1:] == [["r5"], ["r2", "r1"]]
    assert chosen(failed) == "c"


def test_where_the_second_seed_brings_an_end_to_the_top_what_lies_beyond_has_both() -> None:
    race = going_on()
    rounds = sweep(race, (0.5, 0.8, 0.7), (0.1, 0.8))
    assert rounds == [["r0", "r1", "r2"], ["r1", "r2"]]
    assert (race.swept, race.sweep_left) == (False, 1)
    jobs = race.sweep_jobs(0, 10)
    assert [(job.recipe["name"], job.seed) for job in jobs] == [("r5", 0), ("r5", 500)]
    for job in jobs:
        race.take(JobResult(job.id, {"select": 0.9}))
    assert chosen(race) == "f"


def test_where_the_middle_rate_comes_first_both_its_neighbours_follow_at_the_best_place() -> None:
    """Three places, each at its middle rate; the neighbours of the second are f and g, then h beyond g."""
    recipes = tuple(Recipe.from_dict({"name": f"r{i}"}).to_dict() for i in range(10))
    beyond = {0: (3, 4), 1: (5, 6), 2: (8, 9), 6: (7,)}
    baseline = Baseline("b", recipes, {"deployed": 1}, titles=tuple("abcdefghij"), beyond=beyond)
    assert (baseline.first_runs, baseline.second_runs, baseline.sweep_runs) == (3, 2, 7)
    race = BaselineRuns(0, baseline)
    rounds = sweep(race, (0.5, 0.7, 0.6), (0.6, 0.8), [0.7], (0.8, 0.75))
    assert rounds == [["r0", "r1", "r2"], ["r5", "r6"], ["r7"], ["r6", "r1"]]
    assert chosen(race) == "g"


def test_what_is_left_of_a_sweep_that_may_go_on_holds_one_run_more() -> None:
    race = going_on()
    assert race.sweep_left == 0, "it has not begun"
    jobs = race.sweep_jobs(0, 10)
    assert race.sweep_left == 3 + 2 + 1
    for job, score in zip(jobs, (0.5, 0.8, 0.7), strict=True):
        race.take(JobResult(job.id, {"select": score}))
    assert race.sweep_left == 2, "the best is inside"


def test_a_shortened_sweep_goes_on_to_nothing() -> None:
    race = going_on()
    for job in race.sweep_jobs(0, 10):
        race.take(JobResult(job.id, {"select": int(job.recipe["name"][1]) / 10}))
    assert race.shorten(), "a second seed is given up"
    assert race.sweep_left == 0
    assert chosen(race) == "c"
    done = going_on()
    sweep(done, (0.5, 0.8, 0.7), (0.1, 0.8))
    assert not done.shorten(), "it had its second seed"
    assert chosen(done) == "c"


def lora_race(*rates: float, lost: float | None = 0.05, kind: Any = "lora") -> BaselineRuns:
    """Whose candidates are named after their rates."""
    recipes = tuple(
        Recipe.from_dict({"name": f"r{rate:g}", "training": {"learning_rate": rate}}).to_dict()
        for rate in rates
    )
    tables: Any = tuple({"deployed": i} for i in range(len(rates)))
    titles = tuple(f"LoRA {i}" for i in range(len(rates)))
    return BaselineRuns(0, Baseline("b", recipes, tables[0], kind=kind, titles=titles, tables=tables), lost)


def score(race: BaselineRuns, jobs: Sequence[Any], scores: Sequence[float | None]) -> None:
    for job, select in zip(jobs, scores, strict=True):
        found = {} if select is None else {"select": select, "test": select / 2}
        race.take(JobResult(job.id, found, error=None if found else "boom"))


SEEDS = fresh_seeds(0, 3)
LOST = "LoRA 1, learning rate 0.003, lost a seed"


def test_where_a_seed_is_lost_the_next_best_with_a_lower_rate_has_its_seeds_too() -> None:
    race = lora_race(1e-3, 3e-3, 9e-3, 5e-4)
    sweep(race, (0.7, 0.9, 0.85, 0.8), (0.9, 0.85))
    jobs = race.jobs(SEEDS, 10)
    score(race, jobs[:2], (0.91, 0.2))
    assert race.other_jobs(SEEDS, 10) == [], "a run is open"
    score(race, jobs[2:], (0.9,))
    others = race.other_jobs(SEEDS, 10)
    assert [(j.recipe["name"], j.seed) for j in others] == [("r0.0005", s) for s in SEEDS]
    assert others[0].label == f"LoRA 3, learning rate 0.0005, seed {SEEDS[0]}"
    assert not race.ended
    score(race, others[:2], (0.8, 0.82))
    contender = race.contender()
    assert (contender.name, contender.select) == ("LoRA 1", (0.91, 0.2, 0.9)), "until the other one is known"
    score(race, others[2:], (0.81,))
    assert race.ended
    contender = race.contender()
    assert (contender.name, contender.select) == ("LoRA 3", (0.8, 0.82, 0.81))
    assert (contender.recipe["name"], contender.counts) == ("r0.0005", {"deployed": 3})
    assert contender.by_seed == dict(zip(SEEDS, (0.4, 0.41, 0.405), strict=True))
    assert race.ranks == [0.8, 0.82, 0.81, 0.8], (
        "that of its sweep, then those of its fresh seeds, best first"
    )
    for said in (LOST, "0.91, 0.2, 0.9", "LoRA 3, learning rate 0.0005"):
        assert said in str(race.lost_seed)
    assert race.other_jobs(SEEDS, 10) == [], "once at most"


def begun(scores: Sequence[float | None] = (0.91, 0.2, 0.9), **more: Any) -> BaselineRuns:
    """A baseline whose candidate with the higher rate has these scores with fresh seeds."""
    race = lora_race(1e-3, 3e-3, **more)
    sweep(race, (0.7, 0.9), (0.9, 0.7))
    score(race, race.jobs(SEEDS, 10), scores)
    return race


@pytest.mark.parametrize(
    ("ours", "theirs", "taken"),
    [
        ((0.91, 0.8, 0.9), (0.7, 0.71, 0.72), False),
        ((0.91, 0.2, 0.9), (0.95, None, None), False),
        ((0.91, 0.2, 0.9), (0.91, 0.2, 0.9), False),  # of equals the first
        ((0.91, 0.2, 0.9), (0.7, 0.71, 0.72), True),
    ],
)
def test_select_chooses_between_the_two(
    ours: Sequence[float | None], theirs: Sequence[float | None], taken: bool
) -> None:
    race = begun(ours)
    score(race, race.other_jobs(SEEDS, 10), theirs)
    assert race.ended
    assert race.name == ("LoRA 0" if taken else "LoRA 1")
    assert race.contender().select == tuple(s for s in (theirs if taken else ours) if s is not None)
    assert race.lost_seed is not None
    why = "has taken its place" if taken else "failed with a seed" if None in theirs else "was no better"
    assert f"LoRA 0, learning rate 0.001, {why}" in race.lost_seed.replace(
        "which was tried in its place, ", ""
    )


@pytest.mark.parametrize("scores", [(0.91, math.nan, 0.9), (math.nan, math.nan, math.nan)])
def test_a_seed_whose_loss_was_not_finite_is_lost(scores: Sequence[float]) -> None:
    race = lora_race(1e-3, 3e-3)
    sweep(race, (0.7, 0.9), (0.9, 0.7))
    for job, select in zip(race.jobs(SEEDS, 10), scores, strict=True):
        burst = JobResult(job.id, error="The loss is not finite.", failure="non_finite")
        race.take(burst if math.isnan(select) else JobResult(job.id, {"select": select, "test": select}))
    assert not race.whole
    score(race, race.other_jobs(SEEDS, 10), (0.7, 0.71, 0.72))
    assert race.whole
    assert race.name == "LoRA 0", "one that ended all of its seeds stands before one that did not"
    each = ", ".join("not finite" if math.isnan(s) else f"{s:g}" for s in scores)
    assert each in str(race.lost_seed)


def test_candidates_that_may_be_finalists_are_told_apart_by_their_rates() -> None:
    race = lora_race(1e-3, 3e-3)
    sweep(race, (0.7, 0.9), (0.9, 0.7))
    assert [r.label for r in race.swept_candidates(10)] == [
        "LoRA 1, learning rate 0.003", "LoRA 0, learning rate 0.001",
    ]  # fmt: skip


def test_the_other_one_can_be_given_up() -> None:
    race = begun()
    jobs = race.other_jobs(SEEDS, 10)
    score(race, jobs[:1], (0.8,))
    race.drop_other("there was no time for")
    assert race.ended
    score(race, jobs[1:], (0.99, 0.99))  # they ran when it was given up
    assert race.contender().select == (0.91, 0.2, 0.9)
    assert "there was no time for" in str(race.lost_seed)


@pytest.mark.parametrize(
    ("scores", "more"),
    [
        ((0.91, 0.86, 0.9), {}),  # four points below the median
        ((0.91, 0.2, 0.9), {"lost": math.inf}),  # of a metric without a range
        ((0.91, 0.2, 0.9), {"lost": None}),
        ((0.91, 0.2, 0.9), {"kind": "head"}),
        ((0.91, None, 0.9), {}),  # why it failed may have nothing to do with the rate
        ((None, None, None), {}),
    ],
)
def test_otherwise_it_stays_with_what_the_sweep_chose(
    scores: Sequence[float | None], more: dict[str, Any]
) -> None:
    race = begun(scores, **more)
    assert race.other_jobs(SEEDS, 10) == []
    assert race.ended
    assert race.lost_seed is None


def test_where_no_candidate_has_a_lower_rate_it_says_what_is_lost() -> None:
    race = lora_race(9e-3, 3e-3)
    sweep(race, (0.7, 0.9), (0.9, 0.7))
    score(race, race.jobs(SEEDS, 10), (0.91, 0.2, 0.9))
    assert race.other_jobs(SEEDS, 10) == []
    assert race.ended
    assert LOST in str(race.lost_seed)
    assert "place" not in str(race.lost_seed)
