"""A stage of a search, with a type of jobs of its own: the best finalist teaches the same recipe at half of
its rank. The student takes part in the choice of the winner."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.core.stages import Priority, Room
from autopeft.search.execution.runners import JobContext, runner_of, runs
from autopeft.search.selection.finalists import Finalist
from autopeft.search.selection.finals import Finals
from autopeft.search.selection.stages import FinalContext, register_stage


@dataclass(frozen=True)
class StudentJob(TrainJob):
    """Train a recipe beside a teacher, whose weights are in `teacher`."""

    teacher: str = ""


@runs(StudentJob)
def student(context: JobContext, job: StudentJob) -> JobResult:
    """As any training; a real one would add the teacher's logits to the loss."""
    return runner_of(TrainJob)(context, job)


@register_stage("student")
class Student:
    priority = Priority.OPTIONAL

    def __init__(self, context: FinalContext) -> None:
        self._context, self.finalists = context, list[Finalist]()
        self._jobs, self._records = list[Job](), list[TrialRecord]()
        self._steps, self._closed = 0, False

    def open(self, plan: Finals, trials: Sequence[TrialRecord]) -> None:
        self._steps = plan.effort.steps

    def close(self) -> None:
        self._closed, self._jobs = True, []

    @property
    def ended(self) -> bool:
        return self._closed or (bool(self.finalists) and all(f.complete for f in self.finalists))

    def next(self, room: Room) -> Job | None:
        if not self.finalists and self._context.finalists.ended and not self._closed:
            teacher = max(self._context.finalists.finalists, key=lambda f: f.ranks)
            record = TrialRecord("confirm", "student", "complete", _smaller(teacher.recipe), job="student")
            self.finalists = [Finalist(record)]
            seeds = [run.seed for run in teacher.runs.values()]
            jobs = self.finalists[0].jobs(seeds, self._steps)
            made = [replace(job, keep_above=-math.inf) for job in jobs if isinstance(job, TrainJob)]
            self._jobs = [StudentJob(**vars(job), teacher=teacher.good[0].job) for job in made]
            if not room.fits(self._jobs):
                self._closed, self._jobs, self.finalists = True, [], []
        return self._jobs.pop(0) if self._jobs else None

    def done(self, job: Job, result: JobResult) -> None:
        self._records.append(job.record(result))
        if result.failure != "stopped":
            self.finalists[0].take(result)

    def updates(self) -> list[TrialRecord]:
        found, self._records = self._records, []
        return found


def _smaller(recipe: Any) -> dict[str, Any]:
    """The recipe with half of each rank."""
    found = copy.deepcopy(dict(recipe))
    for block in found["layers"]:
        for item in block["attach"]:
            for options in item.values():
                if isinstance(options, dict) and "rank" in options:
                    options["rank"] = max(1, options["rank"] // 2)
    return found
