"""What follows the search, for each goal, on a space of LoRA ranks whose score grows with the rank."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.searching import EFFORT, Stage, baseline, finished, honest, lora

from autopeft.errors import AutoPEFTError
from autopeft.hybrid.store import WEIGHTS
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.finals import Finals
from autopeft.search.selection.verdicts import Judge
from autopeft.tasks.scored import ScoredSplit

Make = Callable[..., Stage]
ROWS = ScoredSplit("accuracy", 1_000_000)
EFFORT_OF_TEN = replace(EFFORT, trials=10, top=4)


def cost(recipe: Mapping[str, Any]) -> float:
    """Steeper than a step's, so that ranks which score nearly alike cost more than a quarter more."""
    return (float(recipe["layers"][0]["attach"][0]["lora"]["rank"]) / 50) ** 4


def judge(goal: Any, margin: float = 0.01) -> Judge:
    return Judge(goal, margin, ROWS, cost)


def cheap(make_stage: Make, *baselines: Baseline, margin: float = 0.01, **more: Any) -> Stage:
    return make_stage(
        EFFORT_OF_TEN, tuple(range(41, 51)), baselines=list(baselines), judge=judge("cheapest", margin),
        objectives=2, cost="step_cost", **more,
    )  # fmt: skip


def test_lora_is_returned_where_nothing_beats_it(make_stage: Make, tmp_path: Path) -> None:
    """With the weights of the best of its runs, which were tested as they were trained."""
    stage = make_stage(baselines=[baseline(100)])
    stage.play(honest)
    assert Counter(job.kind for job in stage.jobs) == {"trial": 5, "confirm": 4, "baseline": 2}
    result, run = finished(stage, tmp_path)
    assert (result.number, result.origin, result.confirmed) == (None, "LoRA of rank 100", True)
    assert "LoRA of rank 100: it is returned" in result.finding
    assert result.winner.to_dict() == lora(100).to_dict()
    assert result.test == pytest.approx((0.101, 0.101001))
    assert (run.winner / WEIGHTS).read_bytes() == b"baseline-0-0-s1001"
    assert result.comparisons == (), "it is not compared with itself"
    assert [b.name for b in result.baselines] == ["LoRA of rank 100"]


def test_a_better_baseline_that_may_not_be_returned_is_named(make_stage: Make, tmp_path: Path) -> None:
    stage = make_stage(baselines=[baseline(100), baseline(200, kind="single")])
    stage.play(honest)
    result, _ = finished(stage, tmp_path)
    assert result.origin == "LoRA of rank 100"
    assert "LoRA of rank 200 ranks higher" in result.finding


def unstable(job: Job) -> JobResult:
    """One of three fresh seeds of the second candidate collapses."""
    done = honest(job)
    collapsed = job.id.startswith("baseline-0-1-") and job.seed == 1001
    return replace(done, scores={k: 0.1 if collapsed else 0.5 + v for k, v in done.scores.items()})


def unstable_stage(make_stage: Make, ranks: tuple[int, int] = (20, 30), **more: Any) -> Stage:
    """A search whose LoRA is of two rates; the higher one is chosen by the sweep."""
    slow, fast = (lora(rank, rate).to_dict() for rank, rate in zip(ranks, (1e-3, 3e-3), strict=True))
    both = replace(baseline(*ranks), candidates=(slow, fast))
    return make_stage(replace(EFFORT, seeds=3), baselines=[both], **more)


LOST = "LoRA of rank 30, learning rate 0.003, lost a seed"


def test_a_winner_is_not_compared_with_a_lora_that_happened_to_fail(make_stage: Make, tmp_path: Path) -> None:
    """The next one with a lower rate has its seeds too, after all that is sure to run."""
    stage = unstable_stage(make_stage)
    stage.play(unstable)
    result, _ = finished(stage, tmp_path)
    (told,) = result.baselines
    assert (told.name, len(told.test)) == ("LoRA of rank 20", 3)
    assert min(told.test) > 0.5
    assert any(LOST in said and "rank 20, learning rate 0.001" in said for said in result.remarks)
    assert ("phase", "another LoRA", 3) in stage.events.seen
    labels = [job.label for job in stage.jobs]
    assert len(set(labels)) == len(labels)


def test_the_lora_that_takes_the_place_may_win(make_stage: Make, tmp_path: Path) -> None:
    stage = unstable_stage(make_stage, (200, 300))
    stage.play(unstable)
    result, run = finished(stage, tmp_path)
    assert result.winner.to_dict()["layers"] == lora(200).to_dict()["layers"]
    assert (run.winner / WEIGHTS).read_bytes() == b"baseline-0-0-s1002"


