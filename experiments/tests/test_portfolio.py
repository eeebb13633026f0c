"""What is trained for the portfolio, and how its recommendations are judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lib.storage import append_row
from support.evidence import evidence, minilm_spec

from autopeft.recipe import Recipe
from autopeft.recipe.pooling import pooling_of
from autopeft.search.portfolio.evidence import Key, Setting
from autopeft.training.pooling import PoolingFinding

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
    first = next(i for i, (cell, _) in enumerate(found) if cell.seed != run.SEEDS[0])
    soon = {(m.template, cell.rows, m.rate) for cell, m in found[:first]}
    assert {template for template, _, _ in soon} == {"lora", *run.LIKELIEST}, (
        "the others follow on both seeds"
    )
    rates = {rows: {r for t, n, r in soon if t == "lora" and n == rows} for rows in (100, 500, 2_000)}
    assert rates == {100: {0, 1}, 500: {1, 2}, 2_000: {1, 2}}, "LoRA's, few rows the lower ones"
    assert {rate for template, _, rate in soon if template.startswith("krona")} == {0, 1}
    run.recipes.cache_clear()


def test_trainings_of_another_reading_are_not_used(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "READINGS", tmp_path / "readings.jsonl")
    cell = {"model": "minilm", "task": "trec", "rows": 100, "seed": 100}
    rows = [{**cell, "score": 0.5}, {**cell, "score": 0.6, "reading": "mean"}]
    other = {**cell, "task": "sms-spam", "score": 0.7}
    assert run.current([*rows, other]) == [], "of no cell it is known what heads read"
    append_row(run.READINGS, {**cell, "own": 1.0, "mean": 0.5, "pooling": "mean"})
    assert [row["score"] for row in run.current([*rows, other])] == [0.6]
    append_row(run.READINGS, {**cell, "task": "sms-spam", "own": 1.0, "mean": 0.99, "pooling": "own"})
    assert [row["score"] for row in run.current([*rows, other])] == [0.6, 0.7]


def test_a_training_reads_what_a_search_would_and_says_so(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "READINGS", tmp_path / "readings.jsonl")
    monkeypatch.setattr(run, "_model", lambda model, task: None)
    monkeypatch.setattr(run, "_data", lambda cell: SimpleNamespace(task=None))
    monkeypatch.setattr(run, "_spec", lambda model: minilm_spec())
    monkeypatch.setattr(run, "resolve_model", lambda model: model)
    probes: list[int] = []

    def probed(source: Any, task: Any, plan: Any, spec: Any) -> PoolingFinding:
        probes.append(plan.seed)
        return PoolingFinding("mean", 1.0, 0.5)

    trained: list[Recipe] = []

    def trial(model: Any, recipe: Recipe, data: Any, plan: Any, splits: Any) -> Any:
        trained.append(recipe)
        counts = SimpleNamespace(deployed=1)
        return SimpleNamespace(
            scores={"select": 0.5}, losses={"select": 0.7}, counts=counts, measured={"step_time": 0.1}
        )

    monkeypatch.setattr(run, "find_pooling", probed)
    monkeypatch.setattr(run, "run_trial", trial)
    run.recipes.cache_clear()
    members = run.recipes("minilm", "0.5%")[:2]
    rows = [run.measure(run.Cell("minilm", "trec", 100, 7), member) for member in members]
    assert probes == [7], "once for a cell"
    assert [row["reading"] for row in rows] == ["mean", "mean"]
    assert [row["hash"] for row in rows] == [member.hash for member in members]
    assert all(pooling_of(recipe).model for recipe in trained)
    run.recipes.cache_clear()


@pytest.mark.slow
def test_what_is_better_everywhere_is_found_without_the_cells_own_cluster(judging: Any) -> None:
    found = list(judging.judged(evidence(dora, noise=0.3), {"minilm": minilm_spec()}))
    assert len(found) == 5 * 3 * 3
    large = [j for j in found if j.budget == "0.5%"]
    assert {j.pick.template for j in large} == {"dora"}
    assert all(j.gain == pytest.approx(3.0, abs=0.9) for j in large)
    assert all(abs(j.over_tuned - 3.0) < 1.2 and abs(j.regret) < 0.9 for j in large)
    small = [j for j in found if j.budget == "0.04%"]  # DoRA does not fit
    assert sum(j.lora for j in small) > len(small) / 2
    assert not any(j.abstained for j in found)


@pytest.mark.slow
def test_a_clusters_own_scores_have_no_part_in_its_recommendation(judging: Any) -> None:
    def spam(key: Key, setting: Setting) -> float:
        if key.template != "krona":
            return 0.0
        return 9.0 if setting.task == "sms-spam" else -1.0

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
    assert judging.evaluation(evidence(dora, seeds=0), {"minilm": minilm_spec()}).startswith("No cell")


def test_what_is_asked_everywhere_leaves_the_tasks_own_cluster_out(
    judging: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(**given: Any) -> Any:
        asked.append((given["rows"], given["budget"], *given["leave_out"]))
        abstained = given["rows"] == 100
        return SimpleNamespace(abstained=abstained, reason="why" if given["budget"] == "0.5%" else None)

    monkeypatch.setattr(judging.autopeft, "recommend", answer)
    told = judging.asked_everywhere("minilm", {"trec": "trec", "rotten": "reviews"}, ("0.5%", "0.04%"))
    assert len(asked) == len(set(asked)) == 12
    assert {cluster for _, _, cluster in asked} == {"trec", "reviews"}
    assert told.startswith("Asked for 12 cells (2 tasks; 100, 500, 2,000 rows; 0.5%, 0.04%): 4 without ")
    assert ", 4 recommend LoRA on evidence." in told
