"""The journal as a user reads it with plain Optuna."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.errors import BudgetError, DataError
from autopeft.recipe import Recipe
from autopeft.search.core.jobs import JobResult
from autopeft.search.optimization.journal import changes
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.candidate import Candidate, candidate
from autopeft.search.space.in_use import parameters_in_use
from autopeft.search.space.parameters import Parameter
from autopeft.search.space.space import Space

TEXT = """
layers:
  - attach:
      - lora: {rank: {choice: [0, 1, 2, 4, 8, hidden/2]}, alpha: {choice: [4, 8, 16]}}
      - optional: {serial_adapter: {bottleneck: {choice: [2, 4, 8]}, activation: {choice: [relu, gelu]}}}
training:
  learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
"""
RECORDED = Path(__file__).parents[2] / "fixtures" / "runs" / "interrupted" / "journal.log"
RECORDED_SPACE = (
    Parameter("lora.rank", "categorical", (1, 2, 4), sizes=(1, 2, 4)),
    Parameter("ia3.on", "categorical", (True, False)),
    Parameter("learning_rate", "float", low=1e-3, high=1e-2, log=True),
)


def plain(journal: Path) -> optuna.Study:
    """What a user opens."""
    return optuna.load_study(study_name="autopeft", storage=JournalStorage(JournalFileBackend(str(journal))))


def searched(folder: Path, sampler: str, *, objectives: int = 1) -> SearchStudy:
    """A search of 25 trials that scores small recipes best, under a budget that most proposals exceed."""
    bound = Space.from_yaml(TEXT).bind(spec_of(tiny_config("bert")))
    study = SearchStudy(
        folder / "journal.log",
        bound.parameters,
        lambda values: candidate(bound, values, Budget.parse("700")),
        sampler=sampler,
        seed=1,
        trials=25,
        rungs=Rungs.of(10, "none"),
        objectives=objectives,
        in_use=partial(parameters_in_use, bound),
    )
    for _ in range(25):
        proposal = study.propose()
        assert proposal is not None
        rate = Recipe.from_dict(dict(proposal.recipe)).training.learning_rate
        score = proposal.counts["deployed"] / 1000 + rate
        study.record(proposal.number, JobResult("x", scores={"select": score}))
    return study


def figures(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe of the space in the words of its parameters."""
    found: dict[str, Any] = {"learning_rate": recipe["training"]["learning_rate"]}
    for item in recipe["layers"][0]["attach"]:
        for method, config in item.items():
            found |= {f"{method}.{key}": value for key, value in config.items()}
    return found


def shown(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's parameters in the words of its recipe."""
    found = {k: 32 // 2 if v == "hidden/2" else v for k, v in trial.params.items()}
    assert found.pop("serial_adapter.on") is ("serial_adapter.bottleneck" in found)
    if found.get("lora.rank") == 0:
        assert "lora.alpha" not in found
        del found["lora.rank"]
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random", "linear"])
def test_a_user_reads_the_figures_of_the_recipes(tmp_path: Path, sampler: str) -> None:
    study = searched(tmp_path, sampler)
    opened = plain(tmp_path / "journal.log")
    winner = study.best()[0]
    assert opened.best_trial.number == winner.number
    assert shown(opened.best_trial) == figures(dict(winner.recipe))
    assert opened.best_params == opened.best_trial.params
    repaired = 0
    for trial in opened.trials:
        a = trial.user_attrs
        assert shown(trial) == figures(a["recipe"])
        assert {k: a["point"][k] for k in trial.params} == trial.params
        assert a["repaired"] == changes(a["proposed"], a["point"])
        repaired += bool(a["repaired"])
        rank = trial.distributions["lora.rank"]
        assert rank == CategoricalDistribution((0, 1, 2, 4, 8, "hidden/2"))
    assert repaired > 5


def test_samplers_go_on_being_told_what_they_proposed(tmp_path: Path) -> None:
    study = searched(tmp_path, "tpe")
    opened = plain(tmp_path / "journal.log")
    seen = [observation.params for observation in study._seen]
    ranks = (0, 1, 2, 4, 8, "hidden/2")
    for params, trial in zip(seen, opened.trials, strict=True):
        raw = trial.user_attrs["proposed"]
        assert params.keys() == raw.keys() == set(trial.user_attrs["point"])
        assert ranks[params["lora.rank"]] == raw["lora.rank"]
        assert params["learning_rate"] == raw["learning_rate"]
        assert study.get(trial.number).values == raw


def test_what_cannot_be_repaired_shows_what_was_proposed(tmp_path: Path) -> None:
    def refuse(values: dict[str, Any]) -> Candidate:
        raise BudgetError("nothing fits")

    space = (Parameter("rank", "categorical", (4, 8), sizes=(4, 8)),)
    rungs = Rungs.of(10, "none")
    journal = tmp_path / "journal.log"
    study = SearchStudy(journal, space, refuse, sampler="random", seed=0, trials=1, rungs=rungs, patience=1)
    with pytest.raises(BudgetError, match="nothing fits"):
        study.propose()
    (trial,) = plain(journal).trials
    assert trial.state == TrialState.FAIL
    assert trial.params["rank"] in (4, 8)


def test_changes_are_in_words() -> None:
    before = {"rank": 8, "on": True, "at": None, "n": 1, "same": 0.5}
    after = {"rank": 2, "on": False, "at": "all", "n": True, "same": 0.5}
    told = {"rank": "8 → 2", "on": "true → false", "at": "null → all", "n": "1 → true"}
    assert changes(before, after) == told


def recorded(values: dict[str, Any]) -> Candidate:
    raise AssertionError("nothing is proposed")


def open_recorded(journal: Path, space: tuple[Parameter, ...] = RECORDED_SPACE) -> SearchStudy:
    rungs = Rungs((50, 150), (1.0, 1.0))
    return SearchStudy(journal, space, recorded, sampler="random", seed=0, trials=9, rungs=rungs)


@pytest.mark.parametrize(
    "space",
    [
        RECORDED_SPACE[:2],
        (Parameter("lora.rank", "categorical", (1,), sizes=(1,)), *RECORDED_SPACE[1:]),
        (Parameter("lora.rank", "categorical", (1, 2), sizes=(1, 2)), *RECORDED_SPACE[1:]),
    ],
)
def test_a_journal_of_another_space_is_refused_and_stays_as_it_is(
    tmp_path: Path, space: tuple[Parameter, ...]
) -> None:
    journal = tmp_path / "journal.log"
    shutil.copyfile(RECORDED, journal)
    with pytest.raises(DataError, match="another search space"):
        open_recorded(journal, space)
    assert journal.read_bytes() == RECORDED.read_bytes()


def test_a_journal_of_before_it_held_the_recipes_figures_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    text = RECORDED.read_text()
    assert text.count('"user_attr":{"journal":2}') == 1
    journal.write_text(text.replace('"user_attr":{"journal":2}', '"user_attr":{"journal":1}'))
    with pytest.raises(DataError, match=r"another version of autopeft.*--from"):
        open_recorded(journal)


def test_values_that_the_space_no_longer_has_are_refused(tmp_path: Path) -> None:
    searched(tmp_path, "random")
    bound = Space.from_yaml(TEXT.replace("[0, 1, 2, 4, 8, hidden/2]", "[1, 2]")).bind(
        spec_of(tiny_config("bert"))
    )
    with pytest.raises(DataError, match="another search space"):
        open_recorded(tmp_path / "journal.log", bound.parameters)
