from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.counting import Counts, count
from autopeft.errors import BudgetError, UsageError
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.search.jobs import JobResult
from autopeft.search.space import Space
from autopeft.search.space_bound import Parameter
from autopeft.search.study import Codec, Repaired, SearchStudy

RANKS = (1, 2, 4, 8)
SPACE = (Parameter("rank", "categorical", RANKS, sizes=RANKS), Parameter("site", "categorical", ("q", "v")))


def repair(values: dict[str, Any], cap: int = 4) -> Repaired:
    """Shrinks the rank to the cap, as a budget would."""
    rank = min(values["rank"], cap)
    recipe = Recipe.from_dict({"layers": [{"attach": [{"lora": {"sites": [values["site"]], "rank": rank}}]}]})
    return Repaired(recipe, Counts(rank * 10, rank * 10, 0, 1000), recipe.hash())


def open_study(path: Path, **more: Any) -> SearchStudy:
    options: dict[str, Any] = {"sampler": "random", "seed": 0, "trials": 10, **more}
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

    def as_it_is(values: dict[str, Any]) -> Repaired:
        graph = build_graph(bound.materialize(values), bound.spec)
        return Repaired(graph.recipe, count(graph, bound.spec), graph.trial_hash())

    study = open_study(tmp_path, space=bound.parameters, repair=as_it_is)
    assert len(run_all(study)) == 2 < bound.cardinality() == 6
    assert study.take_duplicates()


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_each_sampler_exhausts_a_small_space(tmp_path: Path, sampler: str) -> None:
    assert len(set(run_all(open_study(tmp_path, sampler=sampler)))) == 6


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
    study = open_study(tmp_path, space=one, repair=lambda v: repair({**v, "site": "q"}), patience=6)
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
    assert (orphan.state, orphan.failure) == ("failed", "lost")
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
    def refuse(values: dict[str, Any]) -> Repaired:
        raise BudgetError("nothing fits")

    study = open_study(tmp_path, repair=refuse, patience=4)
    assert study.propose() is None
    assert [t.state for t in study.study.trials] == [TrialState.FAIL] * 4
    assert study.records() == []


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
