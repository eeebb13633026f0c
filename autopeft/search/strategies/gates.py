"""`gates`: one hybrid of many small blocks is trained, and keeps those that are worth their parameters.

After S³PET (Hu et al. 2022, arXiv:2206.07382) and BIPEFT (Chang et al. 2024, arXiv:2410.09079). Each group of
blocks has a probability; its sum over all parameters is the budget. Probabilities are learnt beside the
weights (`autopeft.training.gates`). Then the least probable blocks are left out, in two steps, until the rest
fits, and trains on without gates. What is left is a point of the space, and its score an estimate of what the
same recipe scores when it is trained by itself.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from autopeft.effort import Effort
from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid
from autopeft.recipe import CompositionItem, Recipe
from autopeft.runs.folder import GATES
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.execution.runners import JobContext, runs, train
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.candidate import Candidate, candidate
from autopeft.search.space.elastic import (
    Group,
    SuperHybrid,
    grouped,
    largest_within,
    origin_of,
    places_of,
    super_hybrid,
)
from autopeft.search.strategies.contract import StrategyContext
from autopeft.search.strategies.registry import register
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.gates import Gates, Gating
from autopeft.training.shared_weights import SharedWeights, linear_in_of, trained_names

__all__ = ["GateJob", "GateSearch"]

_WARM, _DROPS = 0.15, ((0.6, 2.0), (0.75, 1.0))
"""The share of the steps in which blocks learn alone; and after which share how many budgets are left."""
_LONG, _PARTS = 300, 3
"""Steps from which each layer has probabilities of its own. In shorter trainings so many parts of the layers
have."""
_STEPS = 4
"""The fewest in which gates can be learnt."""


@dataclass(frozen=True)
class GateJob(TrainJob):
    """A part of a gated training.

    Attributes:
        gating: of the first part.
        origin: of a later part: for each entry the name that it had in the part before.
        gates: of the part after the first: what is multiplied into each entry of the first.
    """

    gating: Gating | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    gates: Mapping[str, float] = field(default_factory=dict)


@runs(GateJob)
def _run(context: JobContext, job: GateJob) -> JobResult:
    """Train from one drop to the next, with a checkpoint that the next part can be cut from."""
    gates = None
    if job.gating is not None:
        gating = Gating.over(len(context.data.train), context.plan.batch_size, job.gating)
        gates = Gates(Recipe.from_dict(dict(job.recipe)), gating)
    trained: list[str] = []

    def resume(hybrid: Hybrid) -> Checkpoint:
        assert job.files is not None
        return SharedWeights.from_files(job.files).cut(hybrid, job.origin, job.gates)

    def seen(hybrid: Hybrid) -> None:
        trained.extend(trained_names(hybrid))

    result = train(
        context,
        job,
        resume=resume if job.start else None,
        policies=[] if gates is None else [gates],
        seen=seen,
    )
    if not result.paused:
        return result
    files = {**result.files, "trained.json": json.dumps(trained).encode()}
    if gates is not None:
        files["gates.json"] = json.dumps({"history": gates.history, "kept": -1}).encode()
    return replace(result, files=files)


@dataclass
class _Training:
    """A gated training under way: its number, the point of its super-hybrid, the part that is next, the
    seconds that those before it took, and of a later part the probabilities of the groups."""

    number: int
    hybrid: SuperHybrid
    part: int = 0
    seconds: float = 0.0
    probabilities: list[float] = field(default_factory=list)


@register("gates")
class GateSearch:
    """One training of many small blocks, which keeps those that are worth their parameters.

    The first training has the learning rates with which a search starts; further ones draw theirs.
    """

    name: ClassVar[str] = "gates"
    space: ClassVar[str] = "gates"
    preset_trials: ClassVar[int] = 8
    takes_points: ClassVar[bool] = False
    outline: ClassVar[str] = "{trials} of {steps}"
    finals: ClassVar[Sequence[str]] = ()
    shares_weights: ClassVar[bool] = True
    """Whether what is kept goes on with the weights that it had among others, so that its score estimates."""
    most_budgets: ClassVar[int | None] = 4
    """Parameters of the super-hybrid, in budgets; `None` for all of the space."""

    def __init__(self, context: StrategyContext) -> None:
        self._context = context
        self._records = {r.number: r for r in context.past if r.number is not None}
        self._fresh: list[TrialRecord] = []
        self._running: set[int] = set()
        self._waiting: dict[int, _Training] = {}
        self.finished = self.exhausted = self.out_of_time = False
        self._most = context.budget.limits(context.space.spec)[1]
        most = None if self.most_budgets is None else self.most_budgets * self._most
        self._hybrid = super_hybrid(context.space, most)
        self._budget = self._most - self._hybrid.fixed
        self._groups = self._grouped()
        self._check()
        steps = context.effort.steps
        self._ends = [*(round(share * steps) for share, _ in _DROPS), steps]
        # Those of an earlier process stand where their last part had ended.
        self.launched = len(self._records)
        for number in range(self._context.effort.trials):
            files = context.checkpoints.get(f"gates-{number}")
            if files is not None and number not in self._records:
                told = json.loads(files["state.json"])
                self._waiting[number] = replace(self._training(number), **told)
                self.launched += 1

    def _check(self) -> None:
        """Raise where gates cannot choose.

        Raises:
            UsageError: there is nothing to choose, no room, an item whose effect no gate can multiply, or too
                few steps.
        """
        space, hybrid = self._context.space, self._hybrid
        if self._budget <= 0 or hybrid.deployed <= self._most:
            raise UsageError(
                "Gates choose among blocks that have more parameters together than the budget, which is "
                f"{self._most:,}. The largest hybrid of space {space.name!r} has {hybrid.deployed:,}, and "
                f"{hybrid.fixed:,} of them cannot be left out. Give a smaller budget, or larger sizes."
            )
        linear = linear_in_of(space.materialize(hybrid.values))
        items = (space.item(unit.unit, hybrid.values) for unit in hybrid.units)
        ungated = {item.kind for item in items if isinstance(item, CompositionItem)}
        ungated |= {entry for entry in self._places(hybrid.values) if not linear[entry]}
        if ungated:
            raise UsageError(
                f"No gate can act on {', '.join(sorted(ungated))}. A gate multiplies a tensor that what an "
                "entry adds is linear in; lora, moslora, krona, vera, ia3, ssf and bottleneck adapters have "
                "one. Leave others and compositions out of the space, or take `--strategy trials`."
            )
        if self._context.effort.steps < _STEPS:
            raise UsageError(
                f"Gates are learnt in a part of a training, which needs at least {_STEPS} steps, but "
                f"there are {self._context.effort.steps}. Raise --steps."
            )

    @classmethod
    def open(cls, context: StrategyContext) -> GateSearch:
        """See `StrategyClass`."""
        return cls(context)

    @classmethod
    def planned_steps(cls, effort: Effort, rungs: Rungs) -> float:
        """See `StrategyClass`."""
        return float(effort.trials * effort.steps)

    # What is trained
    # ------------------------------------------------------------------------------------------------------

    def _training(self, number: int) -> _Training:
        """A gated training, with its own learning rates."""
        space, hybrid = self._context.space, self._hybrid
        if number:
            drawn = space.sample(random.Random(f"{self._context.seed}-{number}"))
            rates = {p.name: drawn[p.name] for p in space.parameters if p.kind == "float"}
            hybrid = replace(hybrid, values={**hybrid.values, **rates})
        return _Training(number, hybrid)

    def _grouped(self) -> list[Group]:
        """The units that share a probability."""
        parts = None if self._context.effort.steps >= _LONG else _PARTS
        return grouped(self._context.space, self._hybrid, parts=parts)

    def _places(self, values: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        return places_of(self._context.space, self._hybrid, values)

    def _sizes(self) -> tuple[int, ...]:
        """Deployed parameters of each group."""
        units = self._hybrid.units
        return tuple(sum(units[i].whole for i in group.members) for group in self._groups)

    def _group_of_unit(self) -> dict[int, int]:
        """Of each unit, by its place in the space, the number of its group."""
        group_of = {i: number for number, group in enumerate(self._groups) for i in group.members}
        return {unit.unit.index: group_of[i] for i, unit in enumerate(self._hybrid.units)}

    def _levels(self, training: _Training, budgets: float) -> list[int]:
        """Which size of each unit is left."""
        p, groups = training.probabilities, self._groups
        order = sorted(range(len(groups)), key=lambda group: -p[group])
        room = int(budgets * self._most) - self._hybrid.fixed
        return largest_within(training.hybrid.units, groups, order, room)

    def _point(self, training: _Training, part: int) -> dict[str, Any]:
        """The point that a part trains."""
        if part == 0:
            return dict(training.hybrid.values)
        return training.hybrid.at(self._levels(training, _DROPS[part - 1][1]))

    def _kept(self, training: _Training) -> Candidate:
        """What is left in the end."""
        last = self._point(training, len(_DROPS))
        return candidate(self._context.space, last, self._context.budget)

    def _job(self, training: _Training) -> GateJob:
        """The next part of a training."""
        space, part, number = self._context.space, training.part, training.number
        last = part == len(_DROPS)
        values = dict(self._kept(training).point) if last else self._point(training, part)
        names = self._places(values)
        job = GateJob(
            id=f"trial-{number}" if last else f"trial-{number}-{self._ends[part]}",
            kind="trial",
            label=f"trial {number}",
            recipe=(self._kept(training).recipe if last else space.materialize(values)).to_dict(),
            seed=self._context.seed + number,
            steps=self._context.effort.steps,
            start=self._ends[part - 1] if part else 0,
            until=None if last else self._ends[part],
            keep_above=-math.inf if last else None,
            number=number,
        )
        groups = self._group_of_unit()
        if part == 0:
            gating = Gating(
                group_of={name: groups[unit] for name, (unit, _) in names.items()},
                sizes=self._sizes(),
                budget=self._budget,
                first=round(_WARM * job.steps),
                last=self._ends[0],
                new=job.steps,
            )
            return replace(job, gating=gating)
        before = self._places(self._point(training, part - 1))
        return replace(
            job,
            files=self._context.checkpoints.get(f"gates-{number}"),
            origin=origin_of(before, names),
            gates={
                name: training.probabilities[groups[unit]]
                for name, (unit, _) in before.items()
                if part == 1  # from there on they are in the weights
            },
        )

    # The contract
    # ------------------------------------------------------------------------------------------------------

    def next(self, *, room: bool) -> Job | None:
        """See `Strategy`."""
        for number, training in self._waiting.items():
            if number not in self._running:
                self._running.add(number)
                return self._job(training)
        if self.launched < self._context.effort.trials and not self.out_of_time:
            if room:
                number = next(
                    n for n in range(self._context.effort.trials) if n not in {*self._records, *self._waiting}
                )
                self._waiting[number] = training = self._training(number)
                self._running.add(number)
                self.launched += 1
                return self._job(training)
            self.out_of_time = True
        self.finished = not self._waiting
        return None

    def complete(self, job: Job, result: JobResult) -> None:
        """See `Strategy`."""
        number = job.number
        if number is None or number not in self._waiting:
            return
        self._running.discard(number)
        if result.failure == "stopped":
            return  # it waits for a search that goes on
        training, store = self._waiting[number], self._context.checkpoints
        if result.paused:
            files = dict(result.files)
            if "gates.json" in files:
                told = json.loads(files.pop("gates.json"))
                training.probabilities = told["history"][told["kept"]]
                self._tell(training, told["history"])
            training.part += 1
            training.seconds += result.seconds
            state = {k: getattr(training, k) for k in ("part", "seconds", "probabilities")}
            store.put(f"gates-{number}", {**files, "state.json": json.dumps(state).encode()})
            return
        del self._waiting[number]
        store.drop(f"gates-{number}")
        record = replace(job.record(result), seconds=training.seconds + result.seconds)
        if result.error is None:
            kept = self._kept(training)
            record = replace(record, hash=kept.hash, values=dict(kept.point), job="")
            if self.shares_weights:
                record = replace(record, state="estimated")
        self._records[number] = record
        self._fresh.append(record)

    def _tell(self, training: _Training, history: Sequence[Sequence[float]]) -> None:
        """Add the probabilities of each step to a file of the run."""
        line = {
            "trial": training.number,
            "blocks": [group.what for group in self._groups],
            "layers": [group.where for group in self._groups],
            "probabilities": history,
        }
        with (self._context.folder / GATES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def updates(self) -> list[TrialRecord]:
        """See `Strategy`."""
        found, self._fresh = self._fresh, []
        return found

    def records(self) -> list[TrialRecord]:
        """See `Strategy`."""
        return [self._records[n] for n in sorted(self._records)]

    def candidates(self, n: int) -> list[TrialRecord]:
        """See `Strategy`."""
        ended = "estimated" if self.shares_weights else "complete"
        scored = [r for r in self.records() if r.state == ended and r.rank is not None]
        return sorted(scored, key=lambda record: -(record.rank or -math.inf))[:n]

    @property
    def expected_steps(self) -> float:
        """See `Strategy`."""
        return float(self._context.effort.steps)

    @property
    def steps_left(self) -> float:
        """See `Strategy`."""
        whole = max(0, self._context.effort.trials - self.launched) * self.expected_steps
        begun = sum(self.expected_steps - self._ends[t.part - 1] for t in self._waiting.values() if t.part)
        return whole + begun
