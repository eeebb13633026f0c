"""What a search would do, without starting anything."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autopeft.arguments import takes
from autopeft.counting import Counts
from autopeft.errors import AutoPEFTError
from autopeft.recipe import Recipe
from autopeft.search.core.jobs import TrainJob
from autopeft.search.optimization.warm_start import points_from
from autopeft.search.planning.arguments import PlanCall, SearchArguments
from autopeft.search.planning.cost import Estimate, Work, Writing, estimate
from autopeft.search.planning.prepare import Prepared, prepare
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.finals import FinalWork
from autopeft.search.selection.time_budget import TimeBudget
from autopeft.search.space.candidate import candidate
from autopeft.search.space.within import share_within
from autopeft.search.strategies.registry import get_strategy
from autopeft.tasks.kinds import get_metric
from autopeft.training.samples import HANDFUL, MOST_TOKENS

__all__ = ["DryRun", "Sample", "estimate_of", "plan"]

_PROBE = 200


@dataclass(frozen=True)
class Sample:
    """A recipe that a search could try, and its counts."""

    recipe: Recipe
    counts: Counts


@dataclass(frozen=True)
class DryRun:
    """What a search would do.

    Attributes:
        cardinality: recipes of the space before the budget; infinite where it has a continuous parameter.
        feasible: share of random members that fit the budget without repair.
        first: what it begins with, of the runs and recipes of `warm_start`.
        estimate: time and memory.
    """

    prepared: Prepared
    cardinality: int | float
    feasible: float
    first: tuple[Sample, ...]
    samples: tuple[Sample, ...]
    baselines: tuple[Baseline, ...]
    estimate: Estimate


@takes(PlanCall)
def plan(call: PlanCall) -> DryRun:
    """Say what `search` with these arguments would do, without starting anything.

    Args:
        {arguments}

    Raises:
        UsageError: an argument is wrong, nothing in the space fits the budget, or nothing can be taken from
            what it shall begin with.
    """
    ready = prepare(call.base(SearchArguments), call.notify)
    first = _first(ready, call.notify)
    rng, bound = random.Random(ready.arguments.seed), ready.space.bind(ready.spec)
    found: dict[str, Sample] = {}
    for _ in range(20 * call.samples):
        if len(found) >= call.samples:
            break
        try:
            drawn = candidate(bound, bound.sample(rng), ready.budget)
        except AutoPEFTError:  # nothing near this point fits; a search goes on to the next one too
            continue
        found.setdefault(drawn.hash, Sample(drawn.recipe, drawn.counts))
    baselines = ready.baselines()
    return DryRun(
        prepared=ready,
        cardinality=ready.space.cardinality(ready.spec),
        feasible=share_within(bound, ready.budget, n=_PROBE, seed=ready.arguments.seed),
        first=first,
        samples=tuple(found.values()),
        baselines=tuple(baselines),
        estimate=estimate_of(ready, baselines),
    )


def _first(ready: Prepared, notify: Callable[[str], None] | None) -> tuple[Sample, ...]:
    """The recipes that the search begins with, inside the budget, each once."""
    a, bound = ready.arguments, ready.space.bind(ready.spec)
    points, notices = points_from(a.warm_start, bound, runs=a.runs)
    found: dict[str, Sample] = {}
    for point in points:
        try:
            drawn = candidate(bound, point, ready.budget)
        except AutoPEFTError as error:
            notices.append(str(error))
            continue
        found.setdefault(drawn.hash, Sample(drawn.recipe, drawn.counts))
    for line in notices:
        if notify is not None:
            notify(line)
    return tuple(found.values())


def estimate_of(ready: Prepared, baselines: Sequence[Baseline]) -> Estimate:
    """Time and memory of a search with these baselines. A time budget bounds the time, but for what is
    trained in any case."""
    kind = ready.task.task_kind
    tokens = kind.positions(ready.task.splits["train"], ready.source, ready.plan.max_length)
    found = estimate(
        Work.of(ready.spec, tokens),
        ready.effort,
        planned_steps=get_strategy(ready.arguments.strategy).planned_steps(ready.effort, ready.rungs),
        batch_size=ready.plan.batch_size,
        at_once=ready.plan.micro_rows,
        weight_bytes=2 if ready.arguments.precision == "bf16" else 4,
        memory_saving=ready.plan.memory_saving,
        select_rows=len(ready.task.splits["select"]),
        test_rows=len(ready.task.splits["test"]),
        workers=ready.workers or 1,
        baselines=baselines,
        gpu=ready.gpus > 0,
        writing=_writing(ready),
    )
    if ready.seconds is None:
        return found
    most = max(ready.seconds, _shortest(ready, baselines, found.trial_seconds))
    return replace(found, seconds=min(found.seconds, most))


def _shortest(ready: Prepared, baselines: Sequence[Baseline], trial: float) -> float:
    """Seconds that a search takes whatever its time budget: two trials and the shortest finals."""
    time = TimeBudget(ready.effort, ready.workers or 1)
    time.finished(TrainJob("trial", "trial", "a trial", {}, steps=ready.effort.steps), trial)
    least = FinalWork(baselines, ready.arguments.seed).least(ready.effort, time.seconds)
    return (2 * trial + time.seconds(least)) / time.workers


def _writing(ready: Prepared) -> Writing | None:
    """What the search writes; `None` where models for its task write no answers."""
    task, kind = ready.task, ready.task.task_kind
    longest = ready.summary.use.get("max_new_tokens")
    if not kind.writes or not isinstance(longest, int) or not kind.asks(task.splits["test"]):
        return None
    samples = None if get_metric(task.metric).generated else HANDFUL
    return Writing(longest, samples, MOST_TOKENS, ready.plan.eval_rows)
