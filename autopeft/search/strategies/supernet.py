"""`supernet`: sizes share weights, one member trains at each step, and evolution ranks members by what they
score with the shared weights.

After NOAH (Zhang et al. 2022, arXiv:2206.04673). A size is the leading part of the largest. What a member
scores with shared weights is an estimate of what its recipe scores when it is trained by itself; the best are
retrained by the finals, as candidates of every strategy are.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import BaseModel

from autopeft.effort import Effort
from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid
from autopeft.method import get_method
from autopeft.recipe import EmptyRecipe, Recipe
from autopeft.recipe.models import entry_items
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.execution.input_transfer import opened
from autopeft.search.execution.runners import JobContext, runs, train
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.candidate import Candidate, candidate
from autopeft.search.space.elastic import SuperHybrid, origin_of, places_of, super_hybrid
from autopeft.search.strategies.contract import StrategyContext
from autopeft.search.strategies.registry import register
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.shared_weights import SharedWeights
from autopeft.training.supernet import Member, train_supernet

__all__ = ["Evolution", "Levels", "MemberJob", "Sizes", "SupernetJob", "SupernetSearch"]

Levels = tuple[int, ...]
"""Of each unit of the supernet the number of its size; 0 is absent."""

_LENGTH = 4
"""Trainings that the supernet's takes the steps of: the authors' 6,000 are four of their 1,500."""
_REDRAWN = 0.1
"""The share of sizes that a mutation redraws."""
_TRIES = 40
"""Proposals for each member that a generation is to have."""


class Evolution(BaseModel, frozen=True):
    """How a generation is made: mutants first, then members that are crossed from others, then random ones.

    Attributes:
        population: members of a generation.
        parents: the best so far, which the others are made of.
        mutants, crossed: how many are made so at most.
        tries: proposals for each of these.
        random_tries: proposals for each random member.
    """

    population: int
    parents: int
    mutants: int
    crossed: int
    tries: int
    random_tries: int


@dataclass(frozen=True)
class SupernetJob(TrainJob):
    """A part of the supernet's training.

    Attributes:
        members: what is trained at each of its steps.
        rate: what every learning rate is multiplied by.
    """

    members: tuple[Member, ...] = field(default=(), repr=False)
    rate: float = 1.0


@dataclass(frozen=True)
class MemberJob(TrainJob):
    """A member to be scored with the shared weights that are in `files`.

    Attributes:
        origin: for each of its entries the name that it has in the supernet.
    """

    origin: Mapping[str, str] = field(default_factory=dict)


@runs(SupernetJob)
def _train(context: JobContext, job: SupernetJob) -> JobResult:
    recipe = Recipe.from_dict(dict(job.recipe))
    with opened(recipe, context.inputs) as inputs:
        shared = train_supernet(
            context.backbone(job.precision),
            recipe,
            context.data,
            replace(context.plan, steps=job.steps, seed=job.seed),
            job.members,
            rate=job.rate,
            shared=SharedWeights.from_files(job.files) if job.files else None,
            on_step=context.on_step,
            inputs=inputs,
        )
    return JobResult(job.id, files=shared.files(), paused=True, train_loss=shared.checkpoint.losses[-1])


@runs(MemberJob)
def _score(context: JobContext, job: MemberJob) -> JobResult:
    assert job.files is not None
    shared = SharedWeights.from_files(job.files)

    def resume(hybrid: Hybrid) -> Checkpoint:
        return shared.cut(hybrid, job.origin)

    return train(context, replace(job, steps=shared.checkpoint.step), resume=resume)


class Sizes:
    """How members are drawn, and made of others: each unit's size by itself.

    Args:
        most: deployed parameters that a member of a generation has at most.
    """

    def __init__(self, hybrid: SuperHybrid, most: int) -> None:
        self.hybrid, self.most = hybrid, most

    def drawn(self, draw: random.Random) -> Levels:
        """A member of any size."""
        return tuple(draw.randrange(len(unit.sizes)) for unit in self.hybrid.units)

    def within(self, draw: random.Random, levels: Levels) -> Levels | None:
        """A member inside the budget: units become one size smaller, in turn by lot, until it is."""
        levels_now = list(levels)
        while self.hybrid.size(levels_now) > self.most:
            there = [i for i, level in enumerate(levels_now) if level]
            if not there:
                return None
            levels_now[draw.choice(there)] -= 1
        return tuple(levels_now)

    def mutated(self, draw: random.Random, levels: Levels) -> Levels:
        """With some sizes drawn anew, one at least."""
        chosen = {draw.randrange(len(levels))} | {i for i in range(len(levels)) if draw.random() < _REDRAWN}
        fresh = self.drawn(draw)
        return tuple(fresh[i] if i in chosen else level for i, level in enumerate(levels))

    def crossed(self, draw: random.Random, one: Levels, other: Levels) -> Levels:
        """Each unit's size from either."""
        return tuple(draw.choice(pair) for pair in zip(one, other, strict=True))


