"""A search on a surrogate: the product's own study, rungs and controller, with scores that nobody trains."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.counting import Budget
from autopeft.effort import Effort
from autopeft.search.controller.controller import Controller
from autopeft.search.core.events import SilentReporter
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.execution.local_executor import LocalExecutor
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.candidate import Candidate, candidate
from autopeft.search.space.initial_points import starting_points
from autopeft.search.space.space import Space
from autopeft.search.strategies.trials import Trials
from autopeft.spec import BackboneSpec
from lib.recording import at_rate
from lib.surrogate import Surrogate

__all__ = ["Ground", "Trained", "replay"]


@dataclass(frozen=True)
class Trained:
    """A recipe that a search trained to the end.

    Attributes:
        steps: training steps of the whole search until then.
        measured, true: its score on *select* with and without noise.
        share: deployed parameters over the backbone's.
        recipe: itself, as a dict.
    """

    steps: int
    measured: float
    true: float
    deployed: int
    share: float
    hash: str
    recipe: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Ground:
    """A space on a backbone under a budget, and what its members would score.

    Args:
        rate: learning rate of every recipe, where the space's own was not recorded.
    """

    def __init__(
        self,
        space: Space,
        budget: str,
        spec: BackboneSpec,
        surrogate: Surrogate,
        *,
        rate: float | None = None,
    ) -> None:
        self.space: BoundSpace = space.bind(spec)
        self.budget, self.spec, self.surrogate, self._rate = Budget.parse(budget), spec, surrogate, rate

    def repaired(self, values: Mapping[str, Any]) -> Candidate:
        """A point of the space inside the budget."""
        return candidate(self.space, values, self.budget, change=partial(at_rate, rate=self._rate))

    def truth(self, found: Candidate) -> float:
        """The score of a repaired point after all steps, without noise."""
        return self.surrogate.score(found.recipe.to_dict(), found.hash)[self.surrogate.steps[-1]]

    def best(self, *, draws: int = 3000, climbs: int = 12, patience: int = 250) -> float:
        """The highest true score that climbing from the best of many random points finds."""
        rng = random.Random(0)
        parameters = self.space.parameters
        starts = [self.repaired(self.space.sample(rng)) for _ in range(draws)]
        found = -np.inf
        for here in sorted(starts, key=self.truth)[-climbs:]:
            stale = 0
            while stale < patience:
                values = dict(here.point)
                values.update({p.name: p.sample(rng) for p in rng.sample(parameters, rng.choice((1, 2, 3)))})
                there = self.repaired(values)
                stale += 1
                if self.truth(there) > self.truth(here):
                    here, stale = there, 0
            found = max(found, self.truth(here))
        return float(found)


class _NoFiles:
    """A store for a search that has no weights."""

    size = 0

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        """There is nothing to keep."""

    def get(self, key: str) -> Mapping[str, bytes] | None:
        return None

    def drop(self, key: str) -> None:
        """There is nothing to let go."""

    def keys(self) -> tuple[str, ...]:
        """There are none."""
        return ()


class _Runner:
    """Does jobs by looking their scores up; keeps what was trained to the end."""

    def __init__(self, ground: Ground, study: SearchStudy, rungs: Rungs, seed: int) -> None:
        self._ground, self._study, self._rungs = ground, study, rungs
        self._rng = np.random.default_rng(seed)
        self._noisy: dict[int, dict[int, float]] = {}
        self._spent = 0
        self.found: list[Trained] = []

    def __call__(self, setup: None, job: Job, on_step: Any, should_stop: Any) -> JobResult:
        if not isinstance(job, TrainJob) or job.kind != "trial":
            # The search has ended: nobody looks at what its winner scores once more.
            return JobResult(job.id, dict.fromkeys(job.splits, 0.0))
        number, steps = job.number or 0, self._rungs.steps
        record = self._study.get(number)
        if number not in self._noisy:
            self._noisy[number] = self._ground.surrogate.measured(record.recipe, record.hash, self._rng)
        step = job.until or self._rungs.full
        self._spent += step - max((s for s in steps if s < step), default=0)
        score = self._noisy[number][step]
        if job.until is None:
            counts = record.counts or {}
            true = self._ground.surrogate.score(record.recipe, record.hash)[step]
            size, share = int(counts["deployed"]), float(counts["share"])
            self.found.append(Trained(self._spent, score, true, size, share, record.hash, record.recipe))
        return JobResult(job.id, {"select": score}, paused=job.until is not None)


def replay(
    ground: Ground,
    *,
    sampler: str,
    seed: int,
    trials: int,
    rungs: Rungs,
    objectives: int = 1,
    starts: int = 6,
) -> list[Trained]:
    """Search as `autopeft search` does with one worker, up to the end of the trials.

    Returns:
        The recipes that were trained to the last rung, in order.

    Raises:
        KeyboardInterrupt: a signal asked to stop; a part of a search is no replay of one.
    """
    effort = Effort("replay", trials, rungs.full, None, None, None, top=1, seeds=1)
    with tempfile.TemporaryDirectory() as folder:
        study = SearchStudy(
            Path(folder) / "journal.log",
            ground.space.parameters,
            ground.repaired,
            sampler=sampler,
            seed=seed,
            trials=trials,
            rungs=rungs,
            objectives=objectives,
            first=starting_points(ground.space, starts),
        )
        checkpoints = _NoFiles()
        controller = Controller(
            Trials(study, effort, checkpoints, seed=seed),
            effort,
            [],
            SilentReporter(),
            checkpoints,
            lambda record: None,
            seed=seed,
            workers=1,
        )
        train = _Runner(ground, study, rungs, seed)
        LocalExecutor().run_jobs(controller, train, None)
    if controller.interrupted:
        raise KeyboardInterrupt
    return train.found
