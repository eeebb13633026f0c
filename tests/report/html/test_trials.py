from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autopeft.report.html.trials import Row, Table, finals_table, methods_of, trials_table
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord

Make = Callable[..., RunFolder]


def trial(number: int, state: Any, **more: Any) -> TrialRecord:
    return TrialRecord("trial", f"trial {number}", state, {}, number, **more)


def cells(table: Table, row: Row) -> dict[str, Any]:
    return {name: cell for (name, _), cell in zip(table.headers, row.cells, strict=True)}


def by_number(table: Table) -> dict[float | None, dict[str, Any]]:
    return {row.cells[0].sort: cells(table, row) for row in table.rows}


def test_every_state_is_told_in_words(make_run: Make) -> None:
    rows = by_number(trials_table(make_run(trials=8).trials().records))
    assert rows[0]["state"].text == "complete"
    assert rows[3]["state"].text == "failed: failed"
    assert rows[5]["state"].text == "duplicate of 4"
    assert rows[6]["state"].text == "stopped at step 20"
    table = trials_table([trial(0, "interrupted", failure="stopped", error="The search was stopped.")])
    assert by_number(table)[0]["state"].text == "interrupted"
    assert [row.error for row in table.rows] == [""]


def test_a_stopped_trial_is_never_beside_full_ones() -> None:
    """Not even where a record has a score of fewer steps."""
    record = trial(1, "stopped", steps=20, score=0.99, rungs={"20": 0.99, "5": 0.4})
    row = by_number(trials_table([record]))[1]
    assert row["select"].text == "–"
    assert row["select"].sort is None
    assert row["rungs"].text == "5: 0.4000, 20: 0.9900"


def test_columns_sort_by_what_they_show(make_run: Make) -> None:
    table = trials_table(make_run(trials=6).trials().records)
    row = by_number(table)[4]
    assert row["deployed"].sort == float(row["deployed"].text.replace(",", ""))
    assert row["select"].sort == pytest.approx(float(row["select"].text), abs=1e-4)
    assert row["time"].sort == 7.5
    failed = by_number(table)[3]
    assert failed["select"].sort is None
    (error,) = [r.error for r in table.rows if r.error]
    assert error == "RuntimeError: broke down "


def test_trials_that_have_not_ended_are_there_once() -> None:
    waiting = trial(2, "paused", steps=20, rungs={"20": 0.7}, score=0.7)
    unfinished = [trial(0, "running"), trial(1, "running"), waiting]
    rows = by_number(trials_table([trial(0, "complete")], unfinished))
    assert list(rows) == [0, 1, 2]
    assert rows[0]["state"].text == "complete"
    assert rows[1]["state"].text == "not ended"
    assert rows[2]["state"].text == "paused at step 20"
    assert rows[2]["select"].sort is None
    assert {rows[1]["time"].text, rows[2]["time"].text} == {"–"}


def test_finals_have_test_scores_and_seeds(make_run: Make) -> None:
    table = finals_table(make_run(trials=1).finals().records)
    row = cells(table, table.rows[1])
    assert (row["run"].text, row["seed"].sort) == ("finalist 20", 1001.0)
    assert row["test"].text == "0.7100"


def test_a_table_is_bounded_and_says_so() -> None:
    table = trials_table(trial(n, "complete") for n in range(2100))
    assert (len(table.rows), table.left_out) == (2000, 100)


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({"layers": [{"attach": ["lora", "ia3"]}, {"at": [1], "attach": ["lora"]}]}, "2 × lora + ia3"),
        ({"name": "head"}, "head only"),
        ({"layers": "all of them"}, "unreadable recipe"),
        ({"layers": [{"attach": ["no_such_method"]}]}, "unreadable recipe"),
        ([1], "–"),
        (None, "–"),
    ],
)
def test_methods_of_any_recipe(recipe: Any, text: str) -> None:
    assert methods_of(recipe) == text


@pytest.mark.parametrize("record", [trial(0, "failed"), TrialRecord("test", "", "complete", {"a": [1]})])
def test_records_that_lack_all_they_may_lack_have_a_row(record: TrialRecord) -> None:
    assert len(trials_table([record]).rows) == len(finals_table([record]).rows) == 1


@pytest.mark.parametrize("recipe", [{"a": [[1]]}, {"layers": 10**300}, {"layers": {"x": float("nan")}}])
def test_recipes_of_any_content_have_a_row(recipe: dict[str, Any]) -> None:
    (row,) = trials_table([replace(trial(0, "complete"), recipe=recipe)]).rows
    assert row.cells[2].text == "unreadable recipe"