@register("supernet")
class SupernetSearch:
    """One training of sizes that share weights, then evolution among them.

    A trial is a member that is scored with the shared weights. The first generation is drawn at random; of
    each further one half are mutants of the best fifth so far, and half are crossed from these.
    """

    name: ClassVar[str] = "supernet"
    space: ClassVar[str] = "gates"
    preset_trials: ClassVar[float] = 0.25
    takes_points: ClassVar[bool] = False
    outline: ClassVar[str] = f"{_LENGTH} × {{steps}} for weights that {{trials}} share"
    finals: ClassVar[Sequence[str]] = ()
    sizes: ClassVar[type[Sizes]] = Sizes
    widest: ClassVar[int | None] = 3
    """Parameters of the supernet at most, in budgets: a member drawn at random then has about one. `None`:
    it has all that the space has."""
    rate: ClassVar[float] = 1 / _LENGTH
    """What the supernet's learning rates are multiplied by: with those of one member its training, which is
    longer, diverges."""

    def __init__(self, context: StrategyContext) -> None:
        self._context = context
        self._records = {r.number: r for r in context.past if r.number is not None}
        self._fresh: list[TrialRecord] = []
        self._running: set[int | None] = set()  # `None` is the supernet itself
        self.finished = self.exhausted = self.out_of_time = False
        self.launched = len(self._records)
        self._most = context.budget.limits(context.space.spec)[1]
        self._hybrid = super_hybrid(context.space, None if self.widest is None else self.widest * self._most)
        self._sizes = self.sizes(self._hybrid, self._most)
        self._check()
        self._evolution = self.evolution(context.effort.trials)
        self._members: list[Levels] = []  # by number
        self._part, self._seconds = 0, 0.0
        if (files := context.checkpoints.get(self.name)) is not None:
            told = json.loads(files["state.json"])
            self._part, self._seconds = told["part"], told["seconds"]

    def _check(self) -> None:
        """Raise where there is nothing to choose, or sizes share no weights."""
        space, hybrid = self._context.space, self._hybrid
        if hybrid.fixed >= self._most or hybrid.deployed <= self._most:
            raise UsageError(
                "A supernet's members are chosen from blocks that have more parameters together than the "
                f"budget, which is {self._most:,}. The largest hybrid of space {space.name!r} has "
                f"{hybrid.deployed:,}, and {hybrid.fixed:,} of them cannot be left out. Give a smaller "
                "budget, or larger sizes."
            )
        for unit in hybrid.units:
            *smaller, whole = (
                [item for _, item in entry_items((found,))]
                for size, _ in unit.sizes[1:]
                if (found := space.item(unit.unit, {**hybrid.values, unit.parameter: size})) is not None
            )
            for items in smaller:
                for small, large in zip(items, whole, strict=True):
                    a, b = dict(small.method_config()), dict(large.method_config())
                    fixed = {name for name in a if a[name] != b[name]} - set(
                        getattr(get_method(large.method), "narrow", {})
                    )
                    if fixed:
                        raise UsageError(
                            f"Sizes of {large.method} that differ in {', '.join(sorted(fixed))} share no "
                            "weights. `autopeft methods` says by what a method can be cut. Leave it out of "
                            "the space, or take `--strategy trials`."
                        )

    @staticmethod
    def evolution(trials: int) -> Evolution:
        """How so many members are chosen."""
        population = min(trials, max(4, round(2 * math.sqrt(trials))))
        return Evolution(
            population=population,
            parents=max(2, population // 5),
            mutants=population // 2,
            crossed=population - population // 2,
            tries=_TRIES,
            random_tries=_TRIES,
        )

    @classmethod
    def open(cls, context: StrategyContext) -> SupernetSearch:
        """See `StrategyClass`."""
        return cls(context)

    @classmethod
    def planned_steps(cls, effort: Effort, rungs: Rungs) -> float:
        """See `StrategyClass`."""
        return _LENGTH * effort.steps + effort.trials * effort.scoring_steps

    # The supernet
    # ------------------------------------------------------------------------------------------------------

    def _member(self, levels: Levels) -> Member:
        """A member that is trained."""
        space, values = self._context.space, self._hybrid.at(levels)
        return Member(space.materialize(values), self._origin(values))

    def _origin(self, values: Mapping[str, Any]) -> dict[str, str]:
        space, hybrid = self._context.space, self._hybrid
        return origin_of(places_of(space, hybrid, hybrid.values), places_of(space, hybrid, values))

    def _training(self) -> SupernetJob:
        """The next part of the supernet's training."""
        context, steps = self._context, self._context.effort.steps
        draw = random.Random(f"{context.seed}-members-{self._part}")
        members: list[Member] = []
        while len(members) < steps:
            with contextlib.suppress(EmptyRecipe):  # another is drawn
                members.append(self._member(self._sizes.drawn(draw)))
        end = (self._part + 1) * steps
        return SupernetJob(
            id=f"{self.name}-{end}",
            kind="trial",
            label=self.name,
            recipe=context.space.materialize(self._hybrid.values).to_dict(),
            seed=context.seed,
            steps=_LENGTH * steps,
            start=end - steps,
            until=end,
            files=context.checkpoints.get(self.name),
            members=tuple(members),
            rate=self.rate,
        )

    # Evolution
    # ------------------------------------------------------------------------------------------------------

    def _evolve(self) -> None:
        """Add a generation to the members. It follows from the seed and from what earlier ones scored."""
        how, sizes, first = self._evolution, self._sizes, len(self._members)
        draw = random.Random(f"{self._context.seed}-generation-{first}")
        known = set(self._members)
        ranked = [r for r in self.candidates(len(self._records)) if r.number is not None and r.number < first]
        best = [self._members[r.number or 0] for r in ranked[: how.parents]]
        room = min(how.population, self._context.effort.trials - first)

        def add(wanted: int, tries: int, propose: Callable[[], Levels]) -> None:
            until = min(len(self._members) + wanted, first + room)
            for _ in range(wanted * tries):
                if len(self._members) == until:
                    return
                fitting = sizes.within(draw, propose())
                if fitting is not None and any(fitting) and fitting not in known:
                    known.add(fitting)
                    self._members.append(fitting)

        if best:
            mutants, crossed = (math.ceil(n * room / how.population) for n in (how.mutants, how.crossed))
            add(mutants, how.tries, lambda: sizes.mutated(draw, draw.choice(best)))
            add(crossed, how.tries, lambda: sizes.crossed(draw, draw.choice(best), draw.choice(best)))
        add(room, how.random_tries, lambda: sizes.drawn(draw))

    def _candidate(self, number: int) -> Candidate:
        values = self._hybrid.at(self._members[number])
        return candidate(self._context.space, values, self._context.budget)

    def _scoring(self, number: int) -> MemberJob:
        """The job of a member that is ranked."""
        kept = self._candidate(number)
        return MemberJob(
            id=f"trial-{number}",
            kind="trial",
            label=f"trial {number}",
            recipe=kept.recipe.to_dict(),
            seed=self._context.seed,
            number=number,
            keep_above=-math.inf,
            files=self._context.checkpoints.get(self.name),
            origin=self._origin(kept.point),
        )

    # The contract
    # ------------------------------------------------------------------------------------------------------

    def next(self, *, room: bool) -> Job | None:
        """See `Strategy`."""
        if None in self._running or self.finished:
            return None
        if self._part < _LENGTH:
            self._running.add(None)
            return self._training()
        trials = self._context.effort.trials
        # Where it goes on from an earlier process, generations of its members are made again.
        while (waiting := self._waiting()) is None and not self._running and not self.exhausted:
            before = len(self._members)
            if before == trials:
                break
            self._evolve()
            self.exhausted = len(self._members) == before
        if waiting is not None and not self.out_of_time:
            if room:
                self._running.add(waiting)
                self.launched += 1
                return self._scoring(waiting)
            self.out_of_time = True
        self.finished = not self._running
        return None

    def _waiting(self) -> int | None:
        """The first member that has not been scored."""
        done = {*self._records, *self._running}
        return next((number for number in range(len(self._members)) if number not in done), None)

    def complete(self, job: Job, result: JobResult) -> None:
        """See `Strategy`."""
        number = job.number
        if number not in self._running:
            return
        self._running.discard(number)
        if result.failure == "stopped":
            self.launched -= number is not None
            return  # it waits for a search that goes on
        if number is None and result.error is None:
            self._part += 1
            self._seconds += result.seconds
            told = {"part": self._part, "seconds": self._seconds}
            files = {**result.files, "state.json": json.dumps(told).encode()}
            self._context.checkpoints.put(self.name, files)
            return
        record = replace(job.record(result), number=number or 0)
        if number is None:  # without a supernet there is nothing to rank
            self.launched, self.finished = 1, True
        elif result.error is None:
            kept = self._candidate(number)
            record = replace(record, state="estimated", hash=kept.hash, values=dict(kept.point), job="")
        self._records[number or 0] = record
        self._fresh.append(record)

    def updates(self) -> list[TrialRecord]:
        """See `Strategy`."""
        found, self._fresh = self._fresh, []
        return found

    def records(self) -> list[TrialRecord]:
        """See `Strategy`."""
        return [self._records[number] for number in sorted(self._records)]

    def candidates(self, n: int) -> list[TrialRecord]:
        """See `Strategy`."""
        scored = [(r.rank, r) for r in self.records() if r.state == "estimated" and r.rank is not None]
        return [record for _, record in sorted(scored, key=lambda pair: -pair[0])[:n]]

    @property
    def expected_steps(self) -> float:
        """See `Strategy`."""
        return self._context.effort.scoring_steps

    @property
    def steps_left(self) -> float:
        """See `Strategy`."""
        effort = self._context.effort
        return (_LENGTH - self._part) * effort.steps + (effort.trials - self.launched) * self.expected_steps
