from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autopeft.runs.records import TrialRecord
from autopeft.search.optimization.pareto import (
    best_first,
    front_csv,
    front_json,
    nondominated,
    order,
    pareto_front,
)

POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30)


def record(number: int, deployed: int, score: float | None, **more: object) -> TrialRecord:
    state = "complete" if score is not None else "failed"
    counts: dict[str, int | float] = {"deployed": deployed, "share": deployed / 1e4}
    fields: dict[str, Any] = {"state": state, "name": 'a,"b"', **more}
    return TrialRecord(
        "trial",
        "t",
        fields["state"],
        {"name": fields["name"]},
        number=number,
        counts=counts,
        score=score,  # type: ignore[arg-type]
    )


@given(POINTS)
def test_the_front_is_exactly_what_is_not_dominated(points: list[tuple[int, int]]) -> None:
    front = pareto_front([record(i, d, s / 20) for i, (d, s) in enumerate(points)])
    kept = {(p.deployed, round(p.score * 20)) for p in front}
    expected = {
        (d, s) for d, s in points if not any((e <= d and t >= s and (e, t) != (d, s)) for e, t in points)
    }
    assert kept == expected
    assert len(front) == len(expected)
    assert [p.deployed for p in front] == sorted(p.deployed for p in front)


def test_failed_trials_and_duplicates_are_left_out() -> None:
    assert pareto_front([record(0, 1, None), record(1, 1, 0.5, state="duplicate")]) == []


def test_a_record_without_a_size_is_on_no_front_and_comes_last_of_equals() -> None:
    sized, unsized = record(1, 10, 0.5), replace(record(0, 1, 0.5), counts=None)
    assert [p.number for p in pareto_front([unsized, sized])] == [1]
    assert best_first([unsized, sized]) == [sized, unsized]


@given(POINTS)
def test_best_first_goes_by_score_then_size_then_number(points: list[tuple[int, int]]) -> None:
    found = best_first(record(i, d, s / 20) for i, (d, s) in enumerate(points))
    keys = [(-(r.score or 0.0), r.deployed, r.number) for r in found]
    assert len(found) == len(points)
    assert keys == sorted(keys)  # type: ignore[type-var]


def test_only_full_trainings_are_ranked() -> None:
    states = ("stopped", "paused", "running", "failed", "duplicate")
    assert best_first(record(i, 1, 0.9, state=state) for i, state in enumerate(states)) == []
    assert best_first([replace(record(0, 1, 0.9), score=None)]) == []


@given(POINTS)
def test_of_equal_items_the_earliest_is_not_dominated(points: list[tuple[int, int]]) -> None:
    items = [(score, size, number) for number, (size, score) in enumerate(points)]
    front = nondominated(items, lambda item: order(*item))
    for score, size, number in front:
        assert not any(s >= score and d <= size and (s, d) != (score, size) for s, d, _ in items)
        assert number == min(n for s, d, n in items if (s, d) == (score, size))


def test_both_files_hold_the_front() -> None:
    front = pareto_front([record(0, 10, 0.5), record(1, 20, 0.75)])
    rows = list(csv.DictReader(io.StringIO(front_csv(front))))
    assert [(r["trial"], r["deployed"], r["score"], r["name"]) for r in rows] == [
        ("0", "10", "0.500000", 'a,"b"'),
        ("1", "20", "0.750000", 'a,"b"'),
    ]
    assert [p["score"] for p in json.loads(front_json(front))] == [0.5, 0.75]
