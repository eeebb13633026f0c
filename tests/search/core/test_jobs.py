from __future__ import annotations

import pickle

import pytest

from autopeft.search.core.jobs import DONE, Done, Job, JobResult, ScoreJob, TrainJob


def test_a_score_is_that_on_select_of_a_job_that_did_not_fail() -> None:
    assert JobResult("a", {"select": 0.5, "test": 0.75}).score == 0.5
    assert JobResult("a", {"test": 0.75}).score is None
    assert JobResult("a", {"select": 0.5}, error="boom", failure="failed").score is None


@pytest.mark.parametrize(
    "job",
    [
        TrainJob("t", "trial", "trial 0", {"name": "x"}, seed=1, steps=60, start=20, until=40),
        ScoreJob("test-a", "test", "test of a", {}, files={"w": b"1"}),
    ],
)
def test_jobs_travel_to_other_processes_as_they_are(job: Job) -> None:
    there = pickle.loads(pickle.dumps(job))
    assert there == job
    assert type(there) is type(job)
    assert str(there) == job.id


def test_tables_and_logs_show_neither_recipes_nor_weights() -> None:
    job = TrainJob("t", "trial", "trial 0", {"name": "secret"}, files={"w": b"secret"})
    assert "secret" not in repr(job)
    assert "secret" not in repr(JobResult("t", files={"w": b"secret"}))


def test_done_is_told_from_a_job_and_from_waiting() -> None:
    assert isinstance(DONE, Done)
    assert not isinstance(DONE, Job)