def test_without_time_it_is_compared_with_all_the_same(
    make_stage: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = unstable_stage(make_stage)
    asked: list[int] = []
    monkeypatch.setattr(stage.controller.time_budget, "fits", lambda jobs: asked.append(len(jobs)) or False)
    stage.play(unstable)
    assert asked == [6], "its three seeds and the winner's three tests"
    result, _ = finished(stage, tmp_path)
    assert [b.name for b in result.baselines] == ["LoRA of rank 30"]
    assert any(LOST in said and "no time" in said for said in result.remarks)
    assert not any(job.id.startswith("baseline-0-0-s") for job in stage.jobs)
    assert result.confirmed


@pytest.mark.parametrize(
    ("when", "cut_off"),
    [("baseline-0-0-s1000", True), ("baseline-0-0-s1000", False), ("baseline-0-1-s1002", False)],
)
def test_an_interruption_before_the_other_lora_has_ended_keeps_what_was_confirmed(
    make_stage: Make, tmp_path: Path, when: str, cut_off: bool
) -> None:
    stage = unstable_stage(make_stage)

    def outcome(job: Job) -> JobResult:
        done = unstable(job)
        if job.id == when:
            stage.controller.interrupt()
            done = replace(done, error="interrupted", failure="stopped") if cut_off else done
        return done

    stage.play(outcome, workers=1)
    result, _ = finished(stage, tmp_path)
    assert [b.name for b in result.baselines] == ["LoRA of rank 30"]
    assert any(LOST in said and "the search ended" in said for said in result.remarks)
    assert result.confirmed


def test_where_cost_decides_all_loras_may_be_finalists_and_none_is_trained_twice(make_stage: Make) -> None:
    stage = unstable_stage(make_stage, judge=judge("cheapest"), objectives=2, cost="step_cost")
    stage.play(unstable)
    assert not any(b.runs.lost_seed for b in stage.controller.selection.baselines)
    trained = Counter(
        (json.dumps(job.recipe), job.seed) for job in stage.jobs if job.id.startswith("baseline-0-")
    )
    assert set(trained.values()) == {1}


def test_what_beats_lora_wins_and_no_other_baseline_does(make_stage: Make, tmp_path: Path) -> None:
    stage = make_stage(ranks=(40, 50), baselines=[baseline(30), baseline(99, kind="single")])
    stage.play(honest)
    result, _ = finished(stage, tmp_path)
    assert result.winner.to_dict() == lora(50).to_dict()
    assert result.finding is None
    assert [c.baseline for c in result.comparisons] == ["LoRA of rank 30", "LoRA of rank 99"]


HEAD = Baseline("head only", ({"autopeft": 2, "name": "head-only"},), {"deployed": 0}, kind="head")


def beside_head(score: float) -> Callable[[Job], JobResult]:
    """`honest`, and what the head alone scores."""

    def outcome(job: Job) -> JobResult:
        if job.recipe.get("layers"):
            return honest(job)
        scores = dict.fromkeys(job.splits, score + job.seed / 1e6)
        kept = isinstance(job, TrainJob) and job.keep_above is not None
        return JobResult(job.id, scores, files={WEIGHTS: job.id.encode()} if kept else {})

    return outcome


# Hybrids of rank 50 score 0.050, and the rows move a difference by 0.003.
@pytest.mark.parametrize(("score", "wins"), [(0.060, True), (0.049, True), (0.046, True), (0.040, False)])
def test_the_head_alone_is_returned_where_it_is_as_good(
    make_stage: Make, tmp_path: Path, score: float, wins: bool
) -> None:
    rows = ScoredSplit("accuracy", 10_000)
    stage = make_stage(ranks=(40, 50), baselines=[baseline(30), HEAD], judge=Judge("best", 0.01, rows))
    stage.play(beside_head(score))
    result, run = finished(stage, tmp_path)
    assert (result.origin == "head only") == wins
    tested = [job for job in stage.jobs if job.kind == "test"]
    if wins:
        assert result.found()[0].startswith("The head alone does as well as any hybrid found")
        assert result.counts["deployed"] == 0
        assert [c.baseline for c in result.comparisons] == ["LoRA of rank 30"]
        assert (run.winner / WEIGHTS).read_bytes() == b"baseline-1-0-s1001"
        assert tested == [], "test was touched with the baseline's runs"
        assert not [job for job in stage.jobs if job.id.startswith("weights-")]
    else:
        assert (result.winner.to_dict(), result.finding) == (lora(50).to_dict(), None)
        assert len(tested) == 2


def test_weights_that_an_earlier_search_did_not_keep_are_trained_again(
    make_stage: Make, tmp_path: Path
) -> None:
    """One run, with the seed that scored best on select, and *test* is not touched again."""

    stage = make_stage(baselines=[baseline(100)], recall=without_weights)
    stage.play(honest)
    (again,) = [job for job in stage.jobs if job.id.startswith("weights-")]
    assert (again.id, again.kind, again.seed, again.splits) == (
        "weights-baseline-0-0-s1001", "confirm", 1001, ("select",)
    )  # fmt: skip
    result, run = finished(stage, tmp_path)
    assert result.origin == "LoRA of rank 100"
    assert (run.winner / WEIGHTS).read_bytes() == b"weights-baseline-0-0-s1001"


def without_weights(job: Job) -> JobResult | None:
    """Baselines as an earlier search knows them."""
    return replace(honest(job), files={}) if job.kind == "baseline" else None


@pytest.mark.parametrize("interrupted", [False, True])
def test_where_its_weights_cannot_be_trained_the_next_best_is_returned(
    make_stage: Make, tmp_path: Path, interrupted: bool
) -> None:
    """And tested, where the search was not interrupted."""
    stage = make_stage(ranks=(40, 50), baselines=[baseline(100)], recall=without_weights)

    def outcome(job: Job) -> JobResult:
        if not job.id.startswith("weights-"):
            return honest(job)
        if interrupted:
            stage.controller.interrupt()
        return JobResult(job.id, error="no room.", failure="stopped" if interrupted else "memory")

    stage.play(outcome)
    result, run = finished(stage, tmp_path)
    assert result.winner.to_dict() == lora(50).to_dict()
    assert (result.confirmed, result.interrupted, len(result.test)) == (
        True, interrupted, 0 if interrupted else 2
    )  # fmt: skip
    why = "interrupted" if interrupted else "no room"
    for said in ("LoRA of rank 100 won, but", why, f"{result.origin} is returned"):
        assert said in result.finding
    assert (run.winner / WEIGHTS).read_bytes() == f"confirm-{result.number}-s1001".encode()
    if not interrupted:
        assert [c.baseline for c in result.comparisons] == ["LoRA of rank 100"]


def test_weights_of_another_seed_are_better_than_another_recipe(make_stage: Make, tmp_path: Path) -> None:
    stage = make_stage(baselines=[baseline(100)])
    stage.play(honest)
    stage.checkpoints.drop("baseline-0-0-s1001")
    result, run = finished(stage, tmp_path)
    assert result.origin == "LoRA of rank 100"
    assert "instead" not in result.finding
    assert (run.winner / WEIGHTS).read_bytes() == b"baseline-0-0-s1000"


def test_where_no_confirmed_weights_are_left_the_best_trial_is_returned(
    make_stage: Make, tmp_path: Path
) -> None:
    stage = make_stage(ranks=(40, 50))
    stage.play(honest)
    for key in stage.checkpoints.keys():  # noqa: SIM118 - a store is no mapping
        if not key.startswith("best-"):
            stage.checkpoints.drop(key)
    result, _ = finished(stage, tmp_path)
    assert (result.winner.to_dict(), result.confirmed) == (lora(50).to_dict(), False)
    assert f"{result.origin} won, but its weights are no longer there" in result.finding
    stage.checkpoints.held.clear()
    with pytest.raises(AutoPEFTError, match="There are no weights of the best trial in"):
        finished(stage, tmp_path / "again")


def test_a_candidate_has_no_part_in_what_another_one_left(make_stage: Make, tmp_path: Path) -> None:
    """Process 1 loses a run of the sweep and chooses what is left; the next one does not lose it, and chooses
    the other candidate, whose scores it knows from an earlier search."""
    stage = make_stage(baselines=[baseline(90, 100)])
    stage.play(
        lambda job: JobResult(job.id, error="boom", failure="failed") if "-sweep1" in job.id else honest(job)
    )
    left = {job.id: honest(job) for job in stage.jobs if job.kind == "baseline" and "test" in job.splits}
    assert stage.controller.selection.winner.recipe == lora(90).to_dict()

    def recall(job: Job) -> JobResult | None:
        """By id, as `finals.jsonl` has them, or else as the cache has them: without weights."""
        known = replace(honest(job), files={}) if job.recipe == lora(100).to_dict() else None
        return (left.get(job.id) or known) if "test" in job.splits and job.kind == "baseline" else None

    again = make_stage(baselines=[baseline(90, 100)], checkpoints=stage.checkpoints, recall=recall)
    again.play(honest)
    winner = again.controller.selection.winner
    assert (winner.recipe, winner.name) == (lora(100).to_dict(), "LoRA of rank 100")
    assert winner.contender().test == pytest.approx((0.101, 0.101001))
    _, run = finished(again, tmp_path)
    assert (run.winner / WEIGHTS).read_bytes() == b"weights-baseline-0-1-s1001"


@pytest.mark.parametrize(
    ("workers", "order"), [(1, "LoRA LoRA test test single single"), (2, "LoRA LoRA single test test single")]
)
def test_baselines_that_decide_nothing_fill_what_is_idle(make_stage: Make, workers: int, order: str) -> None:
    """The winner is chosen between finalists and LoRA, so that other baselines come when nothing else can."""
    stage = make_stage(ranks=(40, 50), baselines=[baseline(99, kind="single"), baseline(30)])
    stage.play(honest, workers=workers)
    names = {"baseline-0-0": "single", "baseline-1-0": "LoRA"}
    found = [names.get(job.id.rpartition("-")[0], job.kind) for job in stage.jobs]
    assert [name for name in found if name not in ("trial", "confirm")] == order.split()


def test_the_untuned_model_is_scored_whatever_the_time(
    make_stage: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs least of all, and says whether tuning was of any use."""
    untuned = Baseline("untuned", (lora(20).to_dict(),), {}, kind="untuned", shots=0)
    stage = make_stage(ranks=(40, 50), baselines=[baseline(99, kind="single"), untuned, baseline(30)])
    monkeypatch.setattr(stage.controller.time_budget, "fits", lambda job: False)
    stage.play(honest, workers=1)
    stages = stage.controller.selection.baselines
    assert [b.runs.name for b in stages if b.runs.runs] == ["untuned", "LoRA of rank 30"]
    assert [b.runs.name for b in stages if b.left_out] == ["LoRA of rank 99"]
    assert [job.id for job in stage.jobs if job.id.startswith("baseline-1")] == ["baseline-1-0-s1000"]
    assert stage.jobs[0].id == "baseline-1-0-s1000", "it needs nothing, and tells how long answers take"


def test_where_the_time_is_short_the_result_says_what_was_left(
    make_stage: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The untuned model was scored before it was known how many seeds there is time for."""
    untuned = Baseline("untuned", (lora(20).to_dict(),), {}, kind="untuned", shots=0)
    stage = make_stage(ranks=(40, 50), baselines=[baseline(60, 70, 80), untuned, baseline(5, kind="single")])
    short = Finals(replace(EFFORT, top=1, seeds=1), frozenset({2}), second=False)
    monkeypatch.setattr(stage.controller.time_budget, "shorten", lambda forms, jobs: short)
    stage.play(honest)
    result, _ = finished(stage, tmp_path)
    assert [list(side.by_seed) for side in result.baselines] == [[1000], [1000]]
    left_out, one_seed = result.remarks[-2:]
    assert "no time" in left_out
    assert "LoRA of rank 5." in left_out
    assert "LoRA of rank 60 with a second seed" in one_seed
    assert not [job for job in stage.jobs if job.id.endswith("-again")]


def test_the_cheapest_within_the_margin_wins(make_stage: Make, tmp_path: Path) -> None:
    """Of the ranks 41 to 50, those from 43 on are within seven thousandths of LoRA of rank 50."""
    stage = cheap(make_stage, baseline(50, 49), margin=0.0065)
    stage.play(honest)
    result, _ = finished(stage, tmp_path, "cheapest")
    assert 41 <= rank_of_recipe(result) <= 46
    assert result.answers["best"].name == "LoRA of rank 50"
    assert result.answers["cheapest"].recipe == result.winner.to_dict()
    assert result.answers["cheapest"].cost_share == pytest.approx((rank_of_recipe(result) / 50) ** 4)


def test_too_few_rows_of_select_are_told(make_stage: Make, tmp_path: Path) -> None:
    """Nothing cheaper passes then, though all that was seen speaks for it."""
    for rows, few_rows in ((10_000, False), (150, True)):
        few = replace(judge("cheapest", 0.0065), select=ScoredSplit("accuracy", rows))
        stage = make_stage(
            EFFORT_OF_TEN, tuple(range(41, 51)), baselines=[baseline(50, 49)], judge=few,
            objectives=2, cost="step_cost",
        )  # fmt: skip
        stage.play(honest)
        result, _ = finished(stage, tmp_path / str(rows), "cheapest")
        assert (result.origin == "LoRA of rank 50") == few_rows == bool(result.remarks)
    assert "--select-rows" in result.remarks[0]


def rank_of_recipe(result: Any) -> int:
    return int(result.winner.to_dict()["layers"][0]["attach"][0]["lora"]["rank"])


def test_finalists_of_other_goals_wait_for_the_sweeps(make_stage: Make) -> None:
    stage = cheap(make_stage, baseline(50, 49), baseline(20, 21, kind="head"))
    stage.play(honest)
    order = [job.id for job in stage.jobs]
    last_sweep = max(i for i, name in enumerate(order) if "-sweep" in name)
    first_finalist = min(i for i, job in enumerate(stage.jobs) if job.kind == "confirm")
    assert last_sweep < first_finalist
    tests = [i for i, job in enumerate(stage.jobs) if job.kind == "test"]
    assert max(i for i, job in enumerate(stage.jobs) if job.kind == "baseline") < min(tests)


def test_a_cheaper_candidate_of_the_lora_sweep_may_win(make_stage: Make, tmp_path: Path) -> None:
    """The baseline is the better of two; the other one costs less than all that the search has found."""
    stage = cheap(make_stage, baseline(50, 12), margin=0.06)
    stage.play(honest)
    result, _ = finished(stage, tmp_path, "cheapest")
    assert (result.number, result.origin) == (None, "LoRA of rank 12, learning rate 0.001")
    assert [c.baseline for c in result.comparisons] == ["LoRA of rank 50"]
    tested = [job.id for job in stage.jobs if job.kind == "test"]
    assert tested == ["test-confirm-baseline-0-1-s1001", "test-confirm-baseline-0-1-s1000"]


def test_candidates_of_lora_outside_the_limits_are_no_finalists(make_stage: Make, tmp_path: Path) -> None:
    within = replace(judge("cheapest", 0.06), inside=lambda recipe: cost(recipe) >= 0.41)
    stage = make_stage(
        EFFORT_OF_TEN, tuple(range(41, 51)), baselines=[baseline(50, 12)], judge=within,
        objectives=2, cost="step_cost",
    )  # fmt: skip
    stage.play(honest)
    result, _ = finished(stage, tmp_path, "cheapest")
    assert 41 <= rank_of_recipe(result) <= 50
    assert not any(job.id.startswith("confirm-baseline") for job in stage.jobs)


def test_where_nothing_cheaper_is_as_good_the_baseline_is_returned(make_stage: Make, tmp_path: Path) -> None:
    stage = cheap(make_stage, baseline(90, 89), margin=0.001)
    stage.play(honest)
    result, _ = finished(stage, tmp_path, "cheapest")
    assert result.origin == "LoRA of rank 90"
    assert result.finding.startswith("Nothing found is as good as LoRA of rank 90")


def test_without_baselines_the_margin_is_that_of_the_best_trial(make_stage: Make, tmp_path: Path) -> None:
    stage = cheap(make_stage, margin=0.006)
    stage.play(honest)
    result, _ = finished(stage, tmp_path, "cheapest")
    assert 44 <= rank_of_recipe(result) < 50
    assert result.comparisons == ()
    assert "as far as select tells" in result.finding


def test_the_smallest_may_be_another_than_the_cheapest(make_stage: Make, tmp_path: Path) -> None:
    """Where larger ranks cost less, one run knows both."""
    stage = make_stage(
        EFFORT_OF_TEN, tuple(range(41, 51)), baselines=[baseline(50, 49)], objectives=2,
        judge=Judge("smallest", 0.02, ROWS, lambda recipe: 1 / cost(recipe)),
    )  # fmt: skip
    stage.play(honest)
    result, _ = finished(stage, tmp_path, "smallest")
    smallest, cheapest = result.answers["smallest"], result.answers["cheapest"]
    assert smallest.recipe == result.winner.to_dict()
    assert smallest.counts["deployed"] < cheapest.counts["deployed"]


def test_an_interrupted_search_says_that_its_goal_is_not_reached(make_stage: Make, tmp_path: Path) -> None:
    stage = cheap(make_stage, baseline(50, 49))
    chief = stage.controller
    job = chief.next()
    assert isinstance(job, Job)
    chief.complete(honest(job))
    chief.interrupt()
    chief.abandon()
    result, _ = finished(stage, tmp_path, "cheapest")
    assert "not the cheapest" in result.finding
    assert result.answers == {}
