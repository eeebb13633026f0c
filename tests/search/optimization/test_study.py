from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.searching import to_lora
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.counting import Counts, count
from autopeft.errors import BudgetError, DataError, UsageError
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.search.core.jobs import JobResult
from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.journal import journal_begun
from autopeft.search.optimization.sampler_view import view_of
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.candidate import Candidate
from autopeft.search.space.parameters import Parameter
from autopeft.search.space.space import Space

RUNGS = Rungs.of(10, "none")
RANKS = (1, 2, 4, 8)
SPACE = (Parameter("rank", "categorical", RANKS, sizes=RANKS), Parameter("site", "categorical", ("q", "v")))


def repair(values: dict[str, Any], cap: int = 4) -> Candidate:
    """Shrinks the rank to the cap, as a budget would."""
    rank = min(values["rank"], cap)
    recipe = Recipe.from_dict(
        {"layers": [{"attach": [{"lora": {"sites": [values.get("site", "q")], "rank": rank}}]}]}
    )
    return Candidate(recipe, Counts(rank * 10, rank * 10, 0, 1000), recipe.hash(), {**values, "rank": rank})


def open_study(path: Path, **more: Any) -> SearchStudy:
    options: dict[str, Any] = {"sampler": "random", "seed": 0, "trials": 10, "rungs": RUNGS, **more}
    return SearchStudy(
        path / "journal.log", options.pop("space", SPACE), options.pop("repair", repair), **options
    )


def done(number: int, score: float, **more: Any) -> JobResult:
    return JobResult(f"trial-{number}", scores={"select": score}, seconds=1.5, **more)


def run_all(study: SearchStudy, limit: int = 100) -> list[str]:
    hashes: list[str] = []
    while len(hashes) < limit and (proposal := study.propose()) is not None:
        hashes.append(proposal.hash)
        study.record(proposal.number, done(proposal.number, proposal.counts["deployed"] / 100))
    return hashes


