"""Of two LoRAs that had fresh seeds, the runs are those of the one that the result tells."""

from __future__ import annotations

from lib.told import fresh_runs

from autopeft.runs.records import TrialRecord


def record(job: str, recipe: str) -> TrialRecord:
    return TrialRecord(kind="baseline", label=job, state="complete", recipe={"name": recipe}, job=job)


def test_the_runs_of_a_baseline_are_those_of_the_recipe_that_is_told() -> None:
    finals = [
        record("baseline-0-sweep1", "kept"), record("baseline-0-2-s1400", "lost"),
        record("baseline-0-1-s1400", "kept"), record("baseline-0-1-s1401", "kept"),
        record("baseline-1-0-s1400", "head"), record("baseline-10-0-s1400", "kept"),
    ]  # fmt: skip
    result = {"baselines": [{"recipe": {"name": "kept"}}, {"recipe": {"name": "head"}}]}
    assert [r.job for r in fresh_runs(finals, result, 0)] == ["baseline-0-1-s1400", "baseline-0-1-s1401"]
    assert [r.job for r in fresh_runs(finals, result, 1)] == ["baseline-1-0-s1400"]
