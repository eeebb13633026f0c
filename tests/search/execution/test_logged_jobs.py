from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.jobs import Source

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.runs.folder import RunFolder
from autopeft.search.core.jobs import DONE, Job, JobResult, TrainJob
from autopeft.search.execution import logged_jobs
from autopeft.search.execution.logged_jobs import JOBS, LoggedJobs, handed_out, log_file

RECIPE = {"name": "r", "layers": [{"attach": [{"lora": {"rank": 2}}]}]}


def job(name: str = "trial-0", **more: Any) -> Job:
    return TrainJob(name, "trial", "trial 0", RECIPE, **{"steps": 40, "seed": 3, **more})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def finish(jobs: LoggedJobs, result: JobResult) -> str:
    given = jobs.next()
    assert isinstance(given, Job)
    assert given.id == result.job
    jobs.complete(result)
    return log_file(RunFolder(jobs._folder.path), result.job).read_text()


def test_a_job_is_kept_as_it_was_handed_out(folder: RunFolder) -> None:
    given = [
        job(keep_above=-math.inf, number=0, until=20, share=0.5, splits=("select", "test")),
        job("trial-1", keep_above=0.75, attempt=2, files={"checkpoint": b"123"}),
        job("trial-2"),
    ]
    jobs = LoggedJobs(Source(given), folder)
    for _ in given:
        jobs.next()
    found = handed_out(folder)
    assert [entry.job for entry in found] == [
        given[0],
        TrainJob(**{**vars(given[1]), "files": None}),
        given[2],
    ]
    a665 = "a665a45920422f9d417e4867efdc4fb8a04a1f3fff1fa07e998e86f7f7a27ae3"
    assert [entry.carried for entry in found] == [{}, {"checkpoint": a665}, {}]
    for line in (folder.path / JOBS).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@dataclass(frozen=True)
class SeededJob(TrainJob):
    """A job of another package, with fields that JSON turns into lists."""

    seeds: tuple[int, int] = (0, 1)
    weights: tuple[float, ...] | None = None
    parts: list[tuple[str, int]] = field(default_factory=list)


def test_tuples_of_a_job_come_back_as_tuples(folder: RunFolder) -> None:
    given = [
        SeededJob("trial-0", "trial", "trial 0", RECIPE, seed=3, steps=4, seeds=(2, 3)),
        SeededJob("trial-1", "trial", "trial 1", RECIPE, seed=3, steps=4, weights=(0.5, 1.0)),
        SeededJob("trial-2", "trial", "trial 2", RECIPE, seed=3, steps=4, parts=[("a", 1), ("b", 2)]),
    ]
    jobs = LoggedJobs(Source(given), folder)
    for _ in given:
        jobs.next()
    assert [entry.job for entry in handed_out(folder)] == given


def test_everything_is_passed_on(folder: RunFolder) -> None:
    source = Source([job()])
    jobs = LoggedJobs(source, folder)
    jobs.scale(4)
    jobs.next()
    jobs.progress("trial-0", 7, 0.25)
    jobs.complete(JobResult("trial-0", {"select": 0.5}, log="long"))
    assert jobs.next() is DONE
    jobs.interrupt()
    assert jobs.stopped
    assert (source.workers, source.steps) == (4, [("trial-0", 7, 0.25)])
    assert source.results["trial-0"].score == 0.5
    assert source.results["trial-0"].log == "", "on disk it is enough"


def test_a_log_says_how_a_job_ended(folder: RunFolder) -> None:
    jobs = LoggedJobs(Source([job(), job("trial-1", until=20), job("trial-2")]), folder)
    good = finish(jobs, JobResult("trial-0", {"select": 0.5}, seconds=2.0, train_loss=0.25, log="process: 1"))
    assert good.startswith("trial-0: complete\nended: ")
    assert "seed 3, 40 steps, splits select" in good
    assert "select 0.5; train loss 0.25" in good
    assert json.dumps(RECIPE) in good
    assert good.endswith("process: 1\n")
    paused = finish(jobs, JobResult("trial-1", {"select": 0.5}, paused=True))
    assert paused.startswith("trial-1: paused\n")
    assert "40 steps up to step 20" in paused
    bad = finish(jobs, JobResult("trial-2", error="boom", failure="memory", log="Traceback"))
    assert bad.startswith("trial-2: memory\n")
    assert "error: boom" in bad


def test_a_job_that_is_given_again_has_one_log(folder: RunFolder) -> None:
    jobs = LoggedJobs(Source([job(), job(attempt=1)]), folder)
    finish(jobs, JobResult("trial-0", error="killed", failure="lost"))
    both = finish(jobs, JobResult("trial-0", {"select": 0.5}))
    assert both.startswith("trial-0: lost\n")
    assert "\ntrial-0 (attempt 2): complete\n" in both
    assert [entry.job.attempt for entry in handed_out(folder)] == [0, 1]


def test_jobs_that_still_run_at_the_end_have_a_log(folder: RunFolder) -> None:
    jobs = LoggedJobs(Source([job(), job("trial-1")]), folder)
    jobs.next()
    jobs.next()
    jobs.progress("trial-1", 12, 0.5)
    jobs.close()
    jobs.close()
    assert "trial-0: stopped" in log_file(folder, "trial-0").read_text()
    text = log_file(folder, "trial-1").read_text()
    assert "last step reported: 12, with loss 0.5" in text
    assert text.count("stopped") == 1


