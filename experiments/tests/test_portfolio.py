"""What is trained for the portfolio, and how its recommendations are judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.evidence import evidence, minilm_spec

from autopeft.search.portfolio.evidence import Key, Setting

FOLDER = "portfolio"


@pytest.fixture(scope="module")
def run(load: Callable[[str], Any]) -> Any:
    return load("run")


@pytest.fixture(scope="module")
def judging(load: Callable[[str], Any]) -> Any:
    return load("evaluation")


def dora(key: Key, setting: Setting) -> float:
    return {"dora": 3.0, "lora": 0.0, "lora, upper half": 0.0}.get(key.template, -1.0)


def test_each_training_is_needed_once_and_what_is_recorded_is_not(run: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(run, "_spec", lambda model: minilm_spec())
    monkeypatch.setattr(run, "TASKS", ("trec", "sms-spam"))
    run.recipes.cache_clear()
    found = list(run.needed("minilm", set()))
    keys = [(*vars(cell).values(), member.hash, run.STEPS) for cell, member in found]
    assert len(set(keys)) == len(keys)
    assert {cell.rows for cell, _ in found} == {100, 500, 2_000}
    assert len(list(run.needed("minilm", set(keys[:100])))) == len(keys) - 100
    run.recipes.cache_clear()


def test_what_is_better_everywhere_is_found_without_the_cells_own_cluster(judging: Any) -> None:
    found = list(judging.judged(evidence(dora, noise=0.3), {"minilm": minilm_spec()}))
    assert len(found) == 5 * 3 * 3
    large = [j for j in found if j.budget == "0.5%"]
    assert {j.pick.template for j in large} == {"dora"}
    assert all(j.gain == pytest.approx(3.0, abs=0.9) for j in large)
    assert all(abs(j.over_tuned - 3.0) < 1.2 and abs(j.regret) < 0.9 for j in large)
    small = [j for j in found if j.budget == "0.04%"]  # DoRA does not fit
    assert sum(j.abstained for j in small) > len(small) / 2


def test_a_clusters_own_scores_have_no_part_in_its_recommendation(judging: Any) -> None:
    def spam(key: Key, setting: Setting) -> float:
        return 9.0 if key.template == "krona" and setting.task == "sms-spam" else 0.0

    found = judging.judged(evidence(spam, noise=0.3), {"minilm": minilm_spec()})
    own = [j for j in found if j.task == "sms-spam" and j.budget == "0.5%"]
    assert own
    assert all(j.pick.template != "krona" and j.regret > 8.0 for j in own)


def test_what_is_compared_with_is_chosen_by_one_seed_and_judged_by_the_other(judging: Any) -> None:
    a, b = Key("a", 0), Key("b", 0)
    gains = {0: {a: 2.0, b: 1.0}, 1: {a: 0.0, b: 1.0}}
    assert judging._chosen(gains, lambda key: True) == pytest.approx((0.0 + 1.0) / 2)
    assert judging._chosen({0: gains[0]}, lambda key: True) == 2.0
    assert judging._chosen(gains, lambda key: key == b) == 1.0


def test_the_tables_hold_every_group_and_say_what_has_one_seed(judging: Any) -> None:
    text = judging.evaluation(evidence(dora, noise=0.3, seeds=1), {"minilm": minilm_spec()})
    assert "| 500 | 0.5% | 5 | 0 % | 0 % |" in text
    assert "| all | all | 45 |" in text
    assert "45 of 45 cells have one seed" in text
    assert "not recorded: not used" in text
    assert judging.evaluation(evidence(dora, seeds=0), {"minilm": minilm_spec()}).startswith("No cell")
