from __future__ import annotations

import re

import pytest
from support.tracking import RECIPE, confirm_job, confirm_record, trial_job, trial_record

from autopeft.recipe import Recipe, recipe_names
from autopeft.search.core.jobs import TrainJob
from autopeft.search.tracking.entry import entry_config, entry_name, hyperparameters, metrics_of


def test_a_recipe_as_flat_values() -> None:
    assert hyperparameters(RECIPE) == {
        "learning_rate": 1e-3,
        "groups.head.learning_rate": 0.01,
        "lora.at": "0,2",
        "lora.in": "gate",
        "lora.rank": 4,
        "lora.sites": "q,v",
        "ia3.at": "0,2",
        "ia3.in": "gate",
    }


@pytest.mark.parametrize("name", recipe_names())
def test_any_recipe_can_be_told(name: str) -> None:
    recipe = Recipe.named(name)
    found = hyperparameters(recipe.to_dict())
    assert {entry.name for entry in recipe.entries()} <= {key.split(".")[0] for key in found}
    for key, value in found.items():
        assert re.fullmatch(r"[\w./ -]+", key)
        assert isinstance(value, (str, int, float, bool))


def test_entries_alike_under_model_and_layers() -> None:
    found = hyperparameters(
        {
            "layers": [{"attach": ["ia3"]}, {"at": "last 2", "attach": [{"lora": {"rank": 2}}]}],
            "model": [{"fish_mask": {"keep": "0.1%"}}],
            "training": {"policies": [{"lora_plus": {"ratio": 8}}]},
        }
    )
    assert found["ia3.at"] == "all"
    assert found["lora.at"] == "last 2"
    assert found["fish_mask.at"] == "model"
    assert found["policies.lora_plus.ratio"] == 8


def test_jobs_and_their_records_have_one_name_and_one_config() -> None:
    paused = trial_record(3, "paused", {"30": 0.5})
    assert entry_name(trial_job(3, until=30)) == entry_name(trial_job(3)) == entry_name(paused) == "trial-3"
    assert entry_config(trial_job(3)) == entry_config(paused)
    assert entry_name(confirm_job()) == entry_name(confirm_record()) == "confirm-finalist-0-seed-7"
    assert entry_config(confirm_job()) == entry_config(confirm_record())
    baseline = TrainJob("baseline-0-s1", "baseline", "(IA)³ at q/v, seed 1", RECIPE)
    assert entry_name(baseline) == "baseline-IA-at-q-v-seed-1"
    assert entry_name(TrainJob("test-x", "test", "test of finalist 0, seed 7", RECIPE)).startswith(
        "test-of-f"
    )


def test_a_stopped_trial_has_no_score_that_a_full_run_could_be_compared_with() -> None:
    stopped = metrics_of(trial_record(1, "stopped", {"30": 0.5}, seconds=2.0, train_loss=float("nan")))
    assert stopped == {"rung_score": 0.5, "deployed": 120, "share": 0.012, "seconds": 2.0}
    full = metrics_of(
        trial_record(1, "complete", {"90": 0.6}, score=0.6, scores={"select": 0.6, "test": 0.4})
    )
    assert full["score"] == full["rung_score"] == 0.6
    assert full["test_score"] == 0.4
