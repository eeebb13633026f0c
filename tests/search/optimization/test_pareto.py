from __future__ import annotations

import csv
import io
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autopeft.runs.records import TrialRecord
from autopeft.search.optimization.pareto import front_csv, front_json, pareto_front

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


def test_both_files_hold_the_front() -> None:
    front = pareto_front([record(0, 10, 0.5), record(1, 20, 0.75)])
    rows = list(csv.DictReader(io.StringIO(front_csv(front))))
    assert [(r["trial"], r["deployed"], r["score"], r["name"]) for r in rows] == [
        ("0", "10", "0.500000", 'a,"b"'),
        ("1", "20", "0.750000", 'a,"b"'),
    ]
    assert [p["score"] for p in json.loads(front_json(front))] == [0.5, 0.75]