def test_a_log_is_written_where_the_source_fails(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source([job()])

    def full(result: JobResult) -> None:
        raise AutoPEFTError("no room")

    monkeypatch.setattr(source, "complete", full)
    jobs = LoggedJobs(source, folder)
    jobs.next()
    with pytest.raises(AutoPEFTError, match="no room"):
        jobs.complete(JobResult("trial-0", error="boom", failure="failed"))
    assert "error: boom" in log_file(folder, "trial-0").read_text()


def test_logs_are_bounded(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logged_jobs, "_MOST", 2000)
    monkeypatch.setattr(logged_jobs, "_LITTLE", 1000)
    monkeypatch.setattr(logged_jobs, "_ROOM", 4000)
    jobs = LoggedJobs(Source([job(f"trial-{i}") for i in range(3)] + [job("trial-0")]), folder)
    texts = [
        finish(jobs, JobResult(f"trial-{i}", error="boom", failure="failed", log="x" * 5000 + "the end"))
        for i in range(3)
    ]
    assert all(text.startswith(f"trial-{i}: failed") for i, text in enumerate(texts))
    assert all(text.endswith("the end\n") for text in texts)
    assert [len(text) // 500 for text in texts] == [4, 4, 2], "shorter, once there is little room"
    assert "characters are left out here" in texts[0]
    again = finish(jobs, JobResult("trial-0", error="boom", failure="failed", log="y" * 5000))
    assert len(again) < 2000 + 300


def test_of_jobs_that_went_well_the_newest_logs_are_kept(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logged_jobs, "_KEPT", 2)

    def play(numbers: range) -> set[str]:
        jobs = LoggedJobs(Source([job(f"trial-{i}") for i in numbers]), folder)
        for i in numbers:
            error = "boom" if i % 2 else None
            text = finish(
                jobs, JobResult(f"trial-{i}", {"select": 0.5}, error=error, failure=error and "failed")
            )
            assert text
            os.utime(log_file(folder, f"trial-{i}"), (1000 + i, 1000 + i))
        return {p.stem for p in folder.logs.glob("*.txt")}

    assert play(range(5)) == {"trial-1", "trial-2", "trial-3", "trial-4"}
    assert play(range(5, 7)) == {"trial-1", "trial-3", "trial-4", "trial-5", "trial-6"}, "by another process"
    assert len(handed_out(folder)) == 7


def test_a_torn_line_of_a_killed_process_does_no_harm(folder: RunFolder) -> None:
    LoggedJobs(Source([job()]), folder).next()
    with (folder.path / JOBS).open("a") as file:
        file.write('{"id": "trial-1", "ki')
    LoggedJobs(Source([job("trial-2")]), folder).next()
    assert [entry.job.id for entry in handed_out(folder)] == ["trial-0", "trial-2"]


def test_a_folder_that_cannot_be_written_is_a_clear_error(folder: RunFolder) -> None:
    jobs = LoggedJobs(Source([job()]), folder)
    jobs.next()
    (folder.path / JOBS).unlink()
    folder.logs.rmdir()
    with pytest.raises(AutoPEFTError, match="Cannot write"):
        jobs.complete(JobResult("trial-0", {"select": 0.5}))
    with pytest.raises(AutoPEFTError, match="Cannot write"):
        LoggedJobs(Source([]), RunFolder(folder.path / "nowhere"))


def test_a_run_without_jobs_says_so(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match=r"has no logs/jobs\.jsonl"):
        handed_out(folder)
    folder.logs.mkdir()
    folder.append_line(JOBS, {"id": "trial-0"})
    with pytest.raises(UsageError, match=r"Line 1 of .*jobs.jsonl': does not hold a job: it lacks 'type'"):
        handed_out(folder)


@pytest.mark.parametrize(
    "damage",
    [
        b"garbled",
        b"\xff",
        b"null",
        b"[" * 100_000,
        *({"type": name} for name in ("os.system", "Job()", "named_in_a_file.Job", "__class__")),
        *({"recipe": recipe} for recipe in ("lora", [1], None)),
        *({"seed": seed} for seed in ("3", 0.5, [1], None)),
        *({"seed": seed} for seed in (-1, 2**63)),
        *({"attempt": attempt} for attempt in (-1, 10**9)),
        {"splits": 7},
        {"splits": ["select", "other"]},
        {"keep_above": "high"},
        {"keep_above": 10**400},
        {"until": "20"},
        {"files": [1]},
        {"counts": {"deployed": "many"}},
    ],
)
def test_a_line_that_is_damaged_costs_that_job_alone(
    folder: RunFolder, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = LoggedJobs(Source([job("trial-0"), job("trial-1"), job("trial-2")]), folder)
    for _ in range(3):
        jobs.next()
    lines = (folder.path / JOBS).read_bytes().splitlines(keepends=True)
    told = damage if isinstance(damage, bytes) else json.dumps({**json.loads(lines[1]), **damage}).encode()
    (folder.path / JOBS).write_bytes(b"".join([lines[0], told + b"\n", lines[2]]))
    assert [entry.job.id for entry in handed_out(folder)] == ["trial-0", "trial-2"]
    assert "Line 2 of " in caplog.text
    LoggedJobs(Source([job("trial-3")]), folder).next()
    assert [entry.job.id for entry in handed_out(folder)] == ["trial-0", "trial-2", "trial-3"]
    assert told in (folder.path / JOBS).read_bytes(), "a search that goes on keeps what is there"


def test_a_job_with_a_strange_name_stays_in_the_folder(folder: RunFolder) -> None:
    assert log_file(folder, "../../etc/x y").parent == folder.logs
