"""`s3pet`: the structure search of S³PET as it was published, with gates drawn at random and two levels.

Hu et al. 2022, arXiv:2206.07382. The search trains weights and structure on halves of the rows
(`autopeft.training.gates.BilevelGates`). The probabilities at its best score on *select* order the sites;
each that still fits the budget is kept. What is kept is trained from scratch on all rows, without gates.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel

from autopeft.effort import Effort
from autopeft.nn.budgeted import chosen_within
from autopeft.recipe import Recipe
from autopeft.search.core.jobs import JobResult
from autopeft.search.execution.runners import JobContext, runs, train
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.elastic import Group
from autopeft.search.strategies.gates import GateJob, GateSearch
from autopeft.search.strategies.registry import register
from autopeft.training.gates import BilevelGates, Gating

__all__ = ["S3PETNumbers", "S3PETSearch", "StructureJob"]

_PASSES = 5
"""Of a step of the search: two at the rows held out and beside them, three at those of the step."""


class S3PETNumbers(BaseModel, frozen=True):
    """The authors' numbers; `methods/defaults.yaml` says where they stand.

    Attributes:
        held_out: the share of the rows that structures are learnt from. As many epochs over the others are as
            many fewer steps.
        scores: on *select*, among which a structure is chosen.
        slack: what their budget falls short by, as a share of it.
    """

    held_out: float = 0.5
    scores: int = 10
    slack: float = 1e-7


_NUMBERS = S3PETNumbers()


@dataclass(frozen=True)
class StructureJob(GateJob):
    """A search for a structure.

    Attributes:
        score_every: steps between two scores on *select*.
    """

    score_every: int = 1


@runs(StructureJob)
def _run(context: JobContext, job: StructureJob) -> JobResult:
    assert job.gating is not None
    gates = BilevelGates(Recipe.from_dict(dict(job.recipe)), job.gating, seed=job.seed)
    scores: list[tuple[float, int]] = []

    def scored(step: int, score: float) -> None:
        scores.append((score, -step))

    plan = replace(context.plan, eval_every=job.score_every)
    result = train(replace(context, plan=plan), job, policies=[gates], on_score=scored)
    best = -max(scores)[1]  # of equal scores the first
    told = {"history": gates.history, "kept": best - 1}
    return replace(result, paused=True, files={"gates.json": json.dumps(told).encode()})


@register("s3pet")
class S3PETSearch(GateSearch):
    """S³PET as published: gates of every site, learnt on two levels; the best sites are trained anew.

    Further trainings draw other halves, weights and gates.
    """

    name: ClassVar[str] = "s3pet"
    space: ClassVar[str] = "s3pet"
    outline: ClassVar[str] = "{trials} of {steps}, each after a search of half as many with five passes each"
    shares_weights: ClassVar[bool] = False
    most_budgets: ClassVar[int | None] = None
    numbers: ClassVar[type[BaseModel]] = S3PETNumbers

    @classmethod
    def planned_steps(cls, effort: Effort, rungs: Rungs) -> float:
        """See `StrategyClass`."""
        return effort.trials * (_search_cost(effort) + effort.steps)

    def _grouped(self) -> list[Group]:
        """Each site by itself."""
        return [replace(group, members=(member,)) for group in super()._grouped() for member in group.members]

    def _levels(self, training: Any, budgets: float) -> list[int]:
        p = torch.tensor(training.probabilities, dtype=torch.float64)
        levels = [0] * len(self._hybrid.units)
        for kept in chosen_within(p, self._sizes(), self._budget):
            (unit,) = self._groups[kept].members
            levels[unit] = len(self._hybrid.units[unit].sizes) - 1
        return levels

    def _job(self, training: Any) -> GateJob:
        """The search, or the training of what it has kept."""
        number, seed = training.number, self._context.seed + training.number
        if training.part:
            return GateJob(
                id=f"trial-{number}",
                kind="trial",
                label=f"trial {number}",
                recipe=self._kept(training).recipe.to_dict(),
                seed=seed,
                steps=self._context.effort.steps,
                keep_above=-math.inf,
                number=number,
            )
        steps, groups = _search_steps(self._context.effort), self._group_of_unit()
        values = training.hybrid.values
        return StructureJob(
            id=f"trial-{number}-structure",
            kind="trial",
            label=f"trial {number}",
            recipe=self._context.space.materialize(values).to_dict(),
            seed=seed,
            steps=steps,
            number=number,
            score_every=max(1, steps // _NUMBERS.scores),
            gating=Gating(
                group_of={name: groups[unit] for name, (unit, _) in self._places(values).items()},
                sizes=self._sizes(),
                budget=self._budget * (1 - _NUMBERS.slack),
                first=0,
                last=steps,
                new=0,
                held_out=_NUMBERS.held_out,
            ),
        )

    @property
    def expected_steps(self) -> float:
        """See `Strategy`."""
        return _search_cost(self._context.effort) + self._context.effort.steps

    @property
    def steps_left(self) -> float:
        """See `Strategy`."""
        effort = self._context.effort
        whole = max(0, effort.trials - self.launched) * self.expected_steps
        return whole + effort.steps * sum(t.part > 0 for t in self._waiting.values())


def _search_steps(effort: Effort) -> int:
    return max(1, round((1 - _NUMBERS.held_out) * effort.steps))


def _search_cost(effort: Effort) -> float:
    """Ordinary training steps that a search takes as long as."""
    return _PASSES * _search_steps(effort) + _NUMBERS.scores * effort.scoring_steps
