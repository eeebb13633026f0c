"""A strategy, with a type of jobs of its own: every candidate is trained to the end, with two seeds, and
stands for the mean. It keeps no file: what it needs to go on is in the records of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from autopeft.effort import Effort
from autopeft.errors import AutoPEFTError
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.execution.runners import JobContext, runner_of, runs
from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.sampler_view import Observation, ask, view_of
from autopeft.search.optimization.samplers import Point, make_sampler
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.candidate import Candidate, candidate
from autopeft.search.strategies.contract import StrategyContext
from autopeft.search.strategies.registry import register

_TRIES = 30


@dataclass(frozen=True)
class TwiceJob(TrainJob):
    """Train a recipe with two seeds, for half of the steps each."""

    seeds: tuple[int, int] = (0, 1)


@runs(TwiceJob)
def twice(context: JobContext, job: TwiceJob) -> JobResult:
    """The mean of both scores."""
    half, results = job.steps // 2, []
    for begun, seed in zip((0, half), job.seeds, strict=True):

        def on_step(step: int, loss: float, begun: int = begun) -> None:
            context.on_step(begun + step, loss)

        part = replace(job, steps=half, seed=seed)
        results.append(runner_of(TrainJob)(replace(context, on_step=on_step), part))
        if results[-1].error is not None:
            return results[-1]
    first, second = results
    return replace(first, scores={k: (v + second.scores[k]) / 2 for k, v in first.scores.items()})


@register("toy")
class Toy:
    """Every candidate is trained to the end, with two seeds."""

    name: ClassVar[str] = "toy"
    finals: ClassVar[tuple[str, ...]] = ("student",)

    def __init__(self, context: StrategyContext) -> None:
        self._context, self._codec = context, Codec(context.space.parameters)
        self._steps = context.effort.steps
        self._records = {r.number: r for r in context.past if r.number is not None}
        self._seen = [self._observed(r) for r in self._records.values()]
        self._first = [self._codec.encode(values) for values in context.first]
        self._open: dict[int, tuple[TrialRecord, Observation]] = {}
        self._fresh: list[TrialRecord] = []
        self.launched = len(self._records)
        self.finished = self.exhausted = self.out_of_time = False
        self._sampler = make_sampler(
            context.sampler,
            seed=context.seed + self.launched,
            trials=context.effort.trials,
            objectives=context.objectives,
            repaired=self._point,
            parameters=context.space.parameters,
        )

    @classmethod
    def open(cls, context: StrategyContext) -> Toy:
        return cls(context)

    @classmethod
    def planned_steps(cls, effort: Effort, rungs: Rungs) -> float:
        return float(effort.trials * effort.steps)

    # Giving out
    # --------------------------------------------------------------------------------------------------

    def next(self, *, room: bool) -> Job | None:
        if self.launched < self._context.effort.trials and not (self.exhausted or self.finished):
            self.out_of_time = not room
            found = self._propose() if room else None
            if found is not None:
                return self._job(*found)
            self.exhausted = room
        self.finished = not self._open
        return None

    def _propose(self) -> tuple[dict[str, Any], Candidate] | None:
        known = {r.hash for r in self._records.values()} | {r.hash for r, _ in self._open.values()}
        for _ in range(_TRIES):
            params = self._first.pop(0) if self._first else self._ask()
            try:
                found = candidate(self._context.space, self._codec.decode(params), self._context.budget)
            except AutoPEFTError:
                continue
            if found.hash not in known:
                return params, found
        return None

    def _ask(self) -> dict[str, Any]:
        seen = [*self._seen, *(observation for _, observation in self._open.values())]
        view = view_of(
            seen,
            self._codec.distributions,
            (self._steps,),
            self._sampler,
            objectives=self._context.objectives,
        )
        return ask(view, self._codec.distributions)

    def _point(self, params: dict[str, Any]) -> Point | None:
        try:
            found = candidate(self._context.space, self._codec.decode(params), self._context.budget)
        except AutoPEFTError:
            return None
        return Point(found.point, found.counts.deployed, found.hash)

    def _job(self, params: Mapping[str, Any], found: Candidate) -> Job:
        number = max([*self._records, *self._open], default=-1) + 1
        seed = self._context.seed
        record = TrialRecord(
            "trial",
            f"trial {number}",
            "paused",
            found.recipe.to_dict(),
            number,
            seed,
            hash=found.hash,
            counts=found.counts.to_dict(),
            values=self._codec.decode(params),
        )
        deployed = found.counts.deployed
        self._open[number] = record, Observation(params, found.point, deployed, hash=found.hash)
        self.launched += 1
        return TwiceJob(
            f"trial-{number}",
            "trial",
            record.label,
            record.recipe,
            seed,
            self._steps,
            number=number,
            counts=record.counts,
            # For the best trial of a search that is interrupted.
            keep_above=-math.inf,
            seeds=(seed, seed + 1),
        )

    # Taking back
    # --------------------------------------------------------------------------------------------------

    def complete(self, job: Job, result: JobResult) -> None:
        assert job.number is not None
        record, _ = self._open.pop(job.number)
        if result.failure == "stopped":
            self.launched -= 1  # it begins anew in a search that goes on
            return
        done = replace(
            record,
            state="failed" if result.score is None else "complete",
            steps=self._steps,
            score=result.score,
            scores=result.scores,
            rungs={} if result.score is None else {str(self._steps): result.score},
            seconds=result.seconds,
            train_loss=result.train_loss,
            error=result.error,
            failure=result.failure,
            worker=result.worker,
        )
        self._records[job.number] = done
        self._seen.append(self._observed(done))
        self._fresh.append(done)

    def _observed(self, record: TrialRecord) -> Observation:
        rungs = {} if record.score is None else {self._steps: record.score}
        deployed = int((record.counts or {}).get("deployed", 0))
        params = self._codec.encode(record.values or {})
        return Observation(params, {}, deployed, rungs, record.state == "failed", record.hash)

    # Reading
    # --------------------------------------------------------------------------------------------------

    def updates(self) -> list[TrialRecord]:
        found, self._fresh = self._fresh, []
        return found

    def records(self) -> list[TrialRecord]:
        return [self._records[number] for number in sorted(self._records)]

    def candidates(self, n: int) -> list[TrialRecord]:
        done = [r for r in self.records() if r.score is not None]
        return sorted(done, key=lambda r: -(r.score or 0.0))[:n]

    @property
    def expected_steps(self) -> float:
        return float(self._steps)

    @property
    def steps_left(self) -> float:
        return float((self._context.effort.trials - self.launched) * self._steps)
