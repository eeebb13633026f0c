"""What a strategy is: it turns a space into candidates, by jobs that an executor runs for it.

It is one stage of a search. The controller asks for jobs and brings their results back. In the end other
stages train the best candidates with fresh seeds. Baselines, retries of lost jobs, time, tracking and the run
folder know no strategy.

A strategy registers by name (see `autopeft.search.strategies.registry`):

```python
@register("mine")
class Mine:
    '''One line, shown where strategies are listed.'''

    @classmethod
    def open(cls, context: StrategyContext) -> Mine: ...

    @classmethod
    def planned_steps(cls, effort: Effort, rungs: Rungs) -> float: ...
```

Its jobs are `TrainJob` and `ScoreJob`, or a type of its own with a runner that workers find
(`autopeft.search.execution.runners`). A job that trains a recipe to the end asks for its weights by
`keep_above=-math.inf`: a search that is interrupted before its final runs returns the best trial that has
some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from autopeft.counting import Budget
from autopeft.effort import Effort
from autopeft.recipe import Recipe
from autopeft.runs.records import TrialRecord
from autopeft.search.core.checkpoints import CheckpointStore
from autopeft.search.core.goals import Cost
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.bound import BoundSpace

__all__ = ["Strategy", "StrategyClass", "StrategyContext"]


@dataclass(frozen=True)
class StrategyContext:
    """What a strategy is given.

    Attributes:
        space: the search space on the backbone; it knows the backbone's spec.
        budget: limit on deployed parameters; `autopeft.search.space.candidate` repairs a point into it.
        effort: numbers of trials and steps.
        seed: of everything that the strategy draws.
        sampler, rungs, objectives, cost: what the user chose; a strategy uses those that mean something to
            it.
        step_cost: predicts what a training step of a recipe takes, where LoRA of the same budget on all
            layers takes 1; `None` where nothing is predicted.
        folder: the run folder, where a strategy may keep a file of its own.
        checkpoints: takes files under the strategy's own keys, until the search has ended.
        first: points to begin with, best first: what other runs found, then known hybrids at the budget.
            Empty where a run goes on.
        past: records of the trials that an earlier process of this run had finished.
    """

    space: BoundSpace
    budget: Budget
    effort: Effort
    seed: int
    sampler: str
    rungs: Rungs
    objectives: int
    folder: Path
    checkpoints: CheckpointStore
    first: Sequence[Mapping[str, Any]] = ()
    past: Sequence[TrialRecord] = field(default=(), repr=False)
    cost: Cost = "deployed"
    step_cost: Callable[[Recipe], float] | None = None


class Strategy(Protocol):
    """A search under way. All calls come from one thread, one at a time."""

    finals: ClassVar[Sequence[str]]
    """Names of further stages between the trials and the test of the winner (see
    `autopeft.search.selection.stages.register_stage`); usually none."""

    def next(self, *, room: bool) -> Job | None:
        """The next job, or `None`: wait for results first, or (with `finished`) nothing is left.

        Args:
            room: whether the time budget has room for one more candidate and all that follows; what was
                begun may always go on.
        """
        ...

    def complete(self, job: Job, result: JobResult) -> None:
        """Take what came of a job. It comes once for every job; a job whose worker died was given out again
        before, twice at most. A result may have failed, or (`failure="stopped"`) been cut off with the
        search."""
        ...

    def updates(self) -> list[TrialRecord]:
        """Records that are new or have changed since the last call, in order; those in the state `paused`
        are shown and not stored."""
        ...

    def records(self) -> list[TrialRecord]:
        """Every record so far, by number, those of an earlier process and paused ones among them."""
        ...

    def candidates(self, n: int) -> list[TrialRecord]:
        """The best `n` candidates that were trained to the end, best first; where candidates share weights,
        those that were estimated by these."""
        ...

    @property
    def finished(self) -> bool:
        """Whether no job will come any more and none is running."""
        ...

    @property
    def launched(self) -> int:
        """Candidates that were begun."""
        ...

    @property
    def expected_steps(self) -> float:
        """Mean training steps of one more candidate."""
        ...

    @property
    def steps_left(self) -> float:
        """Training steps that are expected until the end, without those of running jobs that began at step
        0."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether it ended because the space holds nothing new."""
        ...

    @property
    def out_of_time(self) -> bool:
        """Whether it ended because the time budget had no room for more."""
        ...


class StrategyClass(Protocol):
    """What is registered: how a strategy is opened, and what it will cost."""

    name: ClassVar[str]
    space: ClassVar[str]
    """The space that it searches where none is named; `default` unless it says another."""
    preset_trials: ClassVar[float]
    """How many trials of a preset (`--effort`) one of its candidates takes the place of; usually 1."""
    takes_points: ClassVar[bool]
    """Whether it begins with points (`StrategyContext.first`), as most do. Others refuse `--from`."""
    preset: ClassVar[Mapping[str, str]]
    """Arguments of a search (`sampler`, `objective`, `fidelity`) that it has where the user names none;
    usually none."""
    outline: ClassVar[str]
    """What it does, in words with `{trials}` and `{steps}` of an effort; usually "{trials} of {steps}"."""

    @classmethod
    def open(cls, context: StrategyContext) -> Strategy:
        """Begin, or go on where an earlier process of the same run ended."""
        ...

    @classmethod
    def planned_steps(cls, effort: Effort, rungs: Rungs) -> float:
        """Training steps of a whole search, for the estimate before it starts."""
        ...
