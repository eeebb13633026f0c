"""A strategy whose candidates share weights: one LoRA is trained, and a smaller one is a slice of it. What a
slice scores is an estimate of what the smaller LoRA would score if it were trained by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from safetensors.torch import load, save

from autopeft.effort import Effort
from autopeft.hybrid.store import WEIGHTS
from autopeft.recipe import Recipe
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult, ScoreJob, TrainJob
from autopeft.search.execution.runners import JobContext, runner_of, runs
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.strategies.contract import StrategyContext
from autopeft.search.strategies.registry import register

RANK = 4


@dataclass(frozen=True)
class SliceJob(ScoreJob):
    """Score the saved LoRA that is in `files` with its first `rank` directions alone."""

    rank: int = 0


@runs(SliceJob)
def score_slice(context: JobContext, job: SliceJob) -> JobResult:
    assert job.files is not None
    tensors = load(job.files[WEIGHTS])
    for name, tensor in tensors.items():
        if name.endswith(".lora.B"):
            tensor[:, job.rank :] = 0.0
    return runner_of(ScoreJob)(context, replace(job, files={**job.files, WEIGHTS: save(tensors)}))


def lora(rank: int) -> Recipe:
    training = {"learning_rate": 1.0e-2}
    attached = [{"lora": {"rank": rank, "alpha": RANK}}]
    return Recipe.from_dict({"name": f"rank-{rank}", "layers": [{"attach": attached}], "training": training})


@register("shared")
class Shared:
    """One LoRA of rank 4 is trained, and its slices of rank 1 to 3 are scored."""

    name: ClassVar[str] = "shared"

    def __init__(self, context: StrategyContext) -> None:
        self._context, self._store = context, context.checkpoints
        self._records = {r.number: r for r in context.past if r.number is not None}
        self._open: set[str] = set()
        self._fresh: list[TrialRecord] = []
        self.exhausted = self.out_of_time = self.finished = False

    @classmethod
    def open(cls, context: StrategyContext) -> Shared:
        return cls(context)

    @classmethod
    def planned_steps(cls, effort: Effort, rungs: Rungs) -> float:
        return float(effort.steps)

    def next(self, *, room: bool) -> Job | None:
        seed, steps = self._context.seed, self._context.effort.steps
        files = self._store.get("shared")
        if files is None and not self._open:
            recipe, self._open = lora(RANK).to_dict(), {"trial-shared"}
            return TrainJob("trial-shared", "trial", "shared", recipe, seed, steps, keep_above=-math.inf)
        for rank in range(1, RANK) if files is not None else ():
            job = f"trial-{rank - 1}"
            if rank - 1 not in self._records and job not in self._open:
                self._open.add(job)
                recipe = lora(rank).to_dict()
                return SliceJob(
                    job, "trial", f"trial {rank - 1}", recipe, seed, number=rank - 1, files=files, rank=rank
                )
        self.finished = not self._open
        return None

    def complete(self, job: Job, result: JobResult) -> None:
        self._open.discard(job.id)
        if result.error is not None:
            self.finished = True
        elif job.number is None:
            self._store.put("shared", result.files)
        else:
            record = replace(job.record(result), state="estimated", hash=lora_hash(job), job="", steps=None)
            self._records[job.number] = record
            self._fresh.append(record)

    def updates(self) -> list[TrialRecord]:
        found, self._fresh = self._fresh, []
        return found

    def records(self) -> list[TrialRecord]:
        return [self._records[n] for n in sorted(self._records)]

    def candidates(self, n: int) -> list[TrialRecord]:
        return sorted(self.records(), key=lambda r: -(r.rank or -math.inf))[:n]

    @property
    def launched(self) -> int:
        return len(self._records)

    @property
    def expected_steps(self) -> float:
        return float(self._context.effort.steps)

    @property
    def steps_left(self) -> float:
        return 0.0 if self._store.get("shared") else self.expected_steps


def lora_hash(job: Job) -> str:
    return Recipe.from_dict(dict(job.recipe)).hash()
