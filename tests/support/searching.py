"""Doubles that several tests of the search share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from autopeft.counting import Counts
from autopeft.effort import Effort
from autopeft.hybrid.store import WEIGHTS
from autopeft.recipe import Recipe
from autopeft.resources import Limits, Predictor
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import CountTable, TrialRecord
from autopeft.search.controller.controller import Controller
from autopeft.search.controller.finish import finish
from autopeft.search.core.events import SearchInfo, SilentReporter
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.selection.baselines import Baseline
from autopeft.search.space.candidate import Candidate
from autopeft.tasks.kinds import get_kind

from .toy import toy_spec

RUNGS = Rungs((2, 5, 10), (0.2, 0.5, 1.0))
EFFORT = Effort("tiny", 5, 10, None, None, None, top=2, seeds=2, rates=2)


def lora(rank: int, rate: float = 1e-3) -> Recipe:
    return Recipe.from_dict(
        {"layers": [{"attach": [{"lora": {"rank": rank}}]}], "training": {"learning_rate": rate}}
    )


def baseline(*ranks: int, kind: Any = "lora", **more: Any) -> Baseline:
    """LoRA of these ranks, of which the sweep chooses one."""
    titles = tuple(f"LoRA of rank {rank}" for rank in ranks)
    tables = tuple({"deployed": 10 * rank} for rank in ranks)
    return Baseline(
        titles[0],
        tuple(lora(r).to_dict() for r in ranks),
        tables[0],
        kind=kind,
        titles=titles,
        tables=tables,
        **more,
    )


def to_lora(values: dict[str, Any]) -> Candidate:
    recipe = lora(values["rank"])
    counts = Counts(values["rank"] * 10, values["rank"] * 10, 0, 10_000)
    return Candidate(recipe, counts, recipe.hash(), dict(values), step_cost=values["rank"] / 100)


def rank_of(job: Job) -> int:
    return int(job.recipe["layers"][0]["attach"][0]["lora"]["rank"])


def until(job: Job) -> int | None:
    """The step that a job pauses at."""
    return job.until if isinstance(job, TrainJob) else None


def honest(job: Job) -> JobResult:
    """Score grows with the rank; a job that is to keep its weights does when it is good enough."""
    score = rank_of(job) / 1000 + job.seed / 1e6
    keep_above = job.keep_above if isinstance(job, TrainJob) else None
    files = {WEIGHTS: job.id.encode()} if keep_above is not None and score > keep_above else {}
    return JobResult(job.id, scores=dict.fromkeys(job.splits, score), seconds=2.0, files=files)


def climbing(job: Job) -> JobResult:
    """`honest`, but a trial pauses where it is told to, with a checkpoint that says how far it came."""
    result = honest(job)
    if until(job) is not None:
        result.paused, result.files = True, {"checkpoint": f"{job.number}@{job.until}".encode()}
    return result


@dataclass
class Events:
    """A reporter that remembers."""

    seen: list[tuple[Any, ...]] = field(default_factory=list)
    records: list[TrialRecord] = field(default_factory=list)

    def on_start(self, info: SearchInfo) -> None:
        self.seen.append(("start", info))

    def on_phase(self, name: str, jobs: int) -> None:
        self.seen.append(("phase", name, jobs))

    def on_trial_start(self, job: Job, counts: CountTable | None) -> None:
        self.seen.append(("begin", job.id, counts))

    def on_step(self, job: Job, step: int, loss: float, remaining: float | None) -> None:
        self.seen.append(("step", job.id, step, remaining))

    def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None:
        self.seen.append(("end", record.label, best, remaining))
        self.records.append(record)


class Dies(SilentReporter):
    """Ends the process, as far as the search can tell, when so many runs have ended after its trials."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None:
        self.left -= record.kind != "trial"
        if self.left == 0:
            raise RuntimeError("killed")


class MemoryCheckpoints:
    def __init__(self) -> None:
        self.held: dict[str, dict[str, bytes]] = {}

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        self.held[key] = dict(files)

    def get(self, key: str) -> Mapping[str, bytes] | None:
        return self.held.get(key)

    def drop(self, key: str) -> None:
        self.held.pop(key, None)

    def keys(self) -> tuple[str, ...]:
        return tuple(self.held)

    @property
    def size(self) -> int:
        return sum(len(data) for files in self.held.values() for data in files.values())


Outcome = Callable[[Job], JobResult]


@dataclass
class Stage:
    """A controller on a small space of LoRA ranks, and everything it talks to."""

    controller: Controller
    events: Events
    checkpoints: MemoryCheckpoints
    records: list[TrialRecord]
    jobs: list[Job] = field(default_factory=list)

    def play(self, outcome: Outcome, *, workers: int = 2, limit: int = 1000) -> None:
        """Run jobs as an executor with `workers` slots would; each finishes in the order it began."""
        running: list[Job] = []
        for _ in range(limit):
            job = self.controller.next() if len(running) < workers else None
            if isinstance(job, Job):
                self.jobs.append(job)
                running.append(job)
                continue
            if not running:
                assert job is not None, "the controller waits for nothing"
                return
            self.controller.complete(outcome(running.pop(0)))
        raise AssertionError("the controller never ends")


def ready_to_finish() -> Any:
    """As much of a prepared search as `finish` reads."""
    return SimpleNamespace(
        task=SimpleNamespace(
            metric="accuracy",
            members=(),
            source=SimpleNamespace(notice=None),
            splits=dict.fromkeys(("select", "test"), SimpleNamespace(labels=[0, 1] * 500)),
            text_ids=lambda name: np.arange(1000),
            task_kind=get_kind("classification"),
            labels=("no", "yes"),
        ),
        trial_metric=None,
        limits=(0, 1000),
        arguments=SimpleNamespace(seed=0, margin=1.0),
        summary=SimpleNamespace(constant=None, remarks=()),
        spec=toy_spec(),
        predictor=Predictor(Limits(), {}),
        within=Limits(),
        goal="best",
    )


def finished(stage: Stage, folder: Path, goal: str = "best") -> Any:
    """The result of a stage that was played, and its run in a folder."""
    ready = ready_to_finish()
    ready.goal = goal
    run = RunFolder.create("t", "key", root=folder, out=None)
    result = finish(ready, run, stage.controller, 1.0)
    assert json.loads((run.path / "result.json").read_text())["origin"] == result.origin
    return result, run