def test_an_exhausted_space_ends_the_search_and_nothing_is_trained_twice(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    hashes = run_all(study)
    assert len(hashes) == len(set(hashes)) == 6  # ranks 4 and 8 are one recipe after repair
    assert study.propose() is None


def test_points_that_mean_the_same_are_trained_once(tmp_path: Path) -> None:
    text = """
layers:
  - at: {choice: [all, "0-2", "first 2"]}
    attach: [{choice: [{sum: [lora, ia3]}, {sum: [ia3, lora]}]}]
"""
    bound = Space.from_yaml(text).bind(spec_of(tiny_config("bert")))

    def as_it_is(values: dict[str, Any]) -> Candidate:
        graph = build_graph(bound.materialize(values), bound.spec)
        return Candidate(graph.recipe, count(graph, bound.spec), graph.trial_hash(), values)

    study = open_study(tmp_path, space=bound.parameters, repair=as_it_is)
    assert len(run_all(study)) == 2 < bound.cardinality() == 6
    assert study.take_duplicates()


@pytest.mark.parametrize("sampler", [pytest.param("gp", marks=pytest.mark.slow), "tpe", "random"])
def test_each_sampler_exhausts_a_small_space(tmp_path: Path, sampler: str) -> None:
    assert len(set(run_all(open_study(tmp_path, sampler=sampler)))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_small_space_is_exhausted_to_its_last_point(tmp_path: Path, sampler: str) -> None:
    """Random draws alone leave some of forty out before they repeat what is known a hundred times."""
    many = (Parameter("a", "categorical", tuple("abcde")), Parameter("b", "int", low=1, high=8))

    def as_it_is(values: dict[str, Any]) -> Candidate:
        return repair({"rank": 8 * "abcde".index(values["a"]) + values["b"]}, cap=40)

    study = open_study(tmp_path, space=many, repair=as_it_is, sampler=sampler, patience=12)
    assert len(set(run_all(study))) == 40
    assert study.propose() is None


def test_duplicates_are_told_the_known_score_with_raw_parameters(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    run_all(study)
    duplicates = [r for r in study.records() if r.state == "duplicate"]
    assert duplicates
    for record in duplicates:
        assert record.duplicate_of is not None
        assert record.values is not None
        assert record.score == study.get(record.duplicate_of).score
        assert record.number is not None
        assert study.study.trials[record.number].state == TrialState.COMPLETE
    raw = {r.values["rank"] for r in study.records() if r.values}
    assert 8 in raw  # not the repaired 4


def test_a_duplicate_of_a_running_trial_waits_for_its_score(tmp_path: Path) -> None:
    one = (Parameter("rank", "categorical", (4, 8), sizes=(4, 8)),)
    study = open_study(tmp_path, space=one, repair=repair, patience=6)
    first = study.propose()
    assert first is not None
    assert study.propose() is None
    assert all(t.state == TrialState.RUNNING for t in study.study.trials)
    study.record(first.number, done(first.number, 0.7))
    assert [t.value for t in study.study.trials] == [0.7] * 7
    assert len(study.take_duplicates()) == 6
    assert study.take_duplicates() == []
    assert study.trained == 1


def test_record_is_idempotent(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    proposal = study.propose()
    assert proposal is not None
    assert study.record(proposal.number, done(proposal.number, 0.5))
    assert not study.record(proposal.number, done(proposal.number, 0.9))
    assert study.get(proposal.number).score == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_fails_the_trial(tmp_path: Path, bad: float) -> None:
    study = open_study(tmp_path)
    proposal = study.propose()
    assert proposal is not None
    study.record(proposal.number, done(proposal.number, bad, train_loss=bad))
    record = study.get(proposal.number)
    assert (record.state, record.failure, record.score) == ("failed", "non_finite", None)
    assert study.best() == []
    for line in (tmp_path / "journal.log").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the journal"))


def test_reopening_fails_orphans_keeps_results_and_moves_the_seed(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    first, second = study.propose(), study.propose()
    assert first is not None
    assert second is not None
    study.record(first.number, done(first.number, 0.5))
    again = open_study(tmp_path)
    assert again.get(first.number).score == 0.5
    orphan = again.get(second.number)
    assert (orphan.state, orphan.failure) == ("interrupted", "stopped")
    hashes = run_all(again)
    assert first.hash not in hashes, "a scored recipe was trained again"
    assert second.hash in hashes, "a lost recipe was never trained again"


def test_a_torn_journal_is_mended(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    proposal = study.propose()
    assert proposal is not None
    study.record(proposal.number, done(proposal.number, 0.5))
    journal = tmp_path / "journal.log"
    with journal.open("a") as file:
        file.write('{"op_code": 4, "tri')
    Path(f"{journal}.lock").touch()
    again = open_study(tmp_path)
    assert again.get(proposal.number).score == 0.5
    assert again.propose() is not None
    open_study(tmp_path)  # what was appended after the tear is readable


def test_infeasible_suggestions_are_failed_and_bounded(tmp_path: Path) -> None:
    def refuse(values: dict[str, Any]) -> Candidate:
        raise BudgetError("nothing fits")

    study = open_study(tmp_path, repair=refuse, patience=4)
    with pytest.raises(BudgetError, match="nothing fits"):
        study.propose()
    assert [t.state for t in study.study.trials] == [TrialState.FAIL] * 4
    assert study.records() == []


def test_where_something_was_found_before_infeasible_suggestions_end_the_search(tmp_path: Path) -> None:
    tried: list[Any] = []

    def refuse(values: dict[str, Any]) -> Candidate:
        tried.append(values)
        if len(tried) > 1:
            raise BudgetError("nothing fits")
        return repair(values)

    study = open_study(tmp_path, repair=refuse, patience=4)
    assert study.propose() is not None
    assert study.propose() is None


def test_first_points_come_first(tmp_path: Path) -> None:
    study = open_study(tmp_path, first=[{"rank": 2, "site": "v"}, {"rank": 1, "site": "q"}])
    recipes = [study.propose(), study.propose()]
    found = [r.recipe["layers"][0]["attach"][0]["lora"] for r in recipes if r is not None]
    assert found == [{"sites": ["v"], "rank": 2}, {"sites": ["q"], "rank": 1}]


def test_codec_round_trip_keeps_order_and_odd_choices() -> None:
    space = (
        Parameter("size", "categorical", (None, 4, "hidden/16"), sizes=(0, 4, 24)),
        Parameter("at", "categorical", ("all", True, None)),
        Parameter("n", "int", low=1, high=64, log=True),
        Parameter("lr", "float", low=1e-4, high=1e-1, log=True),
    )
    codec = Codec(space)
    values = {"size": "hidden/16", "at": True, "n": 8, "lr": 1e-3}
    assert codec.decode(codec.encode(values)) == values
    assert type(codec.distributions["size"]).__name__ == "IntDistribution"


def test_unknown_sampler_names_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"random"):
        open_study(tmp_path, sampler="randm")


def test_best_prefers_small_among_equals(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    sizes = []
    while (p := study.propose()) is not None:
        study.record(p.number, done(p.number, 0.5))
        sizes.append(p.counts["deployed"])
    assert [r.counts["deployed"] for r in study.best(6) if r.counts] == sorted(sizes)


CLIMB = Rungs((2, 5, 10), (1.0, 1.0, 1.0))


def test_a_trial_on_a_rung_waits_and_goes_on_in_another_process(tmp_path: Path) -> None:
    study = open_study(tmp_path, rungs=CLIMB)
    one, two = study.propose(), study.propose()
    assert one is not None
    assert two is not None
    assert study.pause(one.number, 2, done(one.number, 0.4, paused=True))
    assert not study.pause(one.number, 2, done(one.number, 0.9, paused=True))
    assert study.records() == []
    assert (study.trained, study.best()) == (1, [])

    again = open_study(tmp_path, rungs=CLIMB)
    assert {n: dict(r.rungs) for n, r in again.paused.items()} == {one.number: {"2": 0.4}}
    assert again.get(two.number).failure == "stopped"
    assert again.trained == 1
    # What was lost with its process is proposed again, once.
    third = again.propose()
    assert third is not None
    assert third.hash == two.hash
    assert again.pause(one.number, 5, done(one.number, 0.5, paused=True))
    assert again.record(one.number, done(one.number, 0.6))
    record = again.get(one.number)
    assert (record.state, record.score, record.steps) == ("complete", 0.6, 10)
    assert dict(record.rungs) == {"2": 0.4, "5": 0.5, "10": 0.6}
    assert record.seconds == 4.5
    frozen = again.study.trials[one.number]
    assert frozen.intermediate_values == {2: 0.4, 5: 0.5}
    last = open_study(tmp_path, rungs=CLIMB)
    assert next(iter(last.propose, None)).hash == two.hash  # lost a second time
    last.record(4, done(4, 0.3))
    final = open_study(tmp_path, rungs=CLIMB)
    assert final.take_duplicates() == []
    assert final.propose() is not None
    assert final.take_duplicates() == []


def test_what_is_stopped_at_a_rung_is_never_among_the_best(tmp_path: Path) -> None:
    study = open_study(tmp_path, rungs=CLIMB)
    one, two = study.propose(), study.propose()
    assert one is not None
    assert two is not None
    study.pause(one.number, 2, done(one.number, 0.9, paused=True))
    study.record(two.number, done(two.number, 0.1))
    stopped = study.stop(one.number)
    assert (stopped.state, stopped.score, stopped.steps) == ("stopped", None, 2)
    assert [r.number for r in study.best(5)] == [two.number]
    assert study.study.trials[one.number].state == TrialState.PRUNED
    assert study.trained == 2
    reopened = open_study(tmp_path, rungs=CLIMB)
    assert reopened.get(one.number) == stopped
    assert reopened.paused == {}


def test_duplicates_of_a_stopped_trial_are_stopped_too(tmp_path: Path) -> None:
    one = (Parameter("rank", "categorical", (4, 8), sizes=(4, 8)),)
    options: dict[str, Any] = {"space": one, "patience": 3}
    study = open_study(tmp_path, rungs=CLIMB, **options)
    first = study.propose()
    assert first is not None
    study.pause(first.number, 2, done(first.number, 0.4, paused=True))
    assert study.propose() is None
    reopened = open_study(tmp_path, rungs=CLIMB, **options)
    assert list(reopened.paused) == [first.number]
    reopened.stop(first.number)
    assert [r.state for r in reopened.take_duplicates()] == ["duplicate"] * 3
    assert {t.state for t in reopened.study.trials} == {TrialState.PRUNED}


def test_two_objectives_are_told_score_and_size(tmp_path: Path) -> None:
    for sampler in ("tpe", "linear"):
        (tmp_path / sampler).mkdir()
        study = open_study(tmp_path / sampler, objectives=2, sampler=sampler)
        assert len(set(run_all(study))) == 6
        for trial in study.study.trials:
            assert trial.values == [trial.values[0], trial.values[0] * 100]
        assert len(open_study(tmp_path / sampler, objectives=2).records()) == len(study.records())
        with pytest.raises(DataError, match="objectives"):
            open_study(tmp_path / sampler)


def test_the_second_objective_is_what_training_left(tmp_path: Path) -> None:
    study = open_study(tmp_path, objectives=2)
    proposal = study.propose()
    assert proposal is not None
    study.record(proposal.number, done(proposal.number, 0.5, counts={"deployed": 3}))
    assert [trial.values for trial in study.study.trials] == [[0.5, 3.0]]
    assert proposal.counts["deployed"] > 3


def test_a_journal_of_another_space_is_refused(tmp_path: Path) -> None:
    run_all(open_study(tmp_path))
    with pytest.raises(DataError, match="another search space"):
        open_study(tmp_path, space=SPACE[:1])


def next_values(study: SearchStudy, count: int) -> list[Any]:
    """The values of the next proposals."""
    proposals = [study.propose() for _ in range(count)]
    assert None not in proposals
    return [study.get(proposal.number).values for proposal in proposals if proposal is not None]


def test_first_points_that_were_not_tried_are_tried_after_a_crash(tmp_path: Path) -> None:
    first = [{"rank": 1, "site": "q"}, {"rank": 2, "site": "v"}, {"rank": 4, "site": "v"}]
    study = open_study(tmp_path, first=first)
    tried = study.propose()
    assert tried is not None
    study.record(tried.number, done(tried.number, 0.5))
    again = open_study(tmp_path)
    assert next_values(again, 2) == first[1:]
    assert again.take_duplicates() == []


def test_first_points_outlive_a_process_that_ended_before_its_first_trial(tmp_path: Path) -> None:
    first = [{"rank": 2, "site": "v"}, {"rank": 4, "site": "v"}]
    assert not journal_begun(tmp_path / "journal.log")
    open_study(tmp_path, first=first)
    assert journal_begun(tmp_path / "journal.log")
    again = open_study(tmp_path)
    assert next_values(again, 2) == first


def test_a_process_that_ended_while_it_made_the_journal_has_not_begun_it(tmp_path: Path) -> None:
    open_study(tmp_path, first=[{"rank": 2, "site": "v"}])
    journal = tmp_path / "journal.log"
    whole = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(whole[:-1]))
    assert not journal_begun(journal)
    again = open_study(tmp_path, first=[{"rank": 4, "site": "v"}])
    assert next_values(again, 1) == [{"rank": 4, "site": "v"}]


def test_a_parameter_may_have_the_name_of_what_a_search_begins_with(tmp_path: Path) -> None:
    (tmp_path / "journal.log").write_text('{"op_code":2,"study_id":0,"user_attr":{"ordered":["first"]}}\n')
    assert not journal_begun(tmp_path / "journal.log")


def test_samplers_see_what_waits_on_a_rung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_study(tmp_path, rungs=CLIMB)
    one = study.propose()
    assert one is not None
    study.pause(one.number, 2, done(one.number, 0.4, paused=True))
    shown: list[Any] = []
    module = "autopeft.search.optimization.study"
    monkeypatch.setattr(
        f"{module}.view_of", lambda seen, *a, **k: shown.extend(seen) or view_of(seen, *a, **k)
    )
    study.propose()
    assert shown[0].rungs == {2: 0.4}


def test_a_lost_recipe_may_come_again_in_the_same_process(tmp_path: Path) -> None:
    one = (Parameter("rank", "categorical", (4,)),)
    study = open_study(tmp_path, space=one, repair=repair, patience=3)
    first = study.propose()
    assert first is not None
    study.record(first.number, JobResult("x", error="The worker died.", failure="lost"))
    second = study.propose()
    assert second is not None
    assert second.hash == first.hash


def test_copies_that_waited_for_a_lost_trial_do_not_wait_for_ever(tmp_path: Path) -> None:
    one = (Parameter("rank", "categorical", (4, 8), sizes=(4, 8)),)
    options: dict[str, Any] = {"space": one, "patience": 3}
    study = open_study(tmp_path, **options)
    assert study.propose() is not None
    assert study.propose() is None
    reopened = open_study(tmp_path, **options)
    assert all(t.state.is_finished() for t in reopened.study.trials)
    assert reopened.propose() is not None


def test_merits_rank_where_there_are_some_and_scores_are_told(tmp_path: Path) -> None:
    study = open_study(tmp_path, rungs=CLIMB)
    one, two = study.propose(), study.propose()
    assert one is not None
    assert two is not None
    study.pause(one.number, 2, done(one.number, 0.4, paused=True, merit=-0.7))
    study.record(one.number, done(one.number, 0.6, merit=-0.5))
    study.record(two.number, done(two.number, 0.7, merit=-0.9))
    for opened in (study, open_study(tmp_path, rungs=CLIMB)):
        best = opened.best(2)
        assert [(r.number, r.score, r.rank) for r in best] == [
            (one.number, 0.6, -0.5),
            (two.number, 0.7, -0.9),
        ]
        assert dict(best[0].rungs) == {"2": 0.4, "10": 0.6}
        assert dict(best[0].merits) == {"2": -0.7, "10": -0.5}
        assert opened._seen[one.number].rungs == {2: -0.7, 10: -0.5}, "what samplers learn from"
        assert opened.study.trials[one.number].values == [0.6], "what people read in the journal"


def test_a_duplicate_has_the_merit_of_the_first(tmp_path: Path) -> None:
    study = open_study(tmp_path, first=[{"rank": 4, "site": "q"}, {"rank": 8, "site": "q"}])
    proposal = study.propose()
    assert proposal is not None
    study.record(proposal.number, done(proposal.number, 0.6, merit=-0.5))
    study.propose()
    copied = next(r for r in study.records() if r.state == "duplicate")
    assert (copied.score, dict(copied.merits)) == (0.6, {"10": -0.5})
    assert copied.number is not None
    assert study._seen[copied.number].rungs == {10: -0.5}


def test_the_second_objective_may_be_the_cost_of_a_step(tmp_path: Path) -> None:
    """It is told as it was predicted, stands in the journal, and is there again."""

    def costly(values: dict[str, Any]) -> Candidate:
        return replace(to_lora(values), step_cost=1 / values["rank"])

    def opened() -> SearchStudy:
        parameters = [Parameter("rank", "categorical", (1, 2, 4, 8), sizes=(1, 2, 4, 8))]
        return SearchStudy(
            tmp_path / "journal.log", parameters, costly, sampler="linear", seed=0, trials=4,
            rungs=Rungs.of(10, "none"), objectives=2, cost="step_cost",
        )  # fmt: skip

    study = opened()
    assert study.study.metric_names == ["score", "cost of a training step"]
    for _ in range(3):
        proposal = study.propose()
        assert proposal is not None
        study.record(proposal.number, done(proposal.number, 0.5))
    for record in study.records():
        rank = record.recipe["layers"][0]["attach"][0]["lora"]["rank"]
        assert record.step_cost == 1 / rank
        assert study.study.trials[record.number or 0].values == [0.5, 1 / rank]
    again = opened()
    assert [r.step_cost for r in again.records()] == [r.step_cost for r in study.records()]
    assert [seen.cost for seen in again._seen] == [r.step_cost for r in study.records()]
