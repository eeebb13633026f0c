"""`trials`: independent recipes, proposed by a sampler and trained from rung to rung."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from autopeft.effort import Effort
from autopeft.method import get_method
from autopeft.recipe import Recipe
from autopeft.runs.records import TrialRecord
from autopeft.search.core.checkpoints import CheckpointStore
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs, Standing, SuccessiveHalving
from autopeft.search.space.candidate import Candidate, candidate
from autopeft.search.space.in_use import parameters_in_use
from autopeft.search.strategies.contract import StrategyContext
from autopeft.search.strategies.registry import register

__all__ = ["JOURNAL", "Trials"]

JOURNAL = "journal.log"
_STUCK = 5
# Bytes that checkpoints of paused trials may take, for each planned trial and in all at least; and how many
# are kept whatever their size.
_ROOM_EACH, _ROOM, _KEPT = 400_000, 40_000_000, 3


def _trains_in_phases(recipe: Recipe) -> bool:
    """Whether a training of it has no step at which it could pause."""
    entries = (entry.item for entry in recipe.entries())
    return any(get_method(i.method)(i.method_config()).traits.phased for i in entries)


@register("trials")
class Trials:
    """Independent recipes, proposed by a sampler; only the better ones go on from rung to rung.

    A trial pauses at each rung with a checkpoint (`trial-<n>` in the store), from which it goes on. A recipe
    that trains in phases cannot pause: its rung is the end of a whole training of so many steps, and its next
    rung is a longer training from the start.

    Args:
        study: proposals and their results; one that was opened anew goes on.
        effort: numbers of trials, steps and finalists.
        checkpoints: takes the checkpoints of paused trials.
        seed: of every trial.
    """

    name: ClassVar[str] = "trials"
    finals: ClassVar[Sequence[str]] = ()

    def __init__(
        self, study: SearchStudy, effort: Effort, checkpoints: CheckpointStore, *, seed: int
    ) -> None:
        self.study, self._effort, self._checkpoints, self._seed = study, effort, checkpoints, seed
        self.halving = SuccessiveHalving(
            study.rungs, effort.trials, objectives=study.objectives, least=effort.top
        )
        self._running: set[str] = set()
        self._updates: list[TrialRecord] = []  # without their seed
        self.launched, self.expected_steps = study.trained, study.rungs.expected
        self._promoted = 0  # steps that were trained above the first rung
        self._failures_in_row = 0
        self._closing = self.finished = self.exhausted = self.out_of_time = False
        # Trials of an earlier process stand on the rungs that they had reached. Those that were stopped when
        # its time was over go on no more, but new ones are compared with them.
        for record in [*study.records(), *study.paused.values()]:
            if record.state in ("complete", "paused", "stopped") and record.number is not None:
                reached = sorted(map(int, record.rungs))
                for step, after in zip(reached, [*reached[1:], None], strict=True):
                    self._reach(record, step)
                    if after is not None or record.state == "stopped":
                        self.halving.promote(record.number, step)

    @classmethod
    def open(cls, context: StrategyContext) -> Trials:
        """See `StrategyClass`; the study's journal is in the run folder."""

        def repaired(values: dict[str, Any]) -> Candidate:
            found = candidate(context.space, values, context.budget)
            if context.step_cost is None:
                return found
            return replace(found, step_cost=context.step_cost(found.recipe))

        study = SearchStudy(
            context.folder / JOURNAL,
            context.space.parameters,
            repaired,
            sampler=context.sampler,
            seed=context.seed,
            trials=context.effort.trials,
            rungs=context.rungs,
            objectives=context.objectives,
            cost=context.cost,
            first=context.first,
            in_use=partial(parameters_in_use, context.space),
        )
        return cls(study, context.effort, context.checkpoints, seed=context.seed)

    @classmethod
    def planned_steps(cls, effort: Effort, rungs: Rungs) -> float:
        """See `StrategyClass`."""
        return effort.trials * rungs.expected

    def _reach(self, record: TrialRecord, step: int) -> None:
        merit = record.merits.get(str(step), record.rungs[str(step)])
        self.halving.reach(Standing(record.number or 0, merit, self.study.cost_of(record)), step)

    # Giving out
    # ------------------------------------------------------------------------------------------------------

    def next(self, *, room: bool) -> Job | None:
        """A trial that goes on, a new one, or `None` at the end and while it waits for running ones."""
        if self.finished:
            return None
        found = self.halving.candidate(closing=self._closing)
        if found is None and not self._closing:
            # A new trial, unless all were begun, none can be trained, or there is no time for one.
            if self.launched < self._effort.trials and self._failures_in_row < _STUCK:
                if room:
                    proposal = self.study.propose()
                    self._updates += self.study.take_duplicates()
                    if proposal is not None:
                        self.launched += 1
                        return self._part(proposal.number, proposal.recipe, 0)
                self.exhausted, self.out_of_time = room, self.out_of_time or not room
            self._closing = True
            found = self.halving.candidate(closing=True)
        if found is not None and (room or len(self.candidates(self._effort.top)) < self._effort.top):
            number, step = found
            self.halving.promote(number, step)
            files = self._checkpoints.get(f"trial-{number}")
            return replace(self._part(number, self.study.get(number).recipe, step), files=files)
        # Without time no more go on than are trained again.
        self.out_of_time = self.out_of_time or found is not None
        if not self._running:
            self.finished = True
            for number in list(self.study.paused):
                self._checkpoints.drop(f"trial-{number}")
                self._updates.append(self.study.stop(number))
            self._updates += self.study.take_duplicates()
        return None

    def _part(self, number: int, recipe: Mapping[str, Any], step: int) -> TrainJob:
        """The part of a trial from one rung (or the start, step 0) to the next; of a recipe that trains in
        phases the whole training that ends at the next rung."""
        rungs = self.study.rungs
        level = 0 if step == 0 else rungs.steps.index(step) + 1
        last = level == len(rungs.steps) - 1
        anew = _trains_in_phases(Recipe.from_dict(dict(recipe)))
        job = TrainJob(
            id=f"trial-{number}" if last and level == 0 else f"trial-{number}-{rungs.steps[level]}",
            kind="trial",
            label=f"trial {number}",
            recipe=recipe,
            seed=self._seed,
            steps=rungs.steps[level] if anew else rungs.full,
            start=0 if anew else step,
            until=None if anew or last else rungs.steps[level],
            share=rungs.shares[level],
            keep_above=-math.inf if last else None,
            number=number,
            counts=self.study.get(number).counts,
        )
        self._running.add(job.id)
        return job

    # Taking back
    # ------------------------------------------------------------------------------------------------------

    def complete(self, job: Job, result: JobResult) -> None:
        """See `Strategy`."""
        self._running.discard(job.id)
        number = job.number
        if number is None or not isinstance(job, TrainJob):
            return
        reached = job.until or job.steps
        if result.error is None and reached > self.study.rungs.steps[0]:
            self._promoted += reached - job.start
        if result.failure == "stopped" and number in self.study.paused:
            return  # it waits on its rung for a search that goes on
        if result.error is None and reached < self.study.rungs.full:
            # The checkpoint first: a trial that the journal has on a rung can then go on from it.
            if result.files:
                self._checkpoints.put(f"trial-{number}", result.files)
            if not self.study.pause(number, reached, result):
                return
            self._failures_in_row = 0
            record = self.study.get(number)
            self._reach(record, reached)
            for hopeless in self.halving.hopeless():
                self._checkpoints.drop(f"trial-{hopeless}")
            # Make room: drop checkpoints of the trials least likely to go on. One that does all the same
            # begins anew.
            space = max(_ROOM, _ROOM_EACH * self._effort.trials)
            spare = self.halving.queue()[_KEPT:]
            while self._checkpoints.size > space and spare:
                self._checkpoints.drop(f"trial-{spare.pop()}")
            self._updates.append(record)
        elif self.study.record(number, result):
            self._checkpoints.drop(f"trial-{number}")
            record = self.study.get(number)
            if record.state == "complete" and record.score is not None:
                self._failures_in_row = 0
                self._reach(record, self.study.rungs.full)
            else:
                self.halving.drop(number)
                self._failures_in_row += 1
            self._updates.append(record)
            self._updates += self.study.take_duplicates()

    # Reading
    # ------------------------------------------------------------------------------------------------------

    def updates(self) -> list[TrialRecord]:
        """See `Strategy`."""
        found, self._updates = self._updates, []
        return [replace(record, seed=self._seed) for record in found]

    def records(self) -> list[TrialRecord]:
        """See `Strategy`."""
        found = sorted(
            [*self.study.records(), *self.study.paused.values()], key=lambda record: record.number or 0
        )
        return [replace(record, seed=self._seed) for record in found]

    def candidates(self, n: int) -> list[TrialRecord]:
        """See `Strategy`."""
        return self.study.best(n)

    @property
    def steps_left(self) -> float:
        """See `Strategy`."""
        rungs = self.study.rungs
        begun = self.launched * rungs.steps[0] + self._promoted
        return max(0.0, self._effort.trials * rungs.expected - begun)
